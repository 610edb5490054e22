"""Where the command begins: it imports nothing yet, so that Ctrl-C while modules load is one line too."""

import sys

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, as shells have it."""


def main() -> None:
    """Run the command line with `sys.argv` and exit."""
    try:
        from vtcompress.cli.main import main as run
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(INTERRUPTED)
    run()
