"""How much a chat template may do: it is a program, and a stranger's may never end or fill the memory.

A limit of time alone would not do: one multiplication of a text runs to its end. So work is counted: each
operator, call, filter and turn of a loop pays for what it makes, and each text that is written; what would
be too long is not made at all. The same template on the same conversation always does the same work, on any
machine.
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeAlias, cast

import jinja2
import jinja2.exceptions
import jinja2.nodes
import jinja2.sandbox
import jinja2.utils

MOST_WORK = 1_000_000
"""Turns of loops, calls, items, and texts by `CHARACTERS`; 300 turns of a conversation take some ten
thousand."""
CHARACTERS = 16
MOST_LONG = 4 << 20
"""Characters of a text, or items of a list."""
MOST_NUMBER = 1_000_000
"""Of a number that says how wide, how often or how many."""
MOST_BITS = 4096
"""Of a whole number that is computed."""

LEFT_OUT: Final = ("pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr")
"""Filters that no prompt needs: they make pages, draw at random, or take time by the square of a text."""
REFUSED_METHODS: Final = ("striptags", "unescape")
# Filters that look at no more than a list's own items.
_SHALLOW = frozenset((
    "attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list", "map", "reject",
    "rejectattr", "reverse", "select", "selectattr", "slice",
))  # fmt: skip
_COMPARING = frozenset((
    "==", "!=", "<", "<=", ">", ">=", "eq", "equalto", "ne", "lt", "lessthan", "le", "gt", "greaterthan",
    "ge",
    "in",
))  # fmt: skip
_WIDE = frozenset(("batch", "center", "indent", "slice", "tojson"))
_LOOPS = (jinja2.nodes.For, jinja2.nodes.Macro, jinja2.nodes.CallBlock, jinja2.nodes.Block)

Filter: TypeAlias = Callable[..., Any]

_left: ContextVar[list[int] | None] = ContextVar("work that is left", default=None)


class TooMuchWorkError(jinja2.exceptions.SecurityError):
    """A template asked for more than it may."""


@contextmanager
def limited_work() -> Iterator[None]:
    """Let templates inside do `MOST_WORK` and no more; beyond, `TooMuchWorkError` is raised."""
    token = _left.set([MOST_WORK])
    try:
        yield
    finally:
        _left.reset(token)


def spend(work: int) -> None:
    """Take from the work that is left."""
    left = _left.get()
    if left is None:  # outside of `limited_work` nothing may run
        raise TooMuchWorkError("runs where its work is not counted")
    left[0] -= work
    if left[0] < 0:
        raise TooMuchWorkError(f"takes more work than any prompt ({MOST_WORK:,} steps)")


def metered(tree: jinja2.nodes.Template) -> jinja2.nodes.Template:
    """Return a template's tree with each turn of a loop, call of a macro and text that it writes counted."""
    for node in list(_all_nodes(tree)):
        if isinstance(node, _LOOPS):
            size = sum(1 for part in node.body for _ in _all_nodes(part))
            first = _filtered(jinja2.nodes.Const("", lineno=node.lineno), "_costs", size)
            node.body.insert(0, jinja2.nodes.Output([first], lineno=node.lineno))
        if isinstance(node, jinja2.nodes.For):
            if node.test is not None:
                node.test = _filtered(node.test, "_costs", sum(1 for _ in _all_nodes(node.test)))
            node.iter = _filtered(node.iter, "_turns")
        elif isinstance(node, jinja2.nodes.Output):
            node.nodes = [_filtered(_text(part), "_written") for part in node.nodes]
        elif isinstance(node, jinja2.nodes.Concat):
            node.nodes = [_filtered(part, "_written") for part in node.nodes]
        elif isinstance(node, jinja2.nodes.Compare):
            node.expr = _filtered(node.expr, "_compared")
            for operand in node.ops:
                operand.expr = _filtered(operand.expr, "_compared")
    return tree


def _all_nodes(node: jinja2.nodes.Node) -> Iterator[jinja2.nodes.Node]:
    waiting = [node]
    while waiting:
        one = waiting.pop()
        yield one
        waiting += one.iter_child_nodes()


