"""``python -m farout``: the command line."""

from farout.cli import main

main()
