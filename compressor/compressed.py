"""A compressed model: vision encoder, embedding and compressed decoder, in memory and as a folder.

Folder: `compressed*.safetensors` (the original's tensors under their common names, in the source dtype),
`original_config.json`, generation settings and processor files of the original, `plan.json`, and what else
led to it. Its `config.json` and the names of its weights are no model's, as transformers would take such a
folder for the original and draw at random what it does not find. Older folders, which have
`model*.safetensors` and the original's `config.json`, are read too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.chosen_rows import FrontWeights, vision_of
from compressor.decoder import Decoder, decoder_from
from compressor.decoder.one_prompt import States, greedy_tokens, layer_states
from compressor.decoder.weights import LoadedGates, original_tensors, stored_weights
from compressor.disk.files import write_text
from compressor.errors import ArtifactError, DataError, ModelError
from compressor.facts import ModelFacts
from compressor.families import Family, LoadedModel, VisionEncoder
from compressor.families.configuration import COMPRESSED_TYPE
from compressor.families.folder import CONFIG
from compressor.families.guard import broken, reading
from compressor.families.processor import check_processor, load_processor
from compressor.families.registry import saved_config
from compressor.families.stand_ins import MOST_NUMBERS, AbsentTensor, set_dtype, with_dtype
from compressor.generation.settings import (
    GENERATION_FILE,
    PLAIN,
    check_new_tokens,
    check_positions,
    model_keys,
    settings_of,
    write_keys,
)
from compressor.methods import layer_scores, run_rules
from compressor.plan.plan import Plan
from compressor.planner import make_plan
from compressor.samples.pictures import Pictures
from compressor.samples.prompts import EncodedPrompt, embed, encode_question

LANGUAGE_PREFIX = "language_model."
VISION_PREFIX = "vision."
FRONT_PREFIX = "front."
WEIGHTS_PATTERN = "compressed{suffix}.safetensors"
ORIGINAL_CONFIG = "original_config.json"
PLAN_FILE = "plan.json"


class Generated(NamedTuple):
    """A greedy answer.

    Attributes:
        token_ids: its tokens, the ending one included.
        text: without special tokens.
    """

    token_ids: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class CompressedModel:
    """The model that a plan describes.

    Attributes:
        plan: what visual rows do in each layer.
        decoder: the compressed decoder.
        embedding: [vocab, D], of text tokens.
        vision: pixels [I, 3, S, S] to visual embeddings [I, N, D]; to some of them where the plan says so.
        processor: the original's processor.
        config: the original's transformers configuration.
        generation: what the model's files say about generating; see `compressor.generation.settings`.
        stored: where weights lie that have stand-ins here, by their source; none: all are in memory.
        unhealed: the decoder before its weights were healed; None: they are the original's.
    """

    plan: Plan
    decoder: Decoder
    embedding: Tensor
    vision: VisionEncoder
    processor: Any
    config: Any
    generation: Mapping[str, Any] = field(default_factory=dict)
    stored: Mapping[str, AbsentTensor] = field(default_factory=dict)
    unhealed: Decoder | None = None

    @property
    def facts(self) -> ModelFacts:
        """Facts about the original."""
        return self.plan.model

    def generate(
        self,
        prompt: str | Sequence[int] | Tensor,
        images: Pictures | Tensor = None,
        *,
        max_new_tokens: int = 64,
        generation_config: bool = True,
    ) -> Generated:
        """Answer greedily in torch, as `Runtime.generate` does by the graphs.

        Args:
            prompt: a question, which the model's chat template is put around; or the prompt's token ids, [S]
                or [1, S], every image expanded to its image tokens.
            images: with a question pictures in any form that `Runtime.generate` takes; with token ids pixels
                [tiles, 3, S, S], as the model's processor makes them. None without a picture.
            max_new_tokens: longest answer.
            generation_config: bar and punish tokens as the model's own generation configuration asks for.

        Raises:
            DataError: a picture cannot be read, or the prompt does not fit the model.
        """
        check_new_tokens(max_new_tokens)
        asked = self._encoded(prompt, images)
        check_positions(asked.input_ids.shape[1], max_new_tokens, self.facts.decoder.max_positions)
        settings = settings_of(self.generation, GENERATION_FILE) if generation_config else PLAIN
        tokens = greedy_tokens(
            self.decoder,
            self.embedding,
            embed(self, asked),
            asked.input_ids,
            settings,
            self.facts.eos_token_ids,
        )
        ids = tuple(islice(tokens, max_new_tokens))
        return Generated(ids, self.processor.decode(ids, skip_special_tokens=True))

    def hidden_states(
        self, prompt: str | Sequence[int] | Tensor, images: Pictures | Tensor = None
    ) -> States:
        """Return what every layer makes of the rows of one prompt, without gradients.

        Args:
            prompt: as in `generate`.
            images: as in `generate`.

        Raises:
            DataError: as `generate`.
        """
        asked = self._encoded(prompt, images)
        check_positions(asked.input_ids.shape[1], 0, self.facts.decoder.max_positions)
        return layer_states(self.decoder, embed(self, asked), self.plan.exit_layer)

    def _encoded(
        self, prompt: str | Sequence[int] | Tensor, images: Pictures | Tensor
    ) -> EncodedPrompt:
        if isinstance(prompt, str):
            return encode_question(self.processor, prompt, images, "prompt", self.facts)
        ids = torch.as_tensor(prompt, dtype=torch.int64).reshape(1, -1)
        if images is not None and not isinstance(images, Tensor):
            raise DataError(
                [
                    "images: token ids come with pixels, a tensor [I, 3, S, S]; pictures with a question"
                ]
            )
        if images is not None and self.facts.arrangement is not None:
            raise DataError(
                [
                    "images: what pixels show of a picture depends on its size: give pictures with a question"
                ]
            )
        tiles = () if images is None else images.split(1)
        rows, grids = (self.facts.tile_rows,) * len(tiles), None
        if self.facts.sizes_differ and self.facts.cell and images is not None:
            height, width = (side // self.facts.cell for side in images.shape[-2:])
            rows, grids = (height * width,) * len(tiles), ((height, width),) * len(tiles)
        return EncodedPrompt({"input_ids": ids}, tiles, rows, "prompt", grids)

    def embed(self, token_ids: Tensor) -> Tensor:
        """[B, T] int64 to [B, T, D]."""
        return F.embedding(token_ids, self.embedding)

    def to(self, dtype: torch.dtype) -> "CompressedModel":
        """Return the model with weights of another dtype; the module objects are changed in place."""
        for decoder in filter(None, (self.decoder, self.unhealed)):
            set_dtype(decoder, dtype)
        set_dtype(self.vision, dtype)
        return replace(self, embedding=with_dtype(self.embedding, dtype))


def compress(
    model: LoadedModel,
    plan: Plan,
    *,
    logits: str = "last",
    gates: LoadedGates | None = None,
    front: FrontWeights | None = None,
) -> CompressedModel:
    """Apply a plan to an original model; the weights are shared with it, not copied.

    Args:
        model: the original.
        plan: a plan for this model.
        logits: `last` or `all`, as in `Decoder`.
        gates: the gates' weights, for a plan with gates.
        front: weights that a choice in front of the decoder reads, for a plan with such.

    Raises:
        ArtifactError: the plan was made for another model, other gates or other weights.
        ModelError: the model lacks tensors that the plan needs.
    """
    plan.check_belongs(model.facts.name, model.digest)
    if plan.model.decoder.tied_embeddings and not model.facts.decoder.tied_embeddings:
        raise ArtifactError(
            [
                f"the plan takes the token embedding of {plan.model.name} for its head, but the weights have "
                "a head of their own; make it anew with `vtcompress plan`"
            ]
        )
    decoder = decoder_from(
        plan,
        decoder_tensors(model, plan, gates),
        logits=logits,
        scores=layer_scores(plan),
        runs=run_rules(plan),
    )
    _read_small(decoder, model.stored)
    return CompressedModel(
        plan=plan,
        decoder=decoder,
        embedding=model.embedding,
        vision=vision_of(plan, model.vision, front),
        processor=model.processor,
        config=model.original.config,
        generation=model_keys(model.folder),
        stored=model.stored,
    )


def _read_small(decoder: Decoder, stored: Mapping[str, AbsentTensor]) -> None:
    """Read what of a decoder's stand-ins is small: parts of large weights, see `MOST_NUMBERS`."""
    for name, weight in stored_weights(decoder).items():
        parameter = decoder.get_parameter(name)
        if weight.source in stored and parameter.numel() <= MOST_NUMBERS:
            part = weight.of(stored[weight.source].read())
            parameter.data = part.to(parameter, copy=True)


