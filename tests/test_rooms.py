"""The rooms hold: no circles, small folders, light modules, and names that stay in their own room.

A circle is looked for between files and, in every folder, between its entries (files and subfolders), by all
imports: at the top, in functions and for types alone. `tests/names_left.txt` lists the names that stand
outside their room today; it may only get shorter, and `python -m tests.test_rooms` takes out what is gone.
"""

import ast
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.test_import_rules import HEAVY, ROOT, SOURCES, imported, parsed, relative, words_in_code

MOST_FILES = 15
LEFT = Path(__file__).parent / "names_left.txt"

# Rooms whose modules may load torch and the like; every other module runs where they are not installed.
HEAVY_ROOMS = (
    "compressor.calibration", "compressor.chosen_rows", "compressor.compressed", "compressor.decoder",
    "compressor.families", "compressor.gate_training",
    "compressor.methods", "compressor.samples.prompts", "compressor.search.asking",
    "compressor.search.engine",
    "compressor.search.measuring", "compressor.training", "export.backends",
    "export.checks", "export.clients", "export.evaluation.lmms",
    "export.writer", "vtcompress.stages.gates",
)  # fmt: skip
# Of these rooms, what an edge box needs all the same.
LIGHT_FILES = (
    "compressor.methods", "export.backends.registry", "export.backends.onnxruntime_cuda",
    "export.backends.openvino", "export.backends.tensorrt.build", "export.backends.tensorrt.device",
    "export.backends.tensorrt.session", "export.checks.fidelity", "export.checks.loss",
    "export.checks.memory", "export.checks.bench", "export.clients.pack", "export.clients.preparing",
    "export.clients.registry",
)  # fmt: skip

# Rooms, and the names that are said in them alone.
NAMES = {
    ("compressor/methods/",): r"(?i:shortv|vtw|dyvte|yopo|visual_?exit|g_?prune|div_?prune"
    r"|vision_?zip|cls_?knee|wico)(?![a-z])",
    (
        "export/backends/",
        "export/clients/",
    ): r"(?i:onnx_?runtime|openvino|tensor_?rt|cuda|trtexec)(?![a-z])",
    ("export/clients/",): r"(?i:transformers_?\.?js|genai)(?![a-z])",
}

Imports = Mapping[str, set[str]]


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports_of(sources: Mapping[str, ast.Module]) -> Imports:
    """Return which of the files import which, by module names; packages are their `__init__`."""
    modules = {module_of(path): path for path in sources}
    found: dict[str, set[str]] = {}
    for name, path in modules.items():
        asked = set(imported(sources[path]))
        for node in ast.walk(sources[path]):
            if isinstance(node, ast.ImportFrom):  # a name may be a module itself
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                if inner <= modules.keys():
                    asked.discard(node.module or "")
                asked |= inner
        found[name] = (asked & modules.keys()) - {name}
    return found


def circles(imports: Imports) -> list[list[str]]:
    """Return the groups of nodes of which each can be reached from each other one."""
    reached = {node: _reached(imports, node) for node in imports}
    groups = {
        tuple(sorted({node} | {o for o in reached[node] if node in reached.get(o, ())}))
        for node in imports
    }
    return sorted(list(group) for group in groups if len(group) > 1)


def _reached(imports: Imports, start: str) -> set[str]:
    seen: set[str] = set()
    todo = [start]
    while todo:
        for node in imports.get(todo.pop(), ()):
            if node not in seen:
                seen.add(node)
                todo.append(node)
    return seen


