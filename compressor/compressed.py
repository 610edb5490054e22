"""A compressed model: vision encoder, embedding and compressed decoder, in memory and as a folder.

Folder: `model*.safetensors` (the original's tensors under their common names, in the source dtype),
`config.json` and processor files of the original, `plan.json`, and what else led to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compressor.decoder import Decoder, decoder_from
from compressor.decoder.weights import LoadedGates, parts_by_source
from compressor.errors import ArtifactError, ModelError
from compressor.families import LoadedModel, VisionEncoder
from compressor.families.registry import load_processor, read_config
from compressor.plan import Plan

LANGUAGE_PREFIX = "language_model."
VISION_PREFIX = "vision."
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class CompressedModel:
    """The model that the plan describes.

    Attributes:
        plan: what it was made by.
        decoder: the compressed decoder.
        embedding: [vocab, D].
        vision: pixels [I, 3, S, S] to visual embeddings [I, N, D].
        processor: the original's processor.
        config: the original's transformers configuration.
    """

    plan: Plan
    decoder: Decoder
    embedding: Tensor
    vision: VisionEncoder
    processor: Any
    config: Any

    def embed(self, token_ids: Tensor) -> Tensor:
        """[B, T] int64 to [B, T, D]."""
        return F.embedding(token_ids, self.embedding)

    def to(self, dtype: torch.dtype) -> "CompressedModel":
        """Return the model with weights of another dtype; the module objects are changed in place."""
        self.decoder.to(dtype)
        self.vision.to(dtype)
        return CompressedModel(
            self.plan,
            self.decoder,
            self.embedding.to(dtype),
            self.vision,
            self.processor,
            self.config,
        )


def compress(
    model: LoadedModel, plan: Plan, *, logits: str = "last", gates: LoadedGates | None = None
) -> CompressedModel:
    """Apply a plan to an original model; the weights are shared with it, not copied.

    Args:
        model: the original.
        plan: made for it.
        logits: as in `Decoder`.
        gates: of a plan that has gates.

    Raises:
        ArtifactError: the plan was made for another model or other gates.
        ModelError: the model lacks tensors that the plan needs.
    """
    if plan.model_digest != model.digest:
        raise ArtifactError(
            [
                f"the plan was made for {plan.model.name} (digest {plan.model_digest[:12]}), not for "
                f"{model.facts.name} (digest {model.digest[:12]}); make it anew with `vtcompress plan`"
            ]
        )
    return CompressedModel(
        plan=plan,
        decoder=decoder_from(plan, tensors_of(model, plan, gates), logits=logits),
        embedding=model.tensors["embed_tokens.weight"],
        vision=model.vision,
        processor=model.processor,
        config=model.original.config,
    )


def tensors_of(model: LoadedModel, plan: Plan, gates: LoadedGates | None) -> Mapping[str, Tensor]:
    """Return the tensors that a plan's decoder is filled from: the original's, and the gates' if it has any.

    Raises:
        ArtifactError: the plan was made with other gates.
    """
    if plan.gates is None:
        return model.tensors
    if gates is None or gates.digest != plan.gates.digest:
        found = f"digest {gates.digest[:12]}" if gates else "none"
        raise ArtifactError(
            [
                f"the plan was made with gates of digest {plan.gates.digest[:12]}, given: {found}; give "
                "these gates, or make the plan anew with `vtcompress plan`"
            ]
        )
    return {**model.tensors, **gates.tensors}


def save_compressed(
    model: LoadedModel, plan: Plan, folder: Path, gates: LoadedGates | None = None
) -> None:
    """Write a compressed model into an existing empty folder, weights in the source dtype."""
    from huggingface_hub import save_torch_state_dict

    dtype = getattr(torch, model.facts.dtype)
    tensors = {LANGUAGE_PREFIX + k: v for k, v in tensors_of(model, plan, gates).items()}
    tensors |= {VISION_PREFIX + k: v for k, v in model.vision.state_dict().items()}
    if model.facts.decoder.tied_embeddings:
        del tensors[LANGUAGE_PREFIX + "lm_head.weight"]
    cast = {k: v.detach().to(dtype).contiguous() for k, v in tensors.items()}
    save_torch_state_dict(cast, folder, safe_serialization=True)
    model.original.config.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    plan.save(folder / PLAN_FILE)


def load_compressed(
    folder: Path, *, dtype: torch.dtype = torch.float32, logits: str = "last"
) -> CompressedModel:
    """Load what `save_compressed` wrote.

    Raises:
        ArtifactError: files are missing or broken.
        PlanError: the plan cannot be read.
        ModelError: tensors are missing or of another shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    plan = Plan.load(folder / PLAN_FILE)
    family, config = read_config(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ArtifactError([f"{folder}: no *.safetensors file; compress the model anew"])
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            tensors |= {k: v.to(dtype) for k, v in load_file(path).items()}
        except (SafetensorError, OSError) as failure:
            raise ArtifactError([f"{path}: broken weights: {failure}"]) from None
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
        decoder=decoder_from(plan, language, logits=logits),
        embedding=embedding,
        vision=vision,
        processor=load_processor(folder),
        config=config,
    )


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
    """Return the original's own decoder, nothing frozen, on the same weights.

    Where the plan stores heads or neurons in two parts, they are joined in that order: it changes nothing.
    """
    tensors: dict[str, Tensor] = {"embed_tokens.weight": model.embedding}
    for source, parts in parts_by_source(model.decoder, model.plan).items():
        whole = (
            parts[0].tensor
            if len(parts) == 1
            else torch.cat([part.tensor for part in parts], dim=parts[0].axis)
        )
        tensors[source] = whole.T if parts[0].transposed else whole
    return decoder_from(model.plan.naive(), tensors, logits=model.decoder.logits)