def plain(model: LoadedModel) -> CompressedModel:
    """Return an original model rewritten, nothing frozen; the weights are shared with it, not copied."""
    return compress(model, make_plan(model.facts, model.digest, (), None).naive())


def plain_of(small: CompressedModel) -> CompressedModel:
    """Return a compressed model as `plain` gives it, on the compressed model's weights."""
    plan = small.plan.naive()
    return replace(
        small, plan=plan, decoder=naive_decoder(small), vision=vision_of(plan, small.vision)
    )


def decoder_tensors(
    model: LoadedModel, plan: Plan, gates: LoadedGates | None
) -> Mapping[str, Tensor]:
    """Return the tensors that a plan's decoder is filled from: the original's, and the gates' if it has any.

    Raises:
        ArtifactError: the plan was made with other gates.
    """
    plan.check_gates(gates.digest if gates else None)
    if plan.gates and gates:
        return {**model.tensors, **gates.beside(model.embedding)}
    return model.tensors


def save_compressed(
    model: LoadedModel,
    plan: Plan,
    folder: Path,
    gates: LoadedGates | None = None,
    front: FrontWeights | None = None,
) -> None:
    """Write a compressed model into an existing empty folder, weights in the source dtype."""
    from huggingface_hub import save_torch_state_dict

    dtype = getattr(torch, model.facts.dtype)
    tensors = {LANGUAGE_PREFIX + k: v for k, v in decoder_tensors(model, plan, gates).items()}
    tensors |= {VISION_PREFIX + k: v for k, v in model.vision.state_dict().items()}
    tensors |= {FRONT_PREFIX + k: v for k, v in (front or FrontWeights()).tensors.items()}
    if plan.model.decoder.tied_embeddings:
        del tensors[LANGUAGE_PREFIX + "lm_head.weight"]
    cast = {k: v.detach().to(dtype).contiguous() for k, v in tensors.items()}
    save_torch_state_dict(cast, folder, filename_pattern=WEIGHTS_PATTERN, safe_serialization=True)
    model.original.config.to_json_file(folder / ORIGINAL_CONFIG)
    write_text(
        folder / CONFIG,
        json.dumps({"model_type": COMPRESSED_TYPE, "original": ORIGINAL_CONFIG}, indent=2) + "\n",
    )
    model.processor.save_pretrained(folder)
    write_keys(folder, model_keys(model.folder))
    plan.save(folder / PLAN_FILE)


