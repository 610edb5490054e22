"""Decomposes a traced program for the ONNX exporter node by node, instead of tracing all of it once more.

Between tracing and translation torch's exporter calls `ExportedProgram.run_decompositions`, which traces the
program anew through functionalization and proxies. For decoders that took 60% of an export, and changed a
few nodes of a layer: `unflatten` became `view`. Here only the nodes that must change are run again, on the
fake tensors that the first trace left, and what they call takes their place. All others stay as they are.

*Limitations.* A program goes torch's way (`decomposed` gives None) if it writes into tensors, has graphs
inside graphs, asks for sizes of tensors that are no inputs, or has a size that no node of it tells.
"""

import contextlib
import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from export.writer.shortcuts import replaced

Table = Mapping[Any, Callable[..., Any]]
"""What stands for an operator, for each that the exporter has no translation of."""

SIZE = torch.ops.aten.sym_size.int
# What torch makes of operators that no kernel of theirs tells: the same number, the same tensor.
RENAMED = {torch.ops.aten.item.default: torch.ops.aten._local_scalar_dense.default}  # noqa: SLF001
SAME = (torch.ops.aten.detach_.default,)


class _WholeError(Exception):
    """A program needs torch's own way."""


@contextlib.contextmanager
def node_by_node() -> Iterator[None]:
    """Let programs be decomposed node by node meanwhile, where they can be."""
    whole = ExportedProgram.run_decompositions

    def run(program: ExportedProgram, table: Any = None, *given: Any, **options: Any) -> Any:
        made = None if table is None or given or options else decomposed(program, table)
        return whole(program, table, *given, **options) if made is None else made

    with replaced(ExportedProgram, "run_decompositions", run):
        yield


def decomposed(program: ExportedProgram, table: Table) -> ExportedProgram | None:
    """Return the program with all nodes decomposed that must be, or None if torch has to trace it anew.

    Args:
        program: as `torch.export.export` gives it; what is returned shares its graph module.
        table: what stands for operators.
    """
    try:
        made = _Rewriting(program, table)
    except (_WholeError, RuntimeError, AttributeError, KeyError, TypeError):
        # Of a size that depends on data torch raises a RuntimeError; the last three another torch may bring.
        return None
    program.graph_module.graph = made.graph
    for spec, name in made.outputs:
        spec.arg.name = name
    return program


class _Rewriting:
    """Copies a program's graph.

    Attributes:
        graph: the copy.
        outputs: what the program's signature says of each output, and the output's name in the copy.
    """

    def __init__(self, program: ExportedProgram, table: Table) -> None:
        self.table = table
        self.graph = fx.Graph(program.graph_module)
        self.copies: dict[fx.Node, Any] = {}
        self.sizes: dict[Any, fx.Node] = {}  # by sympy's expression
        nodes = [*program.graph.nodes]
        inputs = [node for node in nodes if node.op == "placeholder"]
        for node in inputs:
            self.copies[node] = self.graph.node_copy(node)
        self._name_sizes(inputs)
        if any(_writes(node.target) and node.target not in SAME for node in nodes):
            raise _WholeError
        read = _read(nodes)
        for node in nodes:
            if node.op != "placeholder" and node in read:
                self.copies[node] = self._copied(node)
        self.graph.eliminate_dead_code()
        names = {old.name: new.name for old, new in self.copies.items()}
        self.outputs = [
            (spec, names[spec.arg.name])
            for spec in program.graph_signature.output_specs
            if spec.arg.name in names
        ]

    def _name_sizes(self, inputs: list[fx.Node]) -> None:
        """Read each size from the input after which torch calls it, of several the last one."""
        for node in inputs:
            value = node.meta.get("val")
            sizes: Any = value.shape if isinstance(value, Tensor) else ()
            for axis, size in enumerate(sizes):
                if isinstance(size, torch.SymInt) and _tells(size.node):
                    given = (self.copies[node], axis)
                    self.sizes[size.node.expr] = self._call(SIZE, given, {}, size)

    def _copied(self, node: fx.Node) -> fx.Node:
        value = node.meta.get("val")
        if node.target in SAME:
            copy: fx.Node = self.copies[node.all_input_nodes[0]]
            return copy
        if node.target in RENAMED:
            made = self.graph.node_copy(node, self.copies.__getitem__)
            made.target = RENAMED[node.target]
            if isinstance(value, torch.SymInt):
                self.sizes[value.node.expr] = made
            return made
        if isinstance(value, torch.SymInt):
            return self._size_copied(node, value.node.expr)
        if node.op == "get_attr" or isinstance(node.target, torch._ops.HigherOrderOperator):  # noqa: SLF001
            raise _WholeError
        if not isinstance(node.target, torch._ops.OpOverload) or _stays(node.target, self.table):  # noqa: SLF001
            return self.graph.node_copy(node, self.copies.__getitem__)
        # Run anew, it would give a size another name than the one that later nodes have for it.
        if "unbacked_bindings" in node.meta or any(
            "val" not in n.meta for n in node.all_input_nodes
        ):
            raise _WholeError
        given = {id(n.meta["val"]): self.copies[n] for n in node.all_input_nodes}
        make = functools.partial(self._call, source=node)
        recorder = _Recorder(self.table, given, make, self.size)
        args, options = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        with recorder:
            result = node.target(*args, **options)
        if not isinstance(result, Tensor):
            raise _WholeError
        made_last: fx.Node = recorder.node_of(result)
        return made_last

    def _size_copied(self, node: fx.Node, size: Any) -> fx.Node:
        """Return the node of a size that is known, or a copy of the one that computes it."""
        if size not in self.sizes:
            self.sizes[size] = made = self.graph.node_copy(node, self.copies.__getitem__)
            if node.target is not SIZE:
                made.meta |= {"nn_module_stack": {}}  # it belongs to no module
        return self.sizes[size]

    def _call(
        self, target: Any, args: Any, options: Any, value: Any, source: fx.Node | None = None
    ) -> fx.Node:
        """Return a new node, which belongs to the module that one of the program does; None: to none."""
        made = self.graph.call_function(target, args, options)
        meta = {"nn_module_stack": {}} if source is None else source.meta
        made.meta = {key: told for key, told in meta.items() if key != "tensor_meta"} | {
            "val": value
        }
        return made

    def size(self, size: torch.SymInt) -> Any:
        """Return the node that tells a size."""
        return self._told(size.node.expr)

    def _told(self, size: Any) -> Any:
        if size in self.sizes:
            return self.sizes[size]
        if size.is_Integer:
            return int(size)
        if size.is_Symbol:
            return self._divided(size)
        if not (size.is_Add or size.is_Mul):
            raise _WholeError
        function = operator.add if size.is_Add else operator.mul
        # Of a sum that is known but for one term only that is added: torch counts on from it, too.
        split = [(size - p, p) for p in size.args if size.is_Add and size - p in self.sizes]
        made, *parts = [self._told(part) for part in (split[0] if split else size.args)]
        for part in parts:
            values = [p.meta["val"] if isinstance(p, fx.Node) else p for p in (made, part)]
            made = self._call(function, (made, part), {}, function(*values))
        self.sizes[size] = made
        return made

    def _divided(self, size: Any) -> fx.Node:
        """Return the node of a size of which an input has a multiple."""
        for known, node in self.sizes.items():
            if (times := known / size).is_Integer:
                value = node.meta["val"] // int(times)
                made = self._call(operator.floordiv, (node, int(times)), {}, value)
                self.sizes[size] = made
                return made
        raise _WholeError


