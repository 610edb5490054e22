"""`python -m tests.forked MODULE...`: what each module loads, one JSON object; a forked process for each.

The first process loads light packages that are not of this project, so that each fork loads the rest alone.
"""

import importlib
import json
import os
import sys

OTHERS = ("click", "jinja2", "numpy", "PIL.Image", "pydantic", "rich.console", "tokenizers", "yaml")
Loaded = dict[str, list[str]]


def loaded_after_each(modules: list[str]) -> Loaded:
    """Return the top-level packages that are loaded after a module was imported, by module."""
    found: Loaded = {}
    for name in modules:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                importlib.import_module(name)
                os.write(writer, " ".join({m.split(".")[0] for m in sys.modules}).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as said:
            found[name] = said.read().split()
        os.waitpid(pid, 0)
    return found


if __name__ == "__main__":
    for other in OTHERS:
        importlib.import_module(other)
    print(json.dumps(loaded_after_each(sys.argv[1:])))
