"""The clients that `make node` installs from npm, for tests."""

import os
from pathlib import Path

import pytest

from export.clients.transformers_js import node

INSTALLED = Path(__file__).parent.parent / ".node" / "node_modules"


def find_clients() -> None:
    """Let clients from npm be found; skip where they are not there."""
    if INSTALLED.is_dir():
        os.environ.setdefault("NODE_PATH", str(INSTALLED))
    if reason := node.lacking():
        pytest.skip(f"{reason}; `make node` installs it for tests")
