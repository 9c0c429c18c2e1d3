"""`python -m cellstream.cli`, where the script is not on the path."""

from cellstream.cli import main

main()
