"""The command line: reads options, calls one stage, prints what it returns."""
