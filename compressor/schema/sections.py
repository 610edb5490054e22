"""The sections of a recipe that know no method: each is one class, each key one field."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import model_validator

from compressor.schema.problems import apply_rule, rule
from compressor.schema.values import (
    Cosine,
    Count,
    DataPath,
    Flag,
    ModelId,
    NotNegative,
    RecipeSection,
    Revision,
    RunDType,
    ScoreName,
    Seed,
    Share,
    each_once,
)


class ModelSection(RecipeSection):
    """The model to compress.

    Attributes:
        id: hub id, or local folder (absolute once a recipe is read); None: given later, by flag.
        revision: branch, tag or commit on the hub; None: the default branch.
        trust_remote_code: whether Python code that comes with the model may run; never taken from a file, and
            not written into one.
        dtype: in which `calibrate` and `train-gates` run it in torch; what is exported has `export.dtype`.
    """

    id: ModelId | None = None
    revision: Revision | None = None
    trust_remote_code: Flag = False
    dtype: RunDType = "float32"


class CalibrateSection(RecipeSection):
    """The measurement that methods choose layers by.

    Attributes:
        data: jsonl file of samples (`image`, `question`, optional `answer` and `kind`).
        samples: how many samples to draw, 1 or more.
        seed: seed of the draw, 0 to 2**32 - 1.
    """

    data: DataPath | None = None
    samples: Count = 64
    seed: Seed = 0


Weights = Literal["float", "int8", "int4"]
"""How the decoder's matrices are stored."""

BlockSize = Literal[32, 64, 128]
"""How many weights of a matrix's column have a scale together."""

DEFAULT_BLOCK = 32


class ProfilesSection(RecipeSection):
    """Sizes that engines and fixed caches are made for; None: what fits the model (`export.graphs.limits`).

    Attributes:
        max_batch: sequences of one call, 1 or more.
        max_images: images of one call, 1 or more.
        max_text: text rows of one call, 1 or more.
        max_context: visual and text rows of a whole conversation, 1 or more.
        compute_capabilities: what engines are built for, such as `SM86`; None: the target's default.
    """

    max_batch: Count = 1
    max_images: Count = 1
    max_text: Count | None = None
    max_context: Count | None = None
    compute_capabilities: tuple[str, ...] | None = None


class ExportSection(RecipeSection):
    """What is written.

    Attributes:
        targets: formats to write; engines are built from the ONNX graphs, which are always written.
        dtype: type of weights and activations in the graphs. In float16 graphs nodes stay float32 whose
            values float16 cannot hold, as runs on calibration prompts show. ONNX Runtime's CPU cannot run
            bfloat16 graphs; OpenVINO and TensorRT-RTX read them.
        weights: how the decoder's matrices are stored: as `dtype` has them (`float`), or in whole numbers of
            8 or 4 bits; see `compressor.decoder.quantization` for which matrices these are.
        block: how many weights of a matrix's column have a scale together; None: `DEFAULT_BLOCK` with int8
            and int4. It must divide the inner width of every matrix.
        kv_cache: `growing`: every call returns longer caches; `fixed`: calls write into buffers in
            place, which get more room in blocks, up to `profiles.max_context` rows.
        profiles: sizes that engines and fixed caches are made for.
        image_size: side of the square image the vision graph takes, in pixels; None: the
            processor's own.
        logits: next-token logits of the last text row only, or of all text rows.
        selftest: made pictures lie in the artifact with what its runtime has of them, so that
            `vtcompress selftest` can compare a device with it.
    """

    targets: Annotated[tuple[Literal["onnx", "tensorrt-rtx", "tensorrt"], ...], rule(each_once)] = (
        "onnx",
    )
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    weights: Weights = "float"
    block: BlockSize | None = None
    kv_cache: Literal["growing", "fixed"] = "growing"
    profiles: ProfilesSection = ProfilesSection()
    image_size: Count | None = None
    logits: Literal["last", "all"] = "last"
    selftest: Flag = True

    @property
    def block_size(self) -> int | None:
        """How many weights have a scale together; None: weights are float."""
        return None if self.weights == "float" else self.block or DEFAULT_BLOCK

    @model_validator(mode="wrap")
    @classmethod
    def _block_of_whole_numbers(cls, value: Any, handler: Callable[[Any], Self]) -> Self:
        given = value if isinstance(value, dict) else {}
        problem = None
        if given.get("block") is not None and given.get("weights", "float") == "float":
            problem = "block goes with weights: int8 or int4; float weights have no blocks"
        result: Self = apply_rule(value, handler, problem)
        return result


