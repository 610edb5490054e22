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

Weights may differ where a graph shows that they do not matter to it: each parameter that the traced code uses
stands in it as it is, or turned, and no other numbers do that could have been computed from weights. Then the
graph is kept without them, and has those of the module that is exported (`_weights_of`). Which parameters are
equal to each other, or hold one number throughout, stays part of the call: the exporter looks at that.
"""

import contextlib
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
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import onnx
import onnx_ir as ir
import torch
from filelock import FileLock

from compressor import decoder

MOST_BYTES = 64 << 20
HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")


class _CannotTellError(Exception):
    """Part of a call has no value that could be compared."""


class _Teller(pickle.Pickler):
    """Writes a value so that equal values give equal bytes: no reference to what was written before.

    Attributes:
        weights: digest of each parameter that was left out.
        numbers: digest of every other tensor.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.fast = True
        self.storages: dict[int, int] = {}
        self.contents: dict[str, int] = {}
        self.weights: list[str] = []
        self.numbers: set[str] = set()
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

    def reducer_override(self, value: Any) -> Any:
        """Tell a module without the numbers of its hooks, and a function inside another by what it holds.

        A model that ran once has such hooks, and their numbers count all that there were in this process.
        """
        if isinstance(value, torch.nn.Module):
            state = {
                name: [*part.values()] if name.endswith(HOOKS) else part
                for name, part in vars(value).items()
            }
            return (str, (type(value), state))
        if not isinstance(value, FunctionType) or "<locals>" not in value.__qualname__:
            return NotImplemented
        if _is_foreign(value):
            raise _CannotTellError
        held = tuple(cell.cell_contents for cell in value.__closure__ or ())
        return (str, (value.__module__, value.__qualname__, value.__defaults__, held))

    def _tensor(self, value: torch.Tensor) -> object:
        self.size += value.nbytes
        if self.size > MOST_BYTES or value.device.type != "cpu":
            raise _CannotTellError
        number = self.storages.setdefault(value.untyped_storage().data_ptr(), len(self.storages))
        content = digest_of(value)
        equal = self.contents.setdefault(content, len(self.contents))
        place = (value.storage_offset(), value.stride()) if value.numel() else ()
        told: object = content
        if (
            isinstance(value, torch.nn.Parameter)
            and value.numel() > 1
            and value.min() < value.max()
        ):
            self.weights.append(content)
            told = None
        else:
            self.numbers.add(content)
        return (
            type(value).__name__,
            str(value.dtype),
            tuple(value.shape),
            number,
            place,
            equal,
            told,
        )


