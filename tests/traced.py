"""Gives the tests torch's ONNX export of a module once a session, whichever worker asks first.

Most seconds of the suite went into `torch.onnx.export` of modules that another test had exported before:
the same tiny model, plan, weights and axes. The first export of a session is torch's own and is returned as
it is; what the same call gives later is read from a folder that all workers of the session share. All that
this project does to a graph behind that call is done again each time.

A call is the same if everything it depends on is equal: every attribute of the module and its submodules but
a decoder's plan, bytes of its tensors and which of them share memory, the sample call, all options, and the
numbers and texts that stand at the top of the traced code's files. A plan names the model, its digest and
why layers are as they are; it is taken away meanwhile, so code that reads it while traced fails. A call is
torch's own, and nothing is kept, if a part of it cannot be told, if weights are large, or if a test has put
code of its own in place of what is traced.
"""

import contextlib
import functools
import hashlib
import importlib
import inspect
import io
import json
import logging
import os
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir as ir
import torch
from filelock import FileLock

from compressor import decoder

MOST_BYTES = 64 << 20


class _CannotTellError(Exception):
    """Part of a call has no value that could be compared."""


class _Teller(pickle.Pickler):
    """Writes a value so that equal values give equal bytes: no reference to what was written before."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.fast = True
        self.storages: dict[int, int] = {}
        self.size = 0

    def persistent_id(self, value: Any) -> object:
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if type(value).__module__.startswith("torch.export"):  # an axis
            parts = (getattr(value, n, None) for n in ("__name__", "min", "max", "root"))
            factor = value.fn(1) if hasattr(value, "fn") else None
            return ("axis", type(value).__name__, *map(str, parts), str(factor))
        if isinstance(value, set | frozenset):  # of no order that two processes share
            return ("set", *sorted(map(repr, value)))
        return None

    def _tensor(self, value: torch.Tensor) -> object:
        self.size += value.nbytes
        if self.size > MOST_BYTES or value.device.type != "cpu":
            raise _CannotTellError
        number = self.storages.setdefault(value.untyped_storage().data_ptr(), len(self.storages))
        plain = value.detach().clone(memory_format=torch.contiguous_format).view(-1)
        content = hashlib.sha256(plain.view(torch.uint8).numpy().tobytes()).hexdigest()
        place = (value.storage_offset(), value.stride()) if value.numel() else ()
        return (type(value).__name__, str(value.dtype), tuple(value.shape), number, place, content)


def _surroundings(traced: torch.nn.Module) -> Iterator[tuple[str, str, str]]:
    """Yield the constants of the code that runs while a module is traced.

    Raises:
        _CannotTellError: a test has replaced part of that code.
    """
    names = {type(part).__module__ for part in traced.modules()}
    names = {name for name in names if name.split(".")[0] in ("compressor", "export", "tests")}
    names |= {f"{decoder.__name__}.{m.name}" for m in pkgutil.iter_modules(decoder.__path__)}
    for name in sorted(names):
        for key, value in sorted(vars(importlib.import_module(name)).items()):
            if isinstance(value, bool | int | float | str) and not key.startswith("__"):
                yield name, key, repr(value)
            members = vars(value).values() if inspect.isclass(value) else ()
            if any(_is_foreign(part) for part in (value, *members)):
                raise _CannotTellError


def _is_foreign(value: Any) -> bool:
    value = getattr(value, "fget", getattr(value, "__func__", value))
    home = str(getattr(value, "__module__", "") or type(value).__module__)
    return home.startswith(("tests.", "unittest.mock"))


@contextlib.contextmanager
def without_plans(module: torch.nn.Module) -> Iterator[None]:
    """Take the plans away from a module's decoders meanwhile: nothing that is traced may read them."""
    plans = [(part, part.__dict__.pop("plan")) for part in module.modules() if "plan" in vars(part)]
    try:
        yield
    finally:
        for part, plan in plans:
            part.plan = plan


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Keep torch's trace of its own work from pytest, for which each record is made with its stacks."""
    log = logging.getLogger("torch.__trace")  # nobody listens where no test runs
    handlers, log.handlers = log.handlers, []
    try:
        yield
    finally:
        log.handlers = handlers


