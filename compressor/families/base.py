"""What a model family must tell; the contract between `families/` and everything else."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compressor.arrangement import Arrangement
from compressor.contract.choice import Front
from compressor.errors import ModelError
from compressor.facts import ModelFacts
from compressor.families.checkpoint import Header
from compressor.families.pictures.steps import PictureSteps
from compressor.families.pictures.text import PictureText, TextRun
from compressor.families.stand_ins import AbsentTensor, StoredTensor
from compressor.schema.sections import ImageSection


class VisionEncoder(nn.Module, ABC):
    """Vision tower and projector: pixels of tiles [I, 3, H, W] to visual embeddings [I, N, D].

    Where rows of tiles are arranged, to [V, D], and it takes what `Arrangement.arrays` are besides.

    Attributes:
        chooses: it gives K of the N rows, and behind all other tensors which ones, [I, K] int64.
    """

    chooses: bool = False

    @abstractmethod
    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Map pixels [I, 3, H, W] to visual embeddings [I, N, D].

        Where the decoder's dims have a `deepstack`, K more such tensors come behind them: what is added to
        the visual rows behind each of its first layers.
        """

    def features(self, pixel_values: Tensor, *arranged: Tensor) -> tuple[Tensor, ...]:
        """Return what `forward` gives, one tensor or several."""
        found = self(pixel_values, *arranged)
        return found if isinstance(found, tuple) else (found,)

    def front(self, pixel_values: Tensor) -> Front:
        """Return the rows of tiles [I, 3, H, W], and what a choice among them may read besides."""
        features, *deepstack = self.features(pixel_values)
        return Front(features, tuple(deepstack))

    def front_of_grid(self, pixel_values: Tensor, *arranged: Tensor) -> Front:
        """Return what `front` does, of the rows [1, M + 1, D] of a grid that tiles make up.

        Args:
            pixel_values: of its tiles.
            arranged: see `GridPart`; the last row that they name ends lines, and the tower has none of it.
        """
        features, *deepstack = (part[None] for part in self.features(pixel_values, *arranged))
        return Front(features, tuple(deepstack))


@dataclass(frozen=True)
class LoadedModel:
    """An original model in memory, with everything that later stages read from it.

    Attributes:
        folder: local folder of configuration, weights and processor.
        digest: sha256 over configuration and weights.
        original: the unmodified transformers model, in the dtype and on the device that were asked for.
        native_facts: the same at the tower's own image size; they differ where another was asked for.
        processor: the model's processor (images, tokenizer, chat template), at the size of `facts`.
        native_processor: the same as published; differs only where another image size was asked for.
        vision: vision tower and projector, sharing the original's weights.
        tensors: language model tensors, named as `compressor.decoder.weights.source_of` does.
        stored: where those of them lie that are stand-ins, in files or on other devices; none: all are here.
    """

    facts: ModelFacts
    native_facts: ModelFacts
    folder: Path
    digest: str
    original: Any
    processor: Any
    native_processor: Any
    vision: VisionEncoder
    tensors: Mapping[str, Tensor]
    stored: Mapping[str, AbsentTensor] = field(default_factory=dict)

    @property
    def embedding(self) -> Tensor:
        """[vocab, D], of text tokens."""
        return self.tensors["embed_tokens.weight"]

    def with_ends(self) -> "LoadedModel":
        """Return the model with embedding and head in memory: the stand-ins that are left are of layers.

        Raises:
            ModelError: they cannot be read any more.
        """
        ends = [name for name in self.stored if not name.startswith("layers.")]
        read = {name: self.stored[name].read().to(self.tensors[name]) for name in ends}
        left = {name: place for name, place in self.stored.items() if name not in read}
        return replace(self, tensors={**self.tensors, **read}, stored=left)


