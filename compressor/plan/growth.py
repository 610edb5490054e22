"""More visual rows than there were, as data: n of every tile become m at the input of a layer."""

from pydantic import model_validator

from compressor.facts import Facts, ModelFacts, Positive


class Growth(Facts):
    """n visual rows of every tile become m, each between two neighbours of the n; see `interpolation`.

    All rows of a call stand at new positions from there on, counted from the call's first place. Rows of
    later calls, generated ones among them, stand where they would if nothing had grown.

    Attributes:
        count: m.
        of: n, visual rows of one tile in front of the layer.
        by: name of the method.
    """

    count: Positive
    of: Positive
    by: str

    @model_validator(mode="after")
    def _more(self) -> "Growth":
        if self.count <= self.of:
            raise ValueError(
                f"{self.by}: {self.of} visual rows of a tile do not grow to {self.count}; give more"
            )
        return self

    def rows(self, visual: int) -> int:
        """Return how many so many visual rows, of whole tiles, become."""
        return visual // self.of * self.count


def why_not_grown(facts: ModelFacts, layer: int) -> str | None:
    """Return why visual rows of a model cannot grow at the input of a layer; None: they can.

    Rows are resized tile by tile, and all of them get new positions.
    """
    if facts.arrangement is not None or facts.sizes_differ:
        return (
            f"pictures of {facts.family} have different numbers of visual tokens, not so many a tile: one "
            "graph makes the same number of the same number"
        )
    if facts.decoder.rope_axes is not None:
        return (
            f"{facts.family} turns rows by a time, a row and a column: tokens between two others have no "
            "such place in a picture"
        )
    if facts.decoder.deepstack > layer:
        return (
            f"behind layer {layer} {facts.family} adds further rows of its vision tower to visual tokens, "
            "one for each that entered"
        )
    return None
