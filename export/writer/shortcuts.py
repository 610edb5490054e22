"""Lets torch's exporter leave out work whose result is known beforehand: the same graphs, sooner.

What is left out is torch's and onnxscript's own affair (torch 2.13.0, onnxscript 0.7.2): where another
version has none of it, it works in its own way.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def shortcuts() -> Iterator[None]:
    """Take all shortcuts meanwhile."""
    with contextlib.ExitStack() as taken:
        for shortcut in (
            _no_fake_cache,
            _no_strides,
            _types_of_the_trace,
            _one_registry,
            _matched_by_operator,
        ):
            taken.enter_context(shortcut())
        yield


def _no_fake_cache() -> contextlib.AbstractContextManager[Any]:
    """Compute each operator's shape anew.

    Where axes have names, torch's cache of shapes takes longer to ask than they take to compute: an export
    without it takes some 30% less.
    """
    from torch._dynamo import config

    option = "fake_tensor_cache_enabled"
    if not hasattr(config, option):
        return contextlib.nullcontext()
    patch: contextlib.AbstractContextManager[Any] = config.patch({option: False})
    return patch


def _no_strides() -> contextlib.AbstractContextManager[Any]:
    """Ask no tensor of the trace in which order it lies in memory, which is noted for readers alone."""
    from torch.fx.experimental import proxy_tensor

    return replaced(proxy_tensor, "_extract_tensor_metadata", lambda *_, **__: None)


def _types_of_the_trace() -> contextlib.AbstractContextManager[Any]:
    """Take from the trace what each node gives, in place of running all nodes again.

    The exporter does so to put casts where operands have different types. A node to which it adds one it runs
    by itself, whatever this does; all others say what they give. Sizes that are read from tensors, behind
    gates, get new names by that, and a graph holds them: there it all runs again.
    """
    from torch.onnx._internal.fx.passes import type_promotion

    runner: Any = getattr(type_promotion, "_TypePromotionInterpreter", None)
    if not hasattr(runner, "_maybe_promote_node"):
        return contextlib.nullcontext()
    own = runner.run_node

    def run_node(self: Any, node: Any) -> Any:
        if not hasattr(self, "reads_sizes"):
            self.reads_sizes = any("unbacked_bindings" in n.meta for n in self.module.graph.nodes)
        if node.op != "call_function" or "val" not in node.meta or self.reads_sizes:
            return own(self, node)
        with self._set_current_node(node):
            rule = type_promotion.get_type_promotion_rule(node, self.type_promotion_table)
            if rule is not None:
                self._maybe_promote_node(node, rule)
        return node.meta["val"]

    return replaced(runner, "run_node", run_node)


def _one_registry() -> contextlib.AbstractContextManager[Any]:
    """Collect the translations of all operators once, not for each graph: it takes half a second."""
    from torch.onnx._internal.exporter import _registration

    registry: Any = getattr(_registration, "ONNXRegistry", None)
    if not hasattr(registry, "from_torchlib"):
        return contextlib.nullcontext()
    return replaced(registry, "from_torchlib", staticmethod(_remembered(registry.from_torchlib)))


@functools.cache
def _remembered(make: Any) -> Any:
    return functools.cache(make)


def _matched_by_operator() -> contextlib.AbstractContextManager[Any]:
    """Try a pattern only on nodes of the operator that it ends in.

    A matcher looks at the operator as well and gives up there, but for patterns with two ends it goes through
    all nodes of the graph first: of a decoder with 32 layers that took four tenths of an export.
    """
    from onnxscript.rewriter import MatchResult, _matcher

    matcher: Any = getattr(_matcher, "SimplePatternMatcher", None)
    if not hasattr(matcher, "match"):
        return contextlib.nullcontext()
    own = matcher.match

    def match(self: Any, model: Any, graph: Any, node: Any, **options: Any) -> Any:
        last = self.pattern.output_nodes[0].op_identifier()
        if last is not None and last[:2] != (node.domain, node.op_type):
            return MatchResult().fail("another operator")
        return own(self, model, graph, node, **options)

    return replaced(matcher, "match", match)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Put a value in the place of an attribute meanwhile, if there is one of that name."""
    if name not in vars(owner):
        yield
        return
    own = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, own)
