"""One word, one thing: a public name is defined once, and what stands for two things is listed.

Public names are classes and functions at the top of a file, and constants and types that another file
imports. `tests/words_left.txt` names what stands for two things today, and whose files say it; the list may
only get shorter, and `python -m tests.test_words` takes out what is gone.
"""

import ast
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.test_import_rules import SOURCES, parsed, relative

LEFT = Path(__file__).parent / "words_left.txt"

# The same thing in several places. A command of the front door is the stage of that name, which calls the
# function of that name below it; every program has a `main`.
SAME = {
    "applies": "each graph pass's: `GraphPass.applies`",
    "bench": "command and stage",
    "calibrate": "command, stage and what it calls",
    "compare": "how two are compared: each check's and the command's",
    "compress": "command, stage and what it calls",
    "costs": "command and stage",
    "export": "command and stage",
    "fires": "what a gate's logits decide: of tensors, and of arrays where there is no torch",
    "heal": "command, stage and what an export calls",
    "inspect": "command and stage",
    "load_compressed": "the front door's takes a path",
    "load_recipe": "the front door's knows the shipped recipes",
    "main": "of each program",
    "merge_profiles": "command and stage",
    "models": "command and stage",
    "pack": "command and stage",
    "plan": "command and stage",
    "search": "command and stage",
    "serve": "command and stage",
    "selftest": "command and stage",
    "sweep": "command and stage",
    "register": "adds to a registry: of backends, and of clients",
    "run": "each graph pass's: `GraphPass.run`",
    "train_gates": "command, stage and what it calls",
    "train_parts": "command and stage",
    "validate": "command and stage",
}
# Of these, what is the same in one folder alone.
SAME_WITHIN = {"applies": "export/writer/passes/", "run": "export/writer/passes/"}


def defined(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Return the public classes and functions of a file, and its public constants and types."""
    things, constants = set(), set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            things.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        constants |= {target.id for target in targets if isinstance(target, ast.Name)}
    return tuple({n for n in names if not n.startswith("_")} for names in (things, constants))  # type: ignore[return-value]


def doubles(sources: Mapping[str, ast.Module]) -> dict[str, list[str]]:
    """Return the names that more than one file defines, with the files."""
    asked = {
        (node.module, alias.name)
        for tree in sources.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    places: dict[str, list[str]] = defaultdict(list)
    for path, tree in sorted(sources.items()):
        things, constants = defined(tree)
        module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in things | {name for name in constants if (module, name) in asked}:
            places[name].append(path)
    return {name: paths for name, paths in sorted(places.items()) if len(paths) > 1}


def test_a_public_name_stands_for_one_thing_but_for_those_that_are_listed():
    found = doubles({relative(path): parsed(path) for path in SOURCES})
    lines = LEFT.read_text(encoding="utf-8").splitlines()
    left = {line.split(":")[0] for line in lines if line and not line.startswith("#")}
    assert {name: found[name] for name in found.keys() - SAME.keys() - left} == {}, "rename one"
    assert sorted(left - found.keys()) == [], "these stand for one thing now: take them out"
    assert sorted(SAME.keys() - found.keys()) == []
    for name, folder in SAME_WITHIN.items():
        assert [path for path in found[name] if not path.startswith(folder)] == [], f"rename {name}"
    assert not left & SAME.keys()


@pytest.mark.parametrize(
    "code",
    [
        "class Row: pass",
        "def Row(): pass",
        "async def Row(): pass",
        "Row = int",
        "Row: type = int",
    ],
)
def test_a_name_for_two_things_is_seen(code):
    sources = {
        "a/one.py": "class Row: pass",
        "a/two.py": code,
        "a/three.py": "from a.two import Row",
    }
    found = doubles({path: ast.parse(text) for path, text in sources.items()})
    assert found == {"Row": ["a/one.py", "a/two.py"]}


@pytest.mark.parametrize(
    "code",
    [
        "from a.one import Row",
        "class _Row: pass",
        "Row = 1",
        "class A:\n  class Row: pass",
        "Row()",
    ],
)
def test_a_name_that_is_imported_private_or_of_one_file_alone_is_no_second_thing(code):
    sources = {"a/one.py": "class Row: pass\nclass _Row: pass", "a/two.py": code}
    assert doubles({path: ast.parse(text) for path, text in sources.items()}) == {}


if __name__ == "__main__":
    today = doubles({relative(path): parsed(path) for path in SOURCES})
    kept = [
        x for x in LEFT.read_text("utf-8").splitlines() if x[0] == "#" or x.split(":")[0] in today
    ]
    LEFT.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
