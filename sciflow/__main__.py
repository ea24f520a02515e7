"""``python -m sciflow``: the command without its script."""

from sciflow.cli import main

main()