class Family(ABC):
    """Facts about one family of models, as data and small adapters. No algorithm lives here.

    Attributes:
        name: of the family; no other has it.
        model_types: of the `config.json`s that it reads.
        budget_keys: keys of the recipe's `image` that it can keep; none: its pictures have one size.
        decoders: model types of the text decoders that it reads, the first where a configuration names none;
            none: it does not tell.
        no_grid: why visual rows of its models lie on no grid; empty: a model's facts have the grid.
        package: that registered it by an entry point; None: it is one of this tool's own.
        image_id_key: key of the image token's id in its `config.json`s, where they have it.
        image_processors: classes of image processors that its models come with; none: it does not tell.
        token_keys: keys of the processor's file that tell how many image tokens are written for a picture.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    budget_keys: ClassVar[tuple[str, ...]] = ()
    decoders: ClassVar[tuple[str, ...]] = ()
    no_grid: ClassVar[str] = ""
    package: str | None = None
    image_id_key: ClassVar[str] = "image_token_id"
    image_processors: ClassVar[tuple[str, ...]] = ()
    token_keys: ClassVar[tuple[str, ...]] = ()

    def budget_words(self) -> str:
        """Return which keys of the recipe's `image` set how large pictures get; empty: none does."""
        pair = ("height", "width")
        ways = [f"image.{key}" for key in self.budget_keys if key not in pair]
        if set(pair) <= {*self.budget_keys}:
            ways.append("image.height and image.width")
        return ", or ".join(ways)

    @abstractmethod
    def problems(self, raw: Mapping[str, Any], where: str) -> list[str]:
        """Return what cannot be read of a `config.json` as it is written; transformers need not take it."""

    @abstractmethod
    def facts(
        self,
        config: Any,
        name: str,
        *,
        where: str = "config.json",
        image_size: int | None = None,
        tied: bool | None = None,
    ) -> ModelFacts:
        """Return the facts that a transformers configuration tells.

        Args:
            config: transformers' configuration.
            name: of the model.
            where: the configuration's file, for errors.
            image_size: as in `load`.
            tied: whether the token embedding is the head too; None: what the configuration says.

        Raises:
            ModelError: the configuration asks for something that is not supported; all such are named.
        """

    @abstractmethod
    def check_stored(
        self, config: Any, folder: Path, stored: Mapping[str, Header], names: Iterable[str]
    ) -> None:
        """Refuse weight files that are not those of the configuration, by their headers.

        Args:
            config: as in `facts`, which took it.
            folder: of the model.
            stored: headers of its tensors; empty: they are not here.
            names: of the tensors, as far as they are known.

        Raises:
            ModelError: tensors are missing, left over, of another shape or dtype, or of other layers.
        """

    @abstractmethod
    def original(self, folder: Path, config: Any, dtype: Any) -> Any:
        """Load the unmodified transformers model.

        Raises:
            ModelError: weights are missing, left over, of another shape or no numbers.
        """

    def outline(
        self, folder: Path, config: Any, dtype: Any, *, tied: bool
    ) -> tuple[Any, Mapping[str, StoredTensor]]:
        """Load the transformers model with stand-ins for the large weights of its decoder.

        Args:
            folder: of the model.
            config: as in `facts`, which took it.
            dtype: of the weights in memory.
            tied: whether the token embedding is the head too.

        Returns:
            The model, and where the weights lie, by their names in `tensors`.

        Raises:
            ModelError: as `original`; or weights are stored otherwise than the model has them.
        """
        raise ModelError(
            [
                f"{folder}: the family {self.name!r} tells nothing of how its weights are stored, so that "
                "they cannot be streamed; leave `stream` out"
            ]
        )

    @abstractmethod
    def vision(self, config: Any, *, image_size: int, source: Any = None) -> VisionEncoder:
        """Return the vision encoder: of the loaded model `source`, or newly made from `config`."""

    def layers_of_decoder(self) -> str:
        """Return the name of the list of the decoder's layers in the original; empty: it has none."""
        return ""

    @abstractmethod
    def tensors(self, original: Any) -> Mapping[str, Tensor]:
        """Return the language model's tensors under their common names."""

    @abstractmethod
    def complete_processor(self, processor: Any, config: Any, saved: Mapping[str, Any]) -> None:
        """Set what older versions did not save with a processor to what the model's configuration says.

        Args:
            processor: as loaded.
            config: the model's transformers configuration.
            saved: what its file holds.
        """

    @abstractmethod
    def picture_steps(self, saved: Mapping[str, Any], where: str) -> PictureSteps:
        """Return what an image processor does to a picture, as steps that a runtime without it can run.

        Args:
            saved: what its file holds, at the image size of the model's facts; see
                `compressor.families.pictures.processors.saved_steps`.
            where: the file, for errors.

        Raises:
            ModelError: it does something that no step does; all such are named.
        """

    def steps_beside_others(self, saved: Mapping[str, Any], where: str) -> PictureSteps | None:
        """Return what is done to each of several pictures of a prompt; None: the same as to one.

        Args:
            saved: as in `picture_steps`.
            where: likewise.
        """
        return None

    def picture_text(self, processor: Any) -> PictureText:
        """Return what stands for a picture in place of the image token of a rendered prompt."""
        return TextRun()

    def original_rows(
        self, original: Any, out: Any, pictures: Mapping[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the visual rows [V, D] that the original made of a prompt's pictures.

        Behind them, likewise, what it adds to them behind each of its decoder's first layers, if anything.

        Args:
            original: the transformers model.
            out: what it gave of the prompt.
            pictures: what it was given besides tokens.
        """
        # Some models of transformers give all that the tower made, prompt by prompt.
        seen = out.image_hidden_states
        rows: Tensor | list[Tensor] = getattr(seen, "pooler_output", seen)
        return ((torch.cat(rows) if isinstance(rows, list) else rows).flatten(0, -2),)

    def forget(self, original: Any) -> None:  # noqa: B027 - what a family may overwrite
        """Remove from the original what an earlier prompt left in it and a later one would read."""

    def processor_class(self) -> type | None:
        """Return transformers' class of processors that has a part for videos, which is not loaded.

        None: the class that the model's files name is loaded, with all its parts.
        """
        return None

    def most_tiles(self, saved: Mapping[str, Any]) -> int:
        """Return how many tiles a picture becomes at most.

        Args:
            saved: what the image processor's file holds, within the budget of the recipe.
        """
        return 1

    def with_pictures(self, facts: ModelFacts, saved: Mapping[str, Any]) -> ModelFacts:
        """Return facts with what the image processor tells of pictures: how large they get.

        Args:
            facts: of the configuration.
            saved: as in `most_tiles`; nothing: the file is not there.
        """
        return facts.model_copy(update={"most_tiles": self.most_tiles(saved)})

    def within(self, budget: ImageSection, saved: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what a budget for pictures changes in the image processor's values.

        Args:
            budget: with keys of `budget_keys` alone.
            saved: what the image processor's file holds.

        Raises:
            ModelError: the processor cannot keep it, or not exactly.
        """
        return {}

    def keep_budget(self, config: Any, processor: Any) -> None:  # noqa: B027 - what a family may overwrite
        """Tell the original's configuration of a budget, where the model reads it there.

        Args:
            config: that the original will be loaded with.
            processor: of the model, within the budget.
        """

    def arrangements(
        self, processor: Any, sizes: Sequence[tuple[int, int]], facts: ModelFacts
    ) -> tuple[Arrangement, ...] | None:
        """Return of which rows of tiles each picture's rows are made; None: they are its rows.

        Args:
            processor: as in `image_rows`.
            sizes: likewise.
            facts: likewise.
        """
        return None

    def image_rows(
        self, processor: Any, sizes: Sequence[tuple[int, int]], facts: ModelFacts
    ) -> tuple[int, ...]:
        """Return how many visual rows the original's processor gives of each picture of one prompt.

        Args:
            processor: of the model.
            sizes: (height, width) of the pictures in pixels, in their order.
            facts: of the model, at the image size of the processor.
        """
        arranged = self.arrangements(processor, sizes, facts)
        if arranged is not None:
            return tuple(one.rows for one in arranged)
        return (facts.tile_rows,) * len(sizes)

    def tiles_made(self, encoded: Mapping[str, Any]) -> Any:
        """Return the pixels [tiles, 3, S, S] of all pictures of a prompt; None: it has none.

        Args:
            encoded: all that the original's processor made of it.
        """
        return encoded.get("pixel_values")

    def image_pixels(
        self, encoded: Mapping[str, Any], rows: Sequence[int], facts: ModelFacts
    ) -> tuple[Tensor, ...]:
        """Return the pixels [tiles, 3, H, W] of each picture, of what the original's processor made.

        Args:
            encoded: its whole output.
            rows: of each picture, as `image_rows` gives them.
            facts: of the model.
        """
        pixels: Tensor | None = self.tiles_made(encoded)
        if pixels is None or not rows:
            return ()
        tiles: tuple[Tensor, ...] = pixels.split([count // facts.tile_rows for count in rows])
        return tiles

    def image_grids(
        self, encoded: Mapping[str, Any], facts: ModelFacts
    ) -> tuple[tuple[int, int], ...] | None:
        """Return rows and columns of each picture's visual tokens; None: they are the model's own.

        Args:
            encoded: as in `image_pixels`.
            facts: of the model.
        """
        return None

    @abstractmethod
    def resize_processor(self, processor: Any, image_size: int) -> None:
        """Make the processor produce square images of `image_size` pixels."""
