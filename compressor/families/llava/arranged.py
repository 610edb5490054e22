"""What LLaVA-NeXT and LLaVA-OneVision share: the whole picture and tiles of it, whose rows are arranged.

Limitations: tiles as large as the tower's own pictures; pictures alone, no videos.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compressor.arrangement import Arrangement, Unpadded
from compressor.contract.choice import Front
from compressor.errors import ModelError
from compressor.facts import ModelFacts
from compressor.families.base import VisionEncoder
from compressor.families.llava.cell_states import CellStates
from compressor.families.llava.family import LlavaFamily
from compressor.families.model_class.tiled import TiledFamily
from compressor.families.pictures.processors import values_of
from compressor.families.pictures.steps import FitTiles
from compressor.families.told import IMAGE_FILE
from compressor.schema.sections import ImageSection

PINPOINTS = "image_grid_pinpoints"


class ArrangedRows(VisionEncoder):
    """The rows of all tiles and one learned row that ends lines, gathered in order."""

    def __init__(self, tiles: VisionEncoder, newline: nn.Parameter) -> None:
        super().__init__()
        self.tiles = tiles
        self.image_newline = newline

    def forward(
        self,
        pixel_values: Tensor,
        row_index: Tensor | None = None,
        row_weight: Tensor | None = None,
    ) -> Tensor:
        """Map pixels [I, 3, S, S] to visual embeddings [V, D].

        Args:
            pixel_values: of tiles.
            row_index: [V], or [V, K] with weights; see `Arrangement`. None: rows stay as they are, [I, N, D].
            row_weight: [V, K].
        """
        rows: Tensor = self.tiles(pixel_values)
        return rows if row_index is None else self._gathered(rows, row_index, row_weight)

    def front(self, pixel_values: Tensor) -> Front:
        """See `VisionEncoder.front`: rows of tiles, in front of any arrangement."""
        return self.tiles.front(pixel_values)

    def front_of_grid(self, pixel_values: Tensor, *arranged: Tensor) -> Front:
        """See `VisionEncoder.front_of_grid`; the tower is there where a row is one patch."""
        tiles = self.tiles.front(pixel_values)
        rows, tower = self._gathered(tiles.features, *arranged), None
        if tiles.tower is not None and len(arranged) == 1:
            tower = CellStates(tiles.tower, arranged[0][:-1], tiles.features.shape[1])
        return Front(rows[None], tower=tower)

    def _gathered(
        self, rows: Tensor, row_index: Tensor, row_weight: Tensor | None = None
    ) -> Tensor:
        """Return rows of tiles [I, N, D] as `forward` arranges them."""
        table = torch.cat([rows.flatten(0, 1), self.image_newline[None]])
        found = table[row_index]  # [V, D] or [V, K, D]
        if row_weight is None:
            return found
        return torch.matmul(row_weight[:, None], found).squeeze(1)


class ArrangedFamily(LlavaFamily, TiledFamily):
    """A family whose pictures are fitted into one of several grids of tiles, without what was padded."""

    no_grid = (
        "rows of a picture are put together from those of its tiles, without the padded border and with a "
        "row at the end of each line, so each picture has a grid of its own"
    )

    def shrunk_beyond(self, config: Any) -> int | None:
        """Return of how many tiles a grid may have the cells; None: of any number."""
        return None

    def vision_problems(self, config: Any, image_size: int | None, where: str) -> list[str]:
        """See `ModelClassFamily.vision_problems`."""
        if problems := super().vision_problems(config, None, where):
            return problems
        size, tokens, grid = super().visual_grid(config, None)
        problems = self.size_problems(image_size, size)
        if not _are_sizes(known := config.image_grid_pinpoints):
            problems.append(
                f"{where}: {PINPOINTS}: {known!r:.60} is not allowed; a list of pairs of height and width"
            )
        if grid is None:
            strategy = config.vision_feature_select_strategy
            problems.append(
                f"{where}: vision_feature_select_strategy: {strategy!r} gives {tokens} rows of a tile, which "
                "are no grid: all patches are needed, and nothing else"
            )
        return problems

    def visual_grid(
        self, config: Any, image_size: int | None
    ) -> tuple[int, int, tuple[int, int] | None]:
        """See `ModelClassFamily.visual_grid`; a tile has a grid, a picture none."""
        size, tokens, _ = super().visual_grid(config, None)
        return size, tokens, None

    def facts(self, config: Any, name: str, **options: Any) -> ModelFacts:
        """See `Family.facts`."""
        facts = super().facts(config, name, **options)
        rows = Unpadded(side=math.isqrt(facts.tile_rows), most_tiles=self.shrunk_beyond(config))
        return facts.model_copy(update={"arrangement": rows, "most_rows": rows.most_rows([])})

    def with_pictures(self, facts: ModelFacts, saved: Mapping[str, Any]) -> ModelFacts:
        """See `Family.with_pictures`."""
        facts = super().with_pictures(facts, saved)
        if not saved or facts.arrangement is None:
            return facts
        return facts.model_copy(
            update={"most_rows": facts.arrangement.most_rows(self._fitting(saved).grids)}
        )

    def within(self, budget: ImageSection, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Family.within`; what the processor has is a list of sizes in pixels."""
        if not saved:
            return {}
        step, most = self._fitting(saved), budget.max_tiles or 1
        kept = [
            list(size)
            for size, (rows, columns) in zip(step.sizes, step.grids, strict=True)
            if rows * columns <= most
        ]
        if not kept:
            least = min(rows * columns for rows, columns in step.grids)
            raise ModelError(
                [
                    f"image.max_tiles: {most} leaves none of the grids of tiles that the image processor "
                    f"of the model has; take {least} or more"
                ]
            )
        return {PINPOINTS: kept}

    def keep_budget(self, config: Any, processor: Any) -> None:
        """See `Family.keep_budget`; the model looks for the grid of a picture by itself."""
        config.image_grid_pinpoints = list(processor.image_processor.image_grid_pinpoints)

    def vision(self, config: Any, *, image_size: int, source: Any = None) -> VisionEncoder:
        """See `Family.vision`."""
        tiles = super().vision(config, image_size=image_size, source=source)
        newline = nn.Parameter(torch.empty(config.text_config.hidden_size))
        return ArrangedRows(tiles, newline if source is None else source.model.image_newline).eval()

    def complete_processor(self, processor: Any, config: Any, saved: Mapping[str, Any]) -> None:
        """See `Family.complete_processor`.

        Raises:
            ModelError: its grids of tiles are not the model's, which looks for a picture's by itself and
                takes the first of those that fit equally.
        """
        super().complete_processor(processor, config, saved)
        known, found = config.image_grid_pinpoints, processor.image_processor.image_grid_pinpoints
        if not _are_sizes(found) or list(map(tuple, found)) != list(map(tuple, known)):
            raise ModelError(
                [
                    f"{IMAGE_FILE}: {PINPOINTS}: {found!r:.80} are not those of config.json, {known!r:.80}, "
                    "in their order: correct one of them"
                ]
            )

    def arrangements(
        self, processor: Any, sizes: Sequence[tuple[int, int]], facts: ModelFacts
    ) -> tuple[Arrangement, ...] | None:
        """See `Family.arrangements`."""
        rows = facts.arrangement
        if rows is None:
            return None
        step = self._fitting(values_of(processor.image_processor))
        return tuple(rows.of_tiles(high, wide, step.grid(high, wide)) for high, wide in sizes)

    def tiles_made(self, encoded: Mapping[str, Any]) -> Any:
        """See `Family.tiles_made`; empty ones complete a batch of several pictures."""
        pixels = super().tiles_made(encoded)
        return None if pixels is None else pixels.reshape(-1, *pixels.shape[2:])

    def image_pixels(
        self, encoded: Mapping[str, Any], rows: Sequence[int], facts: ModelFacts
    ) -> tuple[Tensor, ...]:
        """See `Family.image_pixels`; those that complete a batch are cut off by `arrangements`."""
        pixels: Tensor | None = encoded.get("pixel_values")
        return () if pixels is None else tuple(pixels)

    def _fitting(self, saved: Mapping[str, Any]) -> FitTiles:
        """Return the step that cuts tiles, of what an image processor's file holds."""
        for step in self.picture_steps(saved, IMAGE_FILE):
            if isinstance(step, FitTiles):
                return step
        kind = saved.get("image_processor_type") or saved.get("feature_extractor_type")
        raise ModelError(
            [
                f"{IMAGE_FILE}: image_processor_type: {kind} cuts no tiles: put that of the model's own here"
            ]
        )


def _are_sizes(value: Any) -> bool:
    """Whether a value is a list of pairs of numbers from 1 on."""
    return isinstance(value, list | tuple) and all(
        isinstance(size, list | tuple)
        and len(size) == 2
        and all(type(side) is int and side >= 1 for side in size)
        for size in value
    )