class ImageSection(RecipeSection):
    """How large pictures may get, which decides how many visual tokens they give; None: as the model has it.

    Which of the keys a model takes, its family says.

    Attributes:
        max_tiles: tiles that a picture is cut into at most, 1 or more, one more for the whole not counted.
        max_pixels: pixels of a picture at most, 1 or more; a larger one is made smaller.
        height: of every picture, or of what it must fit into, in pixels, 1 or more; goes with width.
        width: likewise, 1 or more; goes with height.
    """

    max_tiles: Count | None = None
    max_pixels: Count | None = None
    height: Count | None = None
    width: Count | None = None

    @property
    def given(self) -> tuple[str, ...]:
        """The keys that have a value."""
        return tuple(key for key, value in self if value is not None)

    @model_validator(mode="wrap")
    @classmethod
    def _one_way(cls, value: Any, handler: Callable[[Any], Self]) -> Self:
        given = {k for k, v in value.items() if v is not None} if isinstance(value, dict) else set()
        whole = len(given & set(cls.model_fields)) < 2 and not given & {"height", "width"}
        problem = None
        if not whole and given != {"height", "width"}:
            problem = "give max_tiles, or max_pixels, or height and width together"
        result: Self = apply_rule(value, handler, problem)
        return result


class FidelitySection(RecipeSection):
    """Limits of export fidelity: compressed torch model against its own graphs, on logits.

    None takes the default of the export's dtype, see `fidelity_thresholds`.

    Attributes:
        max_abs: largest absolute difference, 0 or more, in logits.
        max_relative: largest difference relative to the reference, 0 or more.
        min_cosine: least cosine similarity, -1 to 1.
    """

    max_abs: NotNegative | None = None
    max_relative: NotNegative | None = None
    min_cosine: Cosine | None = None


class LossSection(RecipeSection):
    """Limits of compression loss: original model against the artifact; None: reported, not judged.

    Attributes:
        max_kl: mean KL divergence of next-token distributions, in nats, 0 or more.
        min_agreement: share of equal most likely next tokens, 0 to 1.
        min_common_prefix: mean length of the common greedy prefix as a share of the answer, 0 to 1.
        min_exact_match: share of the artifact's answers that are right by `validate.score`, 0 to 1; of a
            graded score its mean.
        min_exact_match_kept: the same, divided by the original's share, 0 or more. Where no right answers
            are known, `agreement` must reach it, unless that has a limit of its own.
    """

    max_kl: NotNegative | None = None
    min_agreement: Share | None = None
    min_common_prefix: Share | None = None
    min_exact_match: Share | None = None
    min_exact_match_kept: NotNegative | None = None


class ValidateSection(RecipeSection):
    """The two checks, and what they must show.

    Attributes:
        data: jsonl file of held-out samples.
        samples: how many of them, 1 or more; None: all.
        seed: seed of the draw, 0 to 2**32 - 1.
        max_new_tokens: length of greedy answers, in tokens, 1 or more.
        score: what makes an answer right, see `compressor.samples.scores`; a module of the user's own is
            imported to export and to sweep, never because an artifact names one.
        keep_pictures: which pictures of the data the artifact holds: `all`, as they are, so that it can be
            checked again without the data; `samples`: small copies of those that the report shows; `none`.
        fidelity: limits of export fidelity.
        loss: limits of compression loss.
    """

    data: DataPath | None = None
    samples: Count | None = None
    seed: Seed = 0
    max_new_tokens: Count = 32
    score: ScoreName = "exact"
    keep_pictures: Literal["none", "samples", "all"] = "samples"
    fidelity: FidelitySection = FidelitySection()
    loss: LossSection = LossSection()
