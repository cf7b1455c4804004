"""`python -m convnext`."""

from convnext.cli import main

main()
