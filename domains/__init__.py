"""The sciences that plug into :mod:`sciflow`: one folder each, none importing another."""
