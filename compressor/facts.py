"""Facts about a decoder and its model as plain data; read by the planner, the decoder and the graphs.

Letters used everywhere: B batch, V visual rows of this call, T text rows of this call, P past (KV
length), N visual tokens of one tile of a picture, D hidden size, H query heads, H_kv key/value heads, d head
size.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from compressor.arrangement import Arrangement, Unpadded, cells_kept
from compressor.schema.sections import ImageSection

Positive = Annotated[int, Field(ge=1)]
Activation = Literal["silu", "gelu", "gelu_pytorch_tanh"]
SourceDType = Literal["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]


POSITION_AXES = 3
"""A of decoders that turn rows on several axes: a position is a time, a row and a column."""


class Facts(BaseModel):
    """Base of the immutable values that are stored as JSON; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class DecoderDims(Facts):
    """Shape of a Llama-like decoder: RMS norms, rotary positions, gated MLP, grouped queries.

    Attributes:
        qk_norm: each head's query and key pass an RMS norm over d in front of the rotation.
        rope_inv_freq: the d/2 inverse frequencies, scaled-rope rules already applied.
        rope_scale: factor on cos and sin (1 except for scaled-rope rules that ask for it).
        rope_axes: which part of a position turns each of the d/2 frequencies: 0 its time, 1 its row, 2 its
            column; None: a position is one number, which turns all.
        deepstack: K, of how many first layers the vision side has further rows, which are added to the visual
            rows behind each of them, whatever it does with these.
    """

    layers: Positive
    hidden: Positive
    heads: Positive
    kv_heads: Positive
    head_dim: Positive
    intermediate: Positive
    vocab: Positive
    rms_norm_eps: float
    activation: Activation = "silu"
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False
    rope_inv_freq: tuple[float, ...]
    rope_scale: float = 1.0
    rope_axes: tuple[Annotated[int, Field(ge=0, lt=POSITION_AXES)], ...] | None = None
    deepstack: Annotated[int, Field(ge=0)] = 0
    max_positions: Positive

    @model_validator(mode="after")
    def _every_frequency_has_an_axis(self) -> Self:
        if self.rope_axes is not None and len(self.rope_axes) != len(self.rope_inv_freq):
            raise ValueError("rope_axes and rope_inv_freq differ in length")
        return self

    @property
    def query_width(self) -> int:
        """H * d."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """H_kv * d."""
        return self.kv_heads * self.head_dim


class TowerWork(Facts):
    """What the work of a tower of plain transformer layers, and of the projector behind it, follows from.

    Attributes:
        patch: side of a patch in pixels.
        intermediate: width of its MLPs, which have two matrices.
        projector: widths in front of, between and behind the projector's matrices.
    """

    patch: Positive
    intermediate: Positive
    projector: Annotated[tuple[Positive, ...], Field(min_length=2)]


class TowerFacts(Facts):
    """What methods that read a vision tower must know of it, and what it costs.

    Attributes:
        patches: of it that become one visual token, a square block of them.
        class_token: it has a state more than patches, in front of them.
        layers: of the tower; 0: nothing can be read of them.
        layers_read: how many of them run in front of what the projector takes.
        width: C, of its states.
        work: what its FLOPs follow from; None: the family does not tell.
    """

    patches: Positive = 1
    class_token: bool
    layers: Annotated[int, Field(ge=0)] = 0
    layers_read: Annotated[int, Field(ge=0)] = 0
    width: Annotated[int, Field(ge=0)] = 0
    work: TowerWork | None = None

    @model_serializer(mode="wrap")
    def _without_work_that_is_not_told(
        self, handler: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        return {k: v for k, v in handler(self).items() if k != "work" or v is not None}


class ModelFacts(Facts):
    """What the tool must know of a multimodal model besides its decoder.

    Attributes:
        name: hub id or folder name, without a path.
        family: name of the model family that reads it.
        family_package: that registered the family; None: it is one of this tool's own.
        architecture: e.g. `LlavaForConditionalGeneration (clip_vision_model, llama)`.
        visual_tokens: N, the number that is stored for one tile; the code reads the fact that it means:
            `tile_rows`, `picture_rows` or `grid_cells`.
        most_tiles: tiles that one picture becomes at most, under the recipe's budget; 1: it is not cut.
        budget: the recipe's, for pictures, if it has one.
        image_size: side of the square input of the vision tower, in pixels.
        cell: side in pixels of the square that one visual token shows, where pictures have sizes of their
            own, multiples of it, or with a `token_grid` all one that need be no square; `image_size` is then
            that of a square picture of most tokens. None: all tiles are squares of `image_size`.
        arrangement: how rows of tiles become a picture's visual rows; None: they are.
        most_rows: of a picture at most, where they are arranged.
        image_token_id: token whose positions are the visual tokens.
        token_grid: rows and columns of one tile's visual tokens, in reading order; None: no grid.
        eos_token_ids: tokens that end an answer.
        dtype: of the source weights.
        tower: what its vision tower is like; None: the family does not tell.
        tile_places: how many places of the prompt a tile's rows take where a plan numbers those that it keeps
            anew; None: one for each image token.
    """

    name: str
    family: str
    family_package: str | None = None
    architecture: str
    decoder: DecoderDims
    visual_tokens: Positive
    most_tiles: Positive = 1
    budget: ImageSection | None = None
    image_size: Positive
    cell: Positive | None = None
    arrangement: Unpadded | None = None
    most_rows: Positive | None = None
    image_token_id: int
    token_grid: tuple[Positive, Positive] | None = None
    eos_token_ids: tuple[int, ...]
    dtype: SourceDType
    tower: TowerFacts | None = None
    tile_places: Positive | None = None

    @model_serializer(mode="wrap")
    def _without_what_is_not_told(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        later = ("tower", "tile_places")
        return {k: v for k, v in handler(self).items() if k not in later or v is not None}

    def places(self, tokens: int, image_tokens: int) -> int:
        """Return how many places so many tokens of a prompt take, of which some are image tokens."""
        return tokens - image_tokens // self.tile_rows * (self.tile_rows - self.places_of_tile)

    @property
    def places_of_tile(self) -> int:
        """Places of the prompt that the image tokens of one tile take."""
        return self.tile_rows if self.tile_places is None else self.tile_places

    @property
    def tile_rows(self) -> int:
        """Rows that the vision graph gives of one tile, and the decoder takes."""
        return self.visual_tokens

    @property
    def picture_rows(self) -> int:
        """Rows of one picture at most; its image tokens in a prompt are as many as its rows."""
        return self.most_rows or self.most_tiles * self.visual_tokens

    @property
    def sizes_differ(self) -> bool:
        """Whether each picture goes through the vision graph at a size of its own."""
        return self.cell is not None and self.token_grid is None

    @property
    def largest_picture(self) -> tuple[int, int]:
        """(H, W) in pixels of a tile that made-up calls use."""
        return self.picture_on(self.largest_grid)

    def picture_on(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Return (H, W) in pixels of a tile whose visual tokens are made up to lie on a grid."""
        if self.cell is None:
            return self.image_size, self.image_size
        return grid[0] * self.cell, grid[1] * self.cell

    @property
    def largest_grid(self) -> tuple[int, int]:
        """Rows and columns of a made-up picture's visual tokens: one tile's, or nearly a square of most."""
        if self.token_grid is not None:
            return self.token_grid
        side = math.isqrt(self.visual_tokens)
        return (1, self.visual_tokens) if self.cell is None else (side, self.visual_tokens // side)

    @property
    def oblong_grid(self) -> tuple[int, int] | None:
        """Rows and columns of a made-up picture of other proportions; None: pictures have one size."""
        side = math.isqrt(self.visual_tokens)
        rows = max(1, side // 2)
        grid = rows, min(self.visual_tokens // rows, 2 * side)  # as far as engines take them
        return grid if self.sizes_differ and grid != self.largest_grid else None

    @property
    def largest_rows(self) -> int:
        """Rows of a made-up picture: `picture_rows`, or those that are nearly a square."""
        if not self.sizes_differ:
            return self.picture_rows
        rows, columns = self.largest_grid
        return rows * columns

    @property
    def grids_differ(self) -> bool:
        """Whether the visual rows that a rule chooses among are of another number in each picture."""
        return self.sizes_differ or self.arrangement is not None

    @property
    def most_cells(self) -> int:
        """Rows that a rule chooses among at most: a tile's, or those of the grid that tiles make up."""
        return max(self.tile_rows, (self.most_rows or 0) - self.tile_rows)

    def rows_entering(self, kept: int) -> int:
        """Return how many rows of a made-up picture the decoder gets, if `kept` of a tile's N."""

        def among(rows: int) -> int:
            return cells_kept(rows, kept, self.tile_rows)

        made = self.made_up_rows(self.most_tiles, self.largest_rows)
        return among(self.largest_rows) if made is None else made.rows_kept(among)

    def made_up_rows(self, tiles: int, rows: int) -> Arrangement | None:
        """Return of which rows of tiles those of a made-up picture are; None: they are not arranged."""
        return None if self.arrangement is None else self.arrangement.made_up(tiles, rows)

    @property
    def grid_cells(self) -> int:
        """Cells of the grid that one tile's rows are laid out on; 1 without a grid."""
        rows, columns = self.token_grid or (1, 1)
        return rows * columns
