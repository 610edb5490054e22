"""`python -m vtcompress` is the command line."""

from vtcompress.cli import main

main()