def read_compressed_processor(folder: Path, plan: Plan) -> Any:
    """Return the processor of a folder that `save_compressed` wrote.

    Raises:
        ModelError: it cannot be read, or does not fit the plan's model.
    """
    processor = load_processor(folder, *_original(folder))
    check_processor(processor, plan.model, folder)
    return processor


def load_compressed(folder: Path, *, logits: str = "last") -> CompressedModel:
    """Load what `save_compressed` wrote, in float32.

    Raises:
        ArtifactError: files are missing or broken.
        PlanError: the plan cannot be read.
        ModelError: tensors are missing or of another shape.
    """
    from safetensors.torch import load_file

    plan = Plan.load(folder / PLAN_FILE)
    family, config = _original(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ArtifactError([f"{folder}: no *.safetensors file; compress the model anew"])
    tensors: dict[str, Tensor] = {}
    for path in files:
        if problem := broken(path, folder):
            raise ArtifactError([problem])
        with reading(folder, path.name):
            stored = load_file(path)
        tensors |= {k: v.float() for k, v in stored.items()}
    with torch.device("meta"):
        vision = family.vision(config, image_size=plan.model.image_size)
    _fill_vision(vision, _below(VISION_PREFIX, tensors), folder)
    language = _below(LANGUAGE_PREFIX, tensors)
    embedding, dims = language.get("embed_tokens.weight"), plan.model.decoder
    if embedding is None or embedding.shape != (dims.vocab, dims.hidden):
        raise ModelError(
            [
                f"{folder}: no token embedding of shape ({dims.vocab}, {dims.hidden}) among the weights"
            ]
        )
    return CompressedModel(
        plan=plan,
        decoder=decoder_from(
            plan, language, logits=logits, scores=layer_scores(plan), runs=run_rules(plan)
        ),
        embedding=embedding,
        vision=vision_of(plan, vision, _front_weights(plan, tensors, folder)),
        processor=read_compressed_processor(folder, plan),
        config=config,
        generation=model_keys(folder),
    )


def _front_weights(plan: Plan, tensors: Mapping[str, Tensor], folder: Path) -> FrontWeights:
    """Return what a choice in front of the decoder reads, of a folder's tensors."""
    digest = plan.front.weights if plan.front is not None else ""
    found = _below(FRONT_PREFIX, tensors)
    if bool(found) != bool(digest):
        raise ArtifactError(
            [f"{folder}: weights of the projector are missing; compress the model anew"]
        )
    return FrontWeights(found, digest)


def _original(folder: Path) -> tuple[Family, Any]:
    """Return family and configuration of the original that a compressed folder was made from."""
    new = (folder / ORIGINAL_CONFIG).is_file()
    return saved_config(folder, ORIGINAL_CONFIG if new else CONFIG)


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _fill_vision(vision: VisionEncoder, tensors: Mapping[str, Tensor], folder: Path) -> None:
    try:
        vision.load_state_dict(dict(tensors), assign=True)
    except RuntimeError as failure:
        lines = [line.strip() for line in str(failure).splitlines()]
        raise ArtifactError(
            [f"{folder}: vision weights do not fit config.json: {lines[-1]}"]
        ) from None
    # Position tables are buffers that transformers does not save; on the meta device they have no values.
    for module in vision.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                count = buffer.shape[-1]
                setattr(module, name, torch.arange(count).expand(buffer.shape))


def naive_decoder(model: CompressedModel) -> Decoder:
    """Return the original's own decoder, nothing frozen, on its own weights.

    Where the plan stores heads or neurons in two parts, they are joined in that order: it changes nothing.
    """
    held = original_tensors(model.unhealed or model.decoder)
    tensors = {"embed_tokens.weight": model.embedding, **held}
    return decoder_from(model.plan.naive(), tensors, logits=model.decoder.logits)
