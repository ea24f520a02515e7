"""What the core and its adapters are tested with: exact denoisers, and the contract of a domain."""
