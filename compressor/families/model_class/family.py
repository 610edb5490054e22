"""A family that is a class of transformers: a vision tower, a projector and a Llama-like decoder in it.

Limitations: image features are inserted at the image tokens, N for each tile of a picture.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, cast, get_args

from torch import Tensor

from compressor.errors import ModelError
from compressor.facts import ModelFacts, SourceDType, TowerFacts
from compressor.families.base import Family
from compressor.families.checkpoint import Header, check_complete, check_finite, opened_weights
from compressor.families.configuration import (
    CONVERTED,
    LAYERS,
    image_token_problems,
    theta_problems,
)
from compressor.families.guard import reading
from compressor.families.llama_text import TEXT_MODEL_TYPES, decoder_dims, text_problems
from compressor.families.model_class.outline import (
    decoder_weights,
    places_in_memory,
    twice_stored,
)
from compressor.families.model_class.stored import check_stored
from compressor.families.pictures.processors import saved_steps
from compressor.families.pictures.steps import PictureSteps
from compressor.families.stand_ins import StoredTensor, is_stand_in, stand_in

DTYPES = get_args(SourceDType)


class ModelClassFamily(Family):
    """A family of which a class of transformers tells nearly all.

    Attributes:
        architecture: name of transformers' class.
        decoder: name of the text decoder in it.
        tower_layers: key of the number of layers of the vision tower.
    """

    architecture: ClassVar[str]
    decoder: ClassVar[str] = "language_model"
    decoders: ClassVar[tuple[str, ...]] = TEXT_MODEL_TYPES
    tower_layers: ClassVar[str] = LAYERS

    @abstractmethod
    def tower_problems(self, section: Mapping[str, Any], where: str) -> list[str]:
        """Return a line for each thing in a `vision_config` that no tower has.

        Args:
            section: of `config.json` as it is written, and then as transformers read it.
            where: file and section.
        """

    @abstractmethod
    def vision_problems(self, config: Any, image_size: int | None, where: str) -> list[str]:
        """Return a line for each thing about tower and projector that cannot be read.

        Args:
            config: transformers' configuration of the whole model.
            image_size: that is asked for; None: the tower's own.
            where: the file.
        """

    @abstractmethod
    def visual_grid(
        self, config: Any, image_size: int | None
    ) -> tuple[int, int, tuple[int, int] | None]:
        """Return the side of a tile in pixels, its visual tokens, and their grid; None: they have none."""

    @abstractmethod
    def unread(self, config: Any) -> Callable[[str], bool]:
        """Return whether features, projector and decoder can be computed without a tensor of a name."""

    @abstractmethod
    def layers_read(self, config: Any) -> int:
        """Return how many layers of the tower are read."""

    def tower_facts(self, config: Any) -> TowerFacts | None:
        """Return what methods that read the vision tower must know of it; None: none can."""
        return None

    def problems(self, raw: Mapping[str, Any], where: str) -> list[str]:
        """See `Family.problems`."""
        found = []
        named = raw.get("architectures")
        if named and not (isinstance(named, list) and self.architecture in named):
            found.append(
                f"{where}: architectures: {named!r} is not supported; only {self.architecture} is: "
                f"{CONVERTED}"
            )
        for key, problems in (
            ("vision_config", self.tower_problems),
            ("text_config", partial(text_problems, kinds=self.decoders)),
        ):
            section, place = raw.get(key, {}), f"{where}: {key}"
            if isinstance(section, dict):
                found += problems(section, place)
            else:
                found.append(f"{place}: {section!r} is no section of a configuration")
        return found + image_token_problems(raw, where)

    def facts(
        self,
        config: Any,
        name: str,
        *,
        where: str = "config.json",
        image_size: int | None = None,
        tied: bool | None = None,
    ) -> ModelFacts:
        """See `Family.facts`."""
        vision, text = config.vision_config, config.text_config
        section, place = vision.to_dict(), f"{where}: vision_config"
        problems = self.tower_problems(section, place)
        problems += theta_problems(section.get("rope_parameters"), place)
        problems = problems or self.vision_problems(config, image_size, where)
        tied = bool(config.tie_word_embeddings) if tied is None else tied
        dtype = str(config.dtype or "float32").removeprefix("torch.")
        if dtype not in DTYPES:
            problems.append(
                f"{where}: dtype: {dtype!r} is not supported; supported: {', '.join(DTYPES)}"
            )
        try:
            dims = decoder_dims(text, tied=tied, where=f"{where}: text_config", kinds=self.decoders)
        except ModelError as error:
            raise ModelError([*problems, *error.problems]) from None
        if problems:
            raise ModelError(problems)
        size, visual_tokens, grid = self.visual_grid(config, image_size)
        return ModelFacts(
            name=name,
            family=self.name,
            architecture=f"{self.architecture} ({vision.model_type}, {text.model_type})",
            decoder=dims,
            visual_tokens=visual_tokens,
            token_grid=grid,
            image_size=size,
            image_token_id=config.image_token_id,
            eos_token_ids=(),  # what `describe` reads: more files than this configuration decide
            dtype=cast("SourceDType", dtype),
            tower=self.tower_facts(config),
        )

    def check_stored(
        self, config: Any, folder: Path, stored: Mapping[str, Header], names: Iterable[str]
    ) -> None:
        """See `Family.check_stored`."""
        check_stored(
            self._class,
            config,
            folder,
            stored,
            names,
            unread=self.unread(config),
            least=self.layers_read(config),
            tower_layers=self.tower_layers,
        )

    def original(self, folder: Path, config: Any, dtype: Any) -> Any:
        """See `Family.original`."""
        with opened_weights(folder) as stored:
            return self._loaded(folder, config, dtype, stored)

    def outline(
        self, folder: Path, config: Any, dtype: Any, *, tied: bool
    ) -> tuple[Any, Mapping[str, StoredTensor]]:
        """See `Family.outline`."""
        places = decoder_weights(
            self._class, config, folder, f"model.{self.decoder}.", self.unread(config), tied=tied
        )
        stand_ins = {name: stand_in(place.shape, dtype) for name, place in places.items()}
        with opened_weights(folder) as stored:
            # Transformers would compare such a head with the embedding, which is not here.
            for name in twice_stored(stored) if tied else ():
                del stored[name]
            model = self._loaded(folder, config, dtype, stored | stand_ins)
        held = self.tensors(model)
        return model, places_in_memory(held, stand_ins, places, folder)

    def _loaded(self, folder: Path, config: Any, dtype: Any, stored: Mapping[str, Any]) -> Any:
        """Return the model with the tensors of its files, checked; stand-ins have nothing to check."""
        unread = self.unread(config)
        # The files are opened by us and not by transformers, which a configuration can lead elsewhere.
        with reading(folder, "the weights"):
            loaded: Any = self._class.from_pretrained(
                None,
                config=config,
                state_dict=dict(stored),
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, with all that is wrong
            )
        model, info = loaded
        check_complete(info, folder, unread)
        present = {k: v for k, v in model.state_dict().items() if not is_stand_in(v)}
        check_finite(present, folder, unread)
        for parameter in model.parameters():
            # Cut from a stored tensor that holds others too, it would keep, and save, them all.
            if parameter.nbytes < parameter.untyped_storage().nbytes():
                parameter.data = parameter.data.clone()
        return model.eval()

    def layers_of_decoder(self) -> str:
        """See `Family.layers_of_decoder`."""
        return f"model.{self.decoder}.layers"

    def tensors(self, original: Any) -> Mapping[str, Tensor]:
        """See `Family.tensors`."""
        tensors = dict(getattr(original.model, self.decoder).state_dict())
        tensors["lm_head.weight"] = original.lm_head.weight.detach()
        return tensors

    def picture_steps(self, saved: Mapping[str, Any], where: str) -> PictureSteps:
        """See `Family.picture_steps`."""
        return saved_steps(saved, where)

    @property
    def _class(self) -> Any:
        import transformers

        return getattr(transformers, self.architecture)
