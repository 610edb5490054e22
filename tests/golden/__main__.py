"""`python -m tests.golden FOLDER...`: exit 0 if every array of every case is within the tolerance, else 1."""

import sys
from pathlib import Path

from tests.golden.case import run


def main(folders: list[str]) -> int:
    """Run the cases and print a line for each array."""
    if not folders:
        print("usage: python -m tests.golden FOLDER...", file=sys.stderr)
        return 2
    failed = False
    for folder in folders:
        lines, lengths = run(Path(folder))
        print(f"{folder}")
        for line in lines:
            print(f"  {'ok  ' if line.passed else 'FAIL'} {line.name}: {line.difference:.2e}")
            failed |= not line.passed
        for name, found in lengths.items():
            print(f"  KV lengths after prefill: {name} {', '.join(map(str, found))}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