def key_of(module: torch.nn.Module, *call: Any) -> str | None:
    """Return a name for all that a call depends on, or None if it cannot be told."""
    written = io.BytesIO()
    try:
        _Teller(written).dump((module, call, tuple(_surroundings(module))))
    except (_CannotTellError, pickle.PicklingError, AttributeError, TypeError, RecursionError):
        return None
    return hashlib.sha256(written.getvalue()).hexdigest()


def install(folder: Path) -> None:
    """Let `torch.onnx.export` remember in a folder from now on."""
    if not hasattr(torch.onnx.export, "__wrapped__"):
        torch.onnx.export = once(torch.onnx.export, folder)  # type: ignore[assignment]


@functools.cache
def read_torchlib_once() -> None:
    """Let the exporter keep its table of operators, for which it reads 0.5 s of source in every export."""
    from torch.onnx._internal.exporter import _registration

    registry: Any = _registration.ONNXRegistry
    # Only a custom table of translations would be written into it, and no export has one.
    registry.from_torchlib = staticmethod(functools.cache(registry.from_torchlib))


@functools.cache
def match_by_operator_first() -> None:
    """Let the exporter's rewriter try a pattern only on nodes of the operator that it ends in.

    It tries some fifty on every node, several times over: a sixth of an export. A matcher looks at the
    operator first, too, and gives up there; it only takes long to come so far.
    """
    from onnxscript.rewriter import _matcher, _rewrite_rule

    own = _rewrite_rule.Pattern.match

    @functools.cache
    def last_of(rule: Any) -> tuple[str, str] | None:
        matcher = rule._matcher
        if type(matcher) is not _matcher.SimplePatternMatcher:
            return None
        found = matcher.pattern.output_nodes[0].op_identifier()
        return None if found is None else found[:2]

    def match(rule: Any, model: Any, graph: Any, node: ir.Node, **options: Any) -> Any:
        last = last_of(rule)
        if last is not None and last != (node.domain, node.op_type):
            return None
        return own(rule, model, graph, node, **options)

    _rewrite_rule.Pattern.match = match  # type: ignore[method-assign]


def once(export: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Return `torch.onnx.export`, or what it gave for the same call earlier in this session."""
    folder.mkdir(parents=True, exist_ok=True)

    def exports(*call: Any, **options: Any) -> Any:
        read_torchlib_once()
        match_by_operator_first()
        return export(*call, **options)

    def exported(module: torch.nn.Module, args: tuple[Any, ...], **options: Any) -> Any:
        with without_plans(module), unrecorded():
            return remembered(module, args, options)

    def remembered(module: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        key = key_of(module, args, options, torch.is_inference_mode_enabled())
        if key is None:
            return exports(module, args, **options)
        path = folder / key
        with FileLock(f"{path}.lock"):  # two workers that want the same do not both make it
            if path.exists():
                return _read(path)
            program = exports(module, args, **options)
            _write(path, program)
            return program

    exported.__wrapped__ = export  # type: ignore[attr-defined]
    return exported


def _write(path: Path, program: torch.onnx.ONNXProgram) -> None:
    assert program.exported_program is not None
    nodes = [
        (node.name, str(node.target), node.args[0])
        for node in program.exported_program.graph.nodes
        if node.args and isinstance(node.args[0], int | float)
    ]
    graph = ir.to_proto(program.model).SerializeToString()
    half = path.with_suffix(f".{os.getpid()}")
    half.write_bytes(json.dumps(nodes).encode() + b"\n" + graph)
    half.rename(path)


def _read(path: Path) -> Any:
    """Return what this project reads of a program: its graph, and nodes that stand for numbers."""
    nodes, graph = path.read_bytes().split(b"\n", 1)
    model = ir.from_proto(onnx.ModelProto.FromString(graph))
    targets = {str(op): op for op in (torch.ops.aten.scalar_tensor.default,)}
    told = [
        SimpleNamespace(name=name, target=targets.get(target, target), args=(first,))
        for name, target, first in json.loads(nodes)
    ]
    program = SimpleNamespace(graph=SimpleNamespace(nodes=told))
    return SimpleNamespace(model=model, exported_program=program)