def _text(part: jinja2.nodes.Expr) -> jinja2.nodes.Expr:
    if not isinstance(part, jinja2.nodes.TemplateData):
        return part
    plain = jinja2.nodes.Const(part.data)
    plain.set_environment(part.environment)  # type: ignore[arg-type]
    plain.set_lineno(part.lineno)
    return plain


def _filtered(node: jinja2.nodes.Node, name: str, *values: int) -> jinja2.nodes.Filter:
    arguments: list[jinja2.nodes.Expr] = [jinja2.nodes.Const(value) for value in values]
    value = cast("jinja2.nodes.Expr", node)
    found = jinja2.nodes.Filter(value, name, arguments, [], None, None)
    found.set_environment(node.environment)  # type: ignore[arg-type] # the tree gets one
    found.set_lineno(node.lineno)
    return found


@jinja2.pass_context  # else it would be run once, when the template is compiled
def _costs(_: object, value: Any, size: int) -> Any:
    spend(size)
    return value


@jinja2.pass_context
def _turns(_: object, values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        spend(1)
        yield value


@jinja2.pass_context
def _written(_: object, value: Any) -> Any:
    _check_long(_spend_whole(value))
    return value


@jinja2.pass_context
def _compared(_: object, value: Any) -> Any:
    _spend_whole(value)
    return value


class CountingSandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """jinja2's sandbox that counts the work of what is compiled in it; see `metered`, `limited_work`."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in LEFT_OUT:
            self.filters.pop(name, None)
        self.globals.pop("lipsum", None)
        self.filters = {
            name: _paid_filter(name, cast("Filter", made)) for name, made in self.filters.items()
        }
        self.tests = {
            name: _paid_filter(name, cast("Filter", made)) if name in _COMPARING else made
            for name, made in self.tests.items()
        }
        own = {"_costs": _costs, "_turns": _turns, "_written": _written, "_compared": _compared}
        self.filters.update(own)

    def add_filter(self, name: str, made: Filter) -> None:
        """Add a filter whose work is counted as that of jinja2's own."""
        self.filters[name] = _paid_filter(name, made)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Return what an operator makes, once it is known to be small enough."""
        if operator == "%" and isinstance(left, str):
            _check_format(left, right if isinstance(right, tuple) else (right,))
        elif operator == "**" and _is_whole(left, right):
            _check_bits(left.bit_length() * max(right, 1))
        elif operator == "*" and _is_whole(left, right):
            _check_bits(left.bit_length() + right.bit_length())
        elif operator == "*":
            many, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(times, int) and hasattr(many, "__len__"):
                _check_long(len(many) * times)
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _check_long(len(left) + len(right))
        return _paid(super().call_binop(context, operator, left, right))

    def call(*arguments: Any, **named: Any) -> Any:
        """Call what a template calls; as of the base class, whose first three arguments have no names."""
        self, context, called, *given = arguments
        spend(1 + sum(_cost(one) for one in (*given, *named.values())))
        _check_numbers((*given, *named.values()))
        method = getattr(called, "__wrapped__", called)  # the sandbox wraps str.format
        if isinstance(text := getattr(method, "__self__", None), str | bytes):
            _check_method(text, getattr(method, "__name__", ""), given, named)
        base = jinja2.sandbox.ImmutableSandboxedEnvironment.call
        return _paid(base(self, context, called, *given, **named))


def _paid_filter(name: str, made: Filter) -> Filter:
    """Return a filter that pays for what it is given and what it makes."""
    skipped = int(hasattr(made, "jinja_pass_arg"))

    @functools.wraps(made)  # with what jinja2 notes on it
    def paid(*given: Any, **named: Any) -> Any:
        leading, (value, *others) = given[:skipped], given[skipped:]
        if name == "join" and not hasattr(value, "__len__"):
            value = list(value)
        spend(1 + _cost(value))
        whole = 0 if name in _SHALLOW else _spend_whole(value)
        options = (*others, *named.values())
        for one in options:
            _spend_whole(one)
        _check_numbers(options)
        if name in _WIDE:
            lines = value.count("\n") + 1 if isinstance(value, str) else 1 + whole
            _check_long(lines * max((one for one in options if _is_whole(one)), default=0))
        elif name == "join":
            between = max((len(one) for one in options if isinstance(one, str)), default=0)
            _check_long(whole + between * len(value))
        elif name == "format" and isinstance(value, str):
            _check_format(value, options)
        elif name == "replace" and len(others) > 1:
            _check_method(str(value), name, others, {})
        return _paid(made(*leading, value, *others, **named))

    return paid


def _check_method(text: Any, name: str, given: Sequence[Any], named: dict[str, Any]) -> None:
    """Refuse a call of a text's own method that would make one beyond `MOST_LONG`."""
    options = (*given, *named.values())
    if name in REFUSED_METHODS:
        raise TooMuchWorkError(f"calls {name}, which no prompt needs")
    texts = [one for one in options if isinstance(one, str | bytes)]
    if name == "replace" and len(texts) > 1:
        count = text.count(texts[0]) if texts[0] else len(text) + 1
        _check_long(len(text) + count * len(texts[1]))
    elif name == "join" and given:
        items = given[0] if hasattr(given[0], "__len__") else ()
        if items is not given[0]:
            raise TooMuchWorkError("joins what has no length; make a list of it first")
        _check_long(_spend_whole(items) + len(text) * len(items))
    elif name == "expandtabs":
        _check_long(
            len(text) + text.count("\t") * max((n for n in options if _is_whole(n)), default=8)
        )
    elif name == "translate" and given and isinstance(given[0], dict):
        widest = max((len(one) for one in given[0].values() if isinstance(one, str)), default=1)
        _check_long(len(text) * max(1, widest))
    elif name in ("format", "format_map"):
        _check_format(text, options)


def _check_format(text: str, values: Sequence[Any]) -> None:
    """Refuse a format whose widths, written in it or given, make a text beyond `MOST_LONG`."""
    whole = sum(_spend_whole(value) for value in values)
    widths = [int(digits[:9]) for digits in re.findall(r"\d+", text)]
    given = (
        [abs(one) for value in values for one in _numbers(value)]
        if "*" in text or "{" in text
        else []
    )
    places = text.count("%") + text.count("{")
    _check_long(len(text) + places * (whole + max([*widths, *given], default=0)))


def _numbers(value: Any) -> Iterator[int]:
    if _is_whole(value):
        yield value
    elif isinstance(value, list | tuple | dict):
        inner = value.values() if isinstance(value, dict) else value
        yield from (one for one in inner if _is_whole(one))


def _is_whole(*values: Any) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


def _check_numbers(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MOST_NUMBER:
            raise TooMuchWorkError(f"calls something with a number above {MOST_NUMBER:,}")


def _check_bits(bits: int) -> None:
    if bits > MOST_BITS:
        raise TooMuchWorkError(f"computes a number of more than {MOST_BITS:,} bits")


def _check_long(length: int) -> None:
    if length > MOST_LONG:
        raise TooMuchWorkError(f"makes a text or list longer than {MOST_LONG:,}")


def _paid(value: Any) -> Any:
    spend(_cost(value))
    if hasattr(value, "__len__") and not isinstance(value, range):
        _check_long(len(value))
    return value


def _cost(value: Any) -> int:
    """Return the work that a value takes, without what is inside its items."""
    if isinstance(value, str | bytes):
        return len(value) // CHARACTERS
    return len(value) if isinstance(value, list | tuple | dict | set | range) else 0


def _spend_whole(value: Any) -> int:
    """Pay for a value with all that is inside it, and return how long it is when it is written.

    What holds the same list twice, and that another one twice, is paid for as it would be written.
    """
    waiting, length = [value], 0
    while waiting:
        one = waiting.pop()
        if isinstance(one, jinja2.utils.Namespace):
            one = one._Namespace__attrs  # noqa: SLF001 - its `repr` shows them
        if isinstance(one, str | bytes):
            spend(len(one) // CHARACTERS)
            length += len(one)
        elif isinstance(one, dict):
            spend(1 + len(one))
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            spend(1 + len(one))
            waiting += one
        else:
            spend(1)
        length += 4
    return length
