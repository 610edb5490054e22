"""The rules that keep the packages apart: who may import whom, what stays light, who may name what."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("compressor", "export", "vtcompress")
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
HEAVY = (
    "torch",
    "transformers",
    "optimum",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "safetensors",
    "matplotlib",
)
MODEL_NAMES = (
    "llava",
    "clip",
    "siglip",
    "qwen",
    "qwen2",
    "qwen3",
    "mistral",
    "llama",
    "vicuna",
    "internvl",
    "idefics",
)


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield every module that is imported anywhere in a file, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not followed by this test"
            yield node.module or ""
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def words_in_code(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield names and texts of a file with their lines, docstrings left out."""
    docs = {id(s.value) for s in ast.walk(tree) if isinstance(s, ast.Expr)}
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield line, node.value
        elif isinstance(node, ast.Attribute):
            array = isinstance(node.value, ast.Name) and node.value.id in ("np", "torch")
            if not (array and node.attr == "clip"):  # the function that limits values
                yield line, node.attr
        elif isinstance(node, ast.alias):
            yield from ((line, part) for part in (node.name, node.asname) if part)
        else:
            # Names are `id` of variables, `name` of definitions, `arg` of parameters and keywords,
            # `module` of imports.
            found = (getattr(node, field, None) for field in ("id", "name", "arg", "module"))
            yield from ((line, name) for name in found if isinstance(name, str))


def split(text: str) -> set[str]:
    """Split a name or text into lower-case words: `LlavaConfig`, `qwen2_vl`, `CLIPImage`, `a llava`."""
    parts = re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+\d*|[A-Z]+\d*", text)
    return {part.lower() for part in parts}


def model_names_in(tree: ast.Module) -> list[str]:
    return [
        f"{line}: {word!r}" for line, word in words_in_code(tree) if split(word) & set(MODEL_NAMES)
    ]


def test_there_are_sources_to_judge():
    assert {relative(p).split("/")[0] for p in SOURCES} == set(PACKAGES)
    assert len(SOURCES) > 30


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [("compressor", ("export", "vtcompress")), ("export", ("vtcompress",))],
)
def test_the_lower_package_never_imports_the_upper(package, forbidden):
    found = [
        f"{relative(path)} imports {name}"
        for path in SOURCES
        if relative(path).startswith(f"{package}/")
        for name in imported(parsed(path))
        if name.split(".")[0] in forbidden
    ]
    assert found == []


def test_only_the_front_door_and_nothing_below_tests_is_imported():
    found = [
        f"{relative(path)} imports {name}"
        for path in SOURCES
        for name in imported(parsed(path))
        if name.split(".")[0] in ("tests", "examples", "benchmarks")
    ]
    assert found == []


def loaded_after(code: str) -> set[str]:
    """Run code in a new Python; return the top-level packages that it has loaded at the end."""
    program = (
        f"import sys\n{code}\nprint('LOADED', *sorted({{m.split('.')[0] for m in sys.modules}}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("LOADED ")
    return set(last.split()[1:])


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["export", "--help"], ["recipes"]]
)
def test_help_loads_nothing_heavy(arguments):
    code = (
        "import vtcompress.cli.main\n"
        "try:\n"
        f"    vtcompress.cli.main.main({arguments!r})\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
    )
    loaded = loaded_after(code)
    assert "click" in loaded
    assert loaded.isdisjoint(HEAVY), sorted(loaded & set(HEAVY))


def test_the_light_modules_would_be_seen_to_load_something_heavy():
    assert "torch" in loaded_after("sys.modules['torch'] = sys")
    assert "json" in loaded_after("import json")


def test_only_the_targets_may_import_tensorrt():
    allowed = {"export/backends/tensorrt/targets.py"}
    found = [
        f"{relative(path)}: {name!r}"
        for path in SOURCES
        if relative(path) not in allowed
        for name in imported(parsed(path))
        if re.match(r"tensorrt(_rtx)?(\.|$)", name)
    ]
    assert found == []


def test_no_module_outside_the_families_knows_a_models_name():
    found = [
        f"{relative(path)}:{place}"
        for path in SOURCES
        # An operator of ONNX is called Clip; clients ask for types of models by their names.
        if not relative(path).startswith(
            ("compressor/families/", "export/clients/", "export/graphs/operators.py")
        )
        for place in model_names_in(parsed(path))
    ]
    assert found == []


def test_the_families_do_know_models_names():
    assert model_names_in(parsed(ROOT / "compressor/families/llava/family.py"))


@pytest.mark.parametrize(
    "code",
    [
        "x = 'llava'",
        "from transformers import LlavaConfig",
        "def is_qwen2_vl(): pass",
        "y = config.model_type == 'clip_vision_model'",
        "CLIPImageProcessor = 1",
        "f(siglip=1)",
        "x = f'a {y} Mistral model'",
        "import transformers.models.llama",
    ],
)
def test_a_models_name_is_seen_wherever_it_stands_in_code(code):
    assert model_names_in(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "'''About llava.'''",
        "x = np.clip(1, 2, 3)",
        "def f():\n  '''clip'''",
        "eclipse = 1",
        "# llava",
    ],
)
def test_a_models_name_is_not_seen_where_it_is_allowed(code):
    assert not model_names_in(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "import export",
        "from export.graphs.spec import x",
        "def f():\n  import export.checks.bench as b",
        "import_module('export')",
        "importlib.import_module('export.session.session')",
    ],
)
def test_an_import_is_seen_wherever_it_stands_in_code(code):
    assert any(name.split(".")[0] == "export" for name in imported(ast.parse(code)))
