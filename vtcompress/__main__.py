"""`python -m vtcompress` is the command line."""

from vtcompress.start import main

main()
