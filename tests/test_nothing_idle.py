"""Names that nobody uses, and assertions that cannot fail: neither does anything."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import vtcompress

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("compressor", "export", "vtcompress")
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# Called by pip's console script; read by Python and by `ownership`; for tests of whole texts.
CALLED_FROM_OUTSIDE = {"main", "DISTRIBUTION", "__getattr__", "__dir__", "__all__"}
# Methods whose result is never None, as is that of these functions.
NEVER_NONE = {
    "join", "split", "splitlines", "strip", "replace", "format", "encode", "decode", "lower", "upper",
    "read_text", "read_bytes", "tolist", "items", "keys", "values", "count", "startswith", "endswith",
    "sorted", "list", "tuple", "set", "dict", "len", "str", "int", "float", "bool", "sum",
}  # fmt: skip
NEVER_NEGATIVE = {"len", "int", "count", "abs"}


def defined(tree: ast.Module) -> Iterator[str]:
    """Yield what a module defines at its top, but for what a decorator hands on."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.decorator_list:
            yield node.name
        elif isinstance(node, ast.Assign):
            targets = [name for target in node.targets for name in ast.walk(target)]
            yield from (name.id for name in targets if isinstance(name, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def idle(texts: dict[str, str], used_elsewhere: set[str]) -> list[str]:
    """Return `file: name` of names at the top of modules that stand nowhere else."""
    words: Counter[str] = Counter()
    for text in texts.values():
        words.update(re.findall(r"\w+", text))
    return [
        f"{file}: {name}"
        for file, text in texts.items()
        for name in defined(ast.parse(text))
        if words[name] < 2 and name not in used_elsewhere
    ]


def test_every_name_at_the_top_of_a_module_is_used() -> None:
    texts = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in SOURCES}
    assert len(texts) > 100
    assert idle(texts, CALLED_FROM_OUTSIDE | set(vtcompress.__all__)) == []


def test_an_idle_name_would_be_seen() -> None:
    texts = {"a.py": "A = 1\nB: int = 2\nclass C: ...\ndef d(): ...\n", "b.py": "x = A\ny = x"}
    assert idle(texts, set()) == ["a.py: B", "a.py: C", "a.py: d", "b.py: y"]


def called(node: ast.expr) -> str | None:
    if not isinstance(node, ast.Call):
        return None
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)


def cannot_fail(node: ast.expr) -> bool:
    """Whether a condition holds whatever the code under test does."""
    if isinstance(node, ast.Constant):
        return bool(node.value)
    if isinstance(node, ast.Tuple | ast.Lambda | ast.GeneratorExp):
        return not isinstance(node, ast.Tuple) or bool(node.elts)
    if isinstance(node, ast.BoolOp):
        judged = map(cannot_fail, node.values)
        return any(judged) if isinstance(node.op, ast.Or) else all(judged)
    if not isinstance(node, ast.Compare):
        return False
    left, operator, right = node.left, node.ops[0], node.comparators[0]
    if isinstance(operator, ast.IsNot) and isinstance(right, ast.Constant) and right.value is None:
        return called(left) in NEVER_NONE
    if isinstance(operator, ast.GtE) and isinstance(right, ast.Constant) and right.value == 0:
        return called(left) in NEVER_NEGATIVE
    if isinstance(operator, ast.In) and isinstance(left, ast.Constant) and left.value == "":
        return True
    same = isinstance(operator, ast.Eq | ast.Is | ast.LtE | ast.GtE)
    return same and isinstance(left, ast.Name | ast.Attribute) and ast.dump(left) == ast.dump(right)


def test_no_assertion_of_these_tests_is_one_that_cannot_fail() -> None:
    found = [
        f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert) and cannot_fail(node.test)
    ]
    assert len(TESTS) > 50
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        '"".join(parts) is not None', "True", '"a word"', "(x == 1, 'why')", "len(x) >= 0", "x.y == x.y",
        "int(digest, 16) >= 0", "found or True", '"" in text', "(line for line in lines)",
    ],
)  # fmt: skip
def test_an_assertion_that_cannot_fail_would_be_seen(text: str) -> None:
    assert cannot_fail(ast.parse(text, mode="eval").body)


@pytest.mark.parametrize(
    "text",
    ['"".join(parts) == "a"', "found is not None", "draw(1) == draw(1)", "x or y", "x >= 0", "len(x) >= 1"],
)  # fmt: skip
def test_an_assertion_that_can_fail_is_let_alone(text: str) -> None:
    assert not cannot_fail(ast.parse(text, mode="eval").body)