class _Recorder(TorchDispatchMode):
    """Makes a node of each operator that is called.

    Args:
        table: what stands for operators.
        given: nodes by the id of their value.
        make: makes a node of target, arguments, options and value.
        size: returns the node that tells a size.
    """

    def __init__(
        self,
        table: Table,
        given: dict[int, fx.Node],
        make: Callable[..., fx.Node],
        size: Callable[[torch.SymInt], Any],
    ) -> None:
        super().__init__()
        self.table, self.nodes, self.make, self.size = table, given, make, size
        self.alive: list[Any] = []  # so that no id is given twice

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        if func in self.table:
            with self:
                return self.table[func](*args, **options)
        if not _stays(func, self.table):
            with self:
                result = func.decompose(*args, **options)
            if result is not NotImplemented:
                return result
        result = func(*args, **options)
        if isinstance(result, Tensor):
            self.alive.append(result)
            nodes = pytree.tree_map(self.node_of, (args, options))
            self.nodes[id(result)] = self.make(func, *nodes, result)
        return result

    def node_of(self, value: Any) -> Any:
        """Return the node of a value, or the value itself."""
        if isinstance(value, torch.SymInt):
            return self.size(value)
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self.nodes:
            raise _WholeError
        return self.nodes[id(value)]


def _read(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the nodes that something beside checks reads, and what is given back."""
    read: set[fx.Node] = set()
    for node in reversed(nodes):
        if node.op == "output" or any(user in read for user in node.users):
            read.add(node)
    return read


def _tells(size: Any) -> bool:
    """Return whether torch reads an input's size there: not where it found it to be another's."""
    return bool(size._expr == size.expr or not size.expr.is_Symbol)  # noqa: SLF001 - as it was traced


def _writes(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable  # noqa: SLF001


def _stays(target: Any, table: Table) -> bool:
    """Return whether an operator is one for the exporter to translate.

    Of those that torch itself makes of others it leaves together what makes new tensors.

    Raises:
        _WholeError: it writes into its arguments.
    """
    if _writes(target):
        raise _WholeError
    if target in table:
        return False
    composite = torch._C.DispatchKey.CompositeImplicitAutograd  # noqa: SLF001
    views = any(argument.alias_info for argument in target._schema.arguments)  # noqa: SLF001
    return not (views and target.has_kernel_for_dispatch_key(composite))
