"""`python -m vtcompress` is the command line."""

from vtcompress.cli.main import main

main()
