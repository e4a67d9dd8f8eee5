"""`python -m atoll.cli` is the command `atoll`."""

from atoll.cli import main

main()
