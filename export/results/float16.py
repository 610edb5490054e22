"""How large the values of float16 graphs get, and which nodes stay in float32."""

from compressor.facts import Facts, Positive

FLOAT16_MAX = 65504.0


WIDE = FLOAT16_MAX / 2
"""Values above it are not left to float16: other prompts may give up to twice as much."""


class GraphRange(Facts):
    """How large the values of one float16 graph get.

    Attributes:
        largest: magnitude of the largest value that the graph would keep in float16.
        at: node that makes it.
        float32_nodes: nodes that stay in float32, in the graph's order.
    """

    largest: float
    at: str
    float32_nodes: tuple[str, ...] = ()


class Float16Ranges(Facts):
    """What running float16 graphs in float32 found.

    Attributes:
        prompts: how many prompts ran.
        source: where they are from, in words.
        graphs: by graph name, without those that only look values up.
    """

    prompts: Positive
    source: str
    graphs: dict[str, GraphRange]

    @property
    def float32_nodes(self) -> dict[str, tuple[str, ...]]:
        """Nodes in float32 of the graphs that have some."""
        return {name: g.float32_nodes for name, g in self.graphs.items() if g.float32_nodes}