def by_folder(imports: Imports) -> dict[str, dict[str, set[str]]]:
    """Return for every folder which of its entries import which; the top folder is ""."""
    folders = {name.rpartition(".")[0] for name in imports}

    def parts(name: str) -> list[str]:
        return (f"{name}.__init__" if name in folders else name).split(".")

    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, others in imports.items():
        for other in others:
            one, two = parts(name), parts(other)
            depth = next(i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
            found[".".join(one[:depth])][one[depth]].add(two[depth])
    return found


def folder_circles(imports: Imports) -> list[str]:
    return [
        f"{folder or 'top'}: {' '.join(circle)}"
        for folder, entries in sorted(by_folder(imports).items())
        for circle in circles(entries)
    ]


def crowded(paths: list[str]) -> dict[str, int]:
    counts = Counter(path.rpartition("/")[0] for path in paths)
    return {folder: count for folder, count in counts.items() if count > MOST_FILES}


def names_outside(sources: Mapping[str, ast.Module]) -> set[str]:
    """Return `path: name` for every name that stands in code outside its room."""
    return {
        f"{path}: {found.lower().replace('_', '')}"
        for path, tree in sources.items()
        for rooms, names in NAMES.items()
        if not path.startswith(rooms)
        for _, words in words_in_code(tree)
        for found in re.findall(names, words)
    }


@pytest.fixture(scope="module")
def sources() -> dict[str, ast.Module]:
    return {relative(path): parsed(path) for path in SOURCES}


def test_no_files_import_each_other_in_a_circle(sources):
    assert circles(imports_of(sources)) == []


def test_no_entries_of_a_folder_import_each_other_in_a_circle(sources):
    assert folder_circles(imports_of(sources)) == []


def test_no_folder_has_more_files_than_one_sees_at_a_glance(sources):
    assert crowded(list(sources)) == {}


def test_names_stay_in_their_room_but_for_those_that_are_listed(sources):
    found, left = names_outside(sources), set(LEFT.read_text(encoding="utf-8").splitlines())
    assert sorted(found - left) == [], "say these in their room"
    assert sorted(left - found) == [], "gone: run python -m tests.test_rooms"


def small(**files: str) -> dict[str, ast.Module]:
    return {path.replace("__", "/") + ".py": ast.parse(code) for path, code in files.items()}


@pytest.mark.parametrize(
    "code",
    [
        "import a.one",
        "from a.one import x",
        "from a import one",
        "def f():\n  from a.one import x",
        "if TYPE_CHECKING:\n  from a.one import X",
        "importlib.import_module('a.one')",
    ],
)
def test_a_circle_of_files_is_seen_by_every_kind_of_import(code):
    files = small(a__one="from a.two import y", a__two=code, a__three="import a.one")
    assert circles(imports_of(files)) == [["a.one", "a.two"]]
    files = small(a__one="", a__two=code)
    assert circles(imports_of(files)) == []


def test_a_circle_of_folders_is_seen_where_no_file_is_in_one():
    files = small(
        a__b__one="import a.c.one", a__b__two="", a__c__one="", a__c__two="import a.b.two"
    )
    assert circles(imports_of(files)) == []
    assert folder_circles(imports_of(files)) == ["a: b c"]


def test_a_circle_of_a_folder_and_a_file_beside_it_is_seen():
    files = small(a__b__one="import a.two", a__two="import a.b.three", a__b__three="")
    assert folder_circles(imports_of(files)) == ["a: b two"]
    assert folder_circles(imports_of(small(a__two="", a__b__one="import a.two"))) == []


def test_a_crowded_folder_is_seen():
    paths = [f"a/b/{i}.py" for i in range(MOST_FILES)]
    assert crowded(paths) == {}
    assert crowded([*paths, "a/c/x.py", "a/b/more.py"]) == {"a/b": MOST_FILES + 1}


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("x = 'shortv'", "shortv"),
        ("import compressor.methods.yopo.rule", "yopo"),
        ("class ShortVReport: pass", "shortv"),
        ("plan.visual_exit = 1", "visualexit"),
        ("f(vtw=1)", "vtw"),
        ("say(f'{x} of DyVTE')", "dyvte"),
        ("class VisualExit: pass", "visualexit"),
        ("if name == 'tensorrt-rtx': pass", "tensorrt"),
        ("import onnxruntime", "onnxruntime"),
        ("class OpenVinoSession: pass", "openvino"),
        ("def cuda_device(): pass", "cuda"),
        ("if client == 'transformers.js': pass", "transformers.js"),
        ("x = 'genai'", "genai"),
    ],
)
def test_a_name_outside_its_room_is_seen(code, name):
    tree = ast.parse(code)
    assert f"export/x.py: {name}" in names_outside({"export/x.py": tree})
    home = next(rooms[0] for rooms, names in NAMES.items() if re.search(names, code))
    assert not names_outside({f"{home}x.py": tree})


@pytest.mark.parametrize("code", ["'''About ShortV.'''", "short_values = 1", "# openvino", "x = 1"])
def test_other_words_are_no_names(code):
    assert not names_outside({"export/x.py": ast.parse(code)})


def light_modules() -> list[str]:
    names = [module_of(relative(path)) for path in SOURCES if path.name != "__main__.py"]
    heavy = tuple(f"{room}." for room in HEAVY_ROOMS)
    return [n for n in names if not f"{n}.".startswith(heavy) or n in LIGHT_FILES]


def heavy_after_each(modules: list[str], path: str = "") -> dict[str, list[str]]:
    """Import each module in a process of its own; return the heavy packages that are loaded then."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.forked", *modules],
        cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    loaded = json.loads(done.stdout)
    assert [m for m in modules if m.split(".")[0] not in loaded[m]] == [], done.stderr
    return {m: heavy for m in modules if (heavy := sorted(set(HEAVY) & set(loaded[m])))}


def heavy_together(modules: list[str], path: str = "") -> list[str]:
    """Import modules in one process; return the heavy packages that are loaded then."""
    code = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    return sorted(set(HEAVY) & set(done.stdout.split()))


def test_no_module_outside_the_heavy_rooms_loads_anything_heavy():
    modules = light_modules()
    assert set(LIGHT_FILES) <= set(modules)
    # What all of them in one process do not load, none does; only else is each asked, which takes long.
    assert not heavy_together(modules) or heavy_after_each(modules) == {}


def test_a_module_that_loads_something_heavy_is_seen(tmp_path):
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "light.py").write_text("import json")
    (tmp_path / "late.py").write_text("def f():\n  import torch")
    (tmp_path / "heavy.py").write_text("import light, late\nlate.f()")
    assert heavy_together(["light", "late"], str(tmp_path)) == []
    assert heavy_together(["light", "heavy"], str(tmp_path)) == ["torch"]
    found = heavy_after_each(["heavy", "light", "late"], str(tmp_path))
    assert found == {"heavy": ["torch"]}


if __name__ == "__main__":
    today = names_outside({relative(path): parsed(path) for path in SOURCES})
    kept = sorted(set(LEFT.read_text(encoding="utf-8").splitlines()) & today)
    LEFT.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