def _bytes_of(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().clone(memory_format=torch.contiguous_format).view(-1)
    return plain.view(torch.uint8).numpy().tobytes()


def digest_of(tensor: torch.Tensor) -> str:
    """Return a name for a tensor's bytes, whatever its shape."""
    return hashlib.sha256(_bytes_of(tensor)).hexdigest()


def _surroundings(traced: torch.nn.Module) -> Iterator[tuple[str, str, str]]:
    """Yield the constants of the code that runs while a module is traced.

    Raises:
        _CannotTellError: a test has replaced part of that code.
    """
    names = {type(part).__module__ for part in traced.modules()}
    names = {name for name in names if name.split(".")[0] in ("compressor", "export", "tests")}
    names |= {m.name for m in pkgutil.walk_packages(decoder.__path__, f"{decoder.__name__}.")}
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


@dataclass(frozen=True)
class Call:
    """What a call depends on, as names.

    Attributes:
        form: of all but what its weights hold.
        weights: what they hold.
        numbers: digests of tensors that are part of the form.
    """

    form: str
    weights: str
    numbers: frozenset[str]


def call_of(module: torch.nn.Module, *call: Any) -> Call | None:
    """Return names for all that a call depends on, or None if it cannot be told."""
    written = io.BytesIO()
    teller = _Teller(written)
    try:
        teller.dump((module, call, tuple(_surroundings(module))))
    except (
        _CannotTellError,
        pickle.PicklingError,
        AttributeError,
        TypeError,
        ValueError,
        RecursionError,
    ):
        return None
    names = (written.getvalue(), repr(teller.weights).encode())
    return Call(*(hashlib.sha256(name).hexdigest() for name in names), frozenset(teller.numbers))


def install(folder: Path) -> None:
    """Let `torch.onnx.export` remember in a folder from now on."""
    if not hasattr(torch.onnx.export, "__wrapped__"):
        torch.onnx.export = once(torch.onnx.export, folder)  # type: ignore[assignment]


def once(export: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """Return `torch.onnx.export`, or what it gave for the same call earlier in this session."""
    folder.mkdir(parents=True, exist_ok=True)

    def exported(module: torch.nn.Module, args: tuple[Any, ...], **options: Any) -> Any:
        with without_plans(module), unrecorded():
            return remembered(module, args, options)

    def remembered(module: torch.nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        call = call_of(module, args, options, torch.is_inference_mode_enabled())
        if call is None:
            return export(module, args, **options)
        form, own = folder / call.form, folder / f"{call.form}-{call.weights}"
        with FileLock(f"{form}.lock"):  # two workers that want the same do not both make it
            for path in (form, own):
                if path.exists():
                    return _read(path, module)
            program = export(module, args, **options)
            weights = _weights_of(program, module, call.numbers)
            _write(own if weights is None else form, program, weights or {})
            return program

    exported.__wrapped__ = export  # type: ignore[attr-defined]
    return exported


def _weights_of(
    program: torch.onnx.ONNXProgram, module: torch.nn.Module, numbers: frozenset[str]
) -> dict[str, tuple[str, bool]] | None:
    """Return which parameter each initializer is, and whether turned; None: the graph may depend on weights.

    Args:
        program: what torch made of the module.
        module: whose parameters are meant.
        numbers: digests of other tensors that may stand in the graph.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    whole = {name: digest_of(weight) for name, weight in parameters.items()}
    turned = {name: digest_of(weight.T) for name, weight in parameters.items() if weight.ndim == 2}
    found: dict[str, tuple[str, bool]] = {}
    for name, value in program.model.graph.initializers.items():
        assert value.const_value is not None
        content = hashlib.sha256(value.const_value.tobytes()).hexdigest()
        if whole.get(name) == content:
            found[name] = (name, False)
            continue
        same = [(n, False) for n, digest in whole.items() if digest == content]
        same += [(n, True) for n, digest in turned.items() if digest == content]
        if len({(whole[n], turn) for n, turn in same}) > 1:
            return None
        if same:
            found[name] = same[0]
        elif _may_be_computed(value.const_value) and content not in numbers:
            return None
    for node in program.model.graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.FLOATS and len(attribute.as_floats()) > 1:
                return None
            if attribute.type == ir.AttributeType.TENSOR and _may_be_computed(
                attribute.as_tensor()
            ):
                return None
    stands = {whole[parameter] for parameter, _ in found.values()}
    missing = {name for name, digest in whole.items() if digest not in stands}
    return None if missing & _used(program, missing) else found


def _may_be_computed(tensor: ir.TensorProtocol) -> bool:
    return tensor.size > 1 and tensor.dtype.is_floating_point()


def _used(program: torch.onnx.ONNXProgram, parameters: set[str]) -> set[str]:
    """Return which parameters the traced code reads; all where that cannot be told."""
    signature = getattr(program.exported_program, "graph_signature", None)
    if signature is None:
        return parameters
    assert program.exported_program is not None
    idle = {node.name for node in program.exported_program.graph.nodes if not node.users}
    return parameters - {
        spec.target for spec in signature.input_specs if spec.arg.name in idle and spec.target
    }


def _write(
    path: Path, program: torch.onnx.ONNXProgram, weights: dict[str, tuple[str, bool]]
) -> None:
    assert program.exported_program is not None
    nodes = [
        (node.name, str(node.target), node.args[0])
        for node in program.exported_program.graph.nodes
        if node.args and isinstance(node.args[0], int | float)
    ]
    graph = ir.to_proto(program.model)
    for initializer in graph.graph.initializer:
        if initializer.name in weights:
            initializer.raw_data = b""
    half = path.with_suffix(f".{os.getpid()}")
    half.write_bytes(json.dumps([nodes, weights]).encode() + b"\n" + graph.SerializeToString())
    half.rename(path)


def _read(path: Path, module: torch.nn.Module) -> Any:
    """Return what this project reads of a program: its graph, and nodes that stand for numbers."""
    head, graph = path.read_bytes().split(b"\n", 1)
    nodes, weights = json.loads(head)
    read = onnx.ModelProto.FromString(graph)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for initializer in read.graph.initializer:
        if initializer.name in weights:
            name, turned = weights[initializer.name]
            weight = parameters[name]
            initializer.raw_data = _bytes_of(weight.T if turned else weight)
    model = ir.from_proto(read)
    targets = {str(op): op for op in (torch.ops.aten.scalar_tensor.default,)}
    told = [
        SimpleNamespace(name=name, target=targets.get(target, target), args=(first,))
        for name, target, first in nodes
    ]
    program = SimpleNamespace(graph=SimpleNamespace(nodes=told))
    return SimpleNamespace(model=model, exported_program=program)
