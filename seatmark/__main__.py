"""`python -m seatmark`."""

from seatmark.cli import main

main()
