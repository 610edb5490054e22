"""The manifest: what an artifact holds, how it was made and what was measured. Read without torch."""

import platform
from importlib import metadata
from typing import Literal

from pydantic import Field

from compressor.contract.healing import Healed
from compressor.facts import Facts, ModelFacts, Positive
from compressor.families.pictures.steps import PictureSteps
from compressor.families.pictures.text import PictureForm, PictureText, TextRun
from compressor.version import __version__
from export.graphs.spec import GraphSpec
from export.results.bench import BenchReport, Ratio
from export.results.checker import CheckerReport
from export.results.fidelity import FidelityReport
from export.results.float16 import Float16Ranges
from export.results.footprint import Footprint
from export.results.loss_report import LossReport
from export.results.quantization import QuantizationReport
from export.results.rewrite import RewriteReport
from export.results.verdict import Check, Judged, Verdict, verdict_of, verdict_words, worst

# Format 1 is read too: there, losses count no answers and times are the least of the rounds.
MANIFEST_FORMAT = 2
MANIFEST_FILE = "manifest.json"

TOOLS = (
    "torch",
    "transformers",
    "optimum",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "numpy",
    "tokenizers",
)


class FileEntry(Facts):
    """One file of the artifact."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class Predicted(Facts):
    """Predicted figures of one prefill from an empty cache, against the naive original.

    Attributes:
        images: of the prompt.
        visual: V of the prompt.
        text: T of the prompt.
        flops_original: every row in every layer.
        flops: of the plan.
        speedup: their ratio.
        kv_bytes_original: KV cache after the prefill.
        kv_bytes: of the plan.
        kv_buffer_bytes_original: what buffers of fixed caches occupy at most, in the original; None:
            caches grow.
        kv_buffer_bytes: of the plan, likewise.
    """

    images: Positive
    visual: Positive
    text: Positive
    flops_original: Positive
    flops: Positive
    speedup: Ratio
    kv_bytes_original: Positive
    kv_bytes: Positive
    kv_buffer_bytes_original: Positive | None = None
    kv_buffer_bytes: Positive | None = None


class Compared(Facts):
    """What came of comparing a backend's numbers with ONNX Runtime's on the CPU: `export.backends.compared`.

    Attributes:
        backend: that was compared.
        precision: it ran in.
        passed: whether its numbers and answers were within the limits.
    """

    backend: str
    precision: str
    passed: bool


class KnownFacts(Facts):
    """What known answers an artifact holds: `vtcompress selftest` compares a device with them.

    Attributes:
        selftest_format: of their file.
        pictures: that they are about.
        parts: of which something is known.
        layers: between which states are known.
        left_out: what could not be recorded, and why.
    """

    selftest_format: Positive
    pictures: int
    parts: tuple[str, ...]
    layers: int
    left_out: tuple[str, ...] = ()


class Manifest(Judged):
    """Everything a reader must know of an artifact; stored as `manifest.json`.

    Attributes:
        tools: versions of what made it.
        image_token: text of the image token in a rendered prompt.
        picture_steps: what is done to a picture before the vision graph, in order; None: the artifact is
            older, and its processor's files tell it.
        picture_text: what the image token is replaced by.
        steps_beside_others: in place of `picture_steps` where a prompt has several pictures; None: the same.
        files: every other file of the artifact by its relative name.
        checker: outcome of the ONNX package's own checker; None: not run.
        fidelity: outcome of the first check; None: not run.
        loss: outcome of the second check; None: not run.
        rewrite: how far the rewritten model, nothing cut, is from the original; None: not compared. An export
            stops where it is not the original.
        quantization: how the decoder's matrices are stored in whole numbers, and what that loses; None: they
            are float.
        healed: how weights of the compressed decoder were trained; None: they are the original's.
        healed_digest: sha256 of the file of what changed; empty: none did.
        unhealed_loss: what the plan loses on the same questions with the original's weights, in torch; None:
            nothing was healed, or compression loss was not measured.
        ranges: how large values of float16 graphs get, and which nodes stay in float32; None: not float16.
        missing_kernels: operators of bfloat16 graphs that the CPU of the export could not run; the checks
            then ran on the graphs' float32 shadows, see `export.checks.bfloat16`.
        streamed: weights went from the original's files to the artifact's one at a time: no model was in
            memory, and what needs one whole was not run; fidelity and loss are those by layer, if any.
        unparted: why a streamed decoder was not checked by layer; empty: it was, or is none.
        passes: what graph passes say of themselves that change what graphs compute.
        measured: times beside the naive original; None: not measured.
        memory: resident memory of a process that runs the artifact; None: not measured.
        selftest: which known answers lie beside; None: none.
        compared: other backends that were compared with ONNX Runtime since the export.
        peak_memory_bytes: resident memory of the process that exported, at its highest; 0: unknown.
        peak_memory_by_stage: likewise of each stage of the export, in the order in which they ran; None: the
            system does not tell, or the artifact is older.
    """

    manifest_format: Literal[1, 2] = 2
    tools: dict[str, str]
    model: ModelFacts
    model_digest: str
    image_token: str
    picture_steps: PictureSteps | None = None
    picture_text: PictureText = TextRun()
    steps_beside_others: PictureSteps | None = None
    dtype: Literal["float32", "float16", "bfloat16"]
    logits: Literal["last", "all"]
    graphs: tuple[GraphSpec, ...]
    files: dict[str, FileEntry]
    predicted: Predicted
    checker: CheckerReport | None = None
    fidelity: FidelityReport | None = None
    loss: LossReport | None = None
    rewrite: RewriteReport | None = None
    quantization: QuantizationReport | None = None
    healed: Healed | None = None
    healed_digest: str = ""
    unhealed_loss: LossReport | None = None
    ranges: Float16Ranges | None = None
    missing_kernels: tuple[str, ...] = ()
    streamed: bool = False
    unparted: str = ""
    passes: tuple[str, ...] = ()
    measured: BenchReport | None = None
    memory: Footprint | None = None
    selftest: KnownFacts | None = None
    compared: tuple[Compared, ...] = ()
    peak_memory_bytes: int
    peak_memory_by_stage: dict[str, int] | None = None

    def _judge(self) -> Verdict:
        checks = [verdict_of(check) for check in (self.fidelity, self.loss)]
        if self.streamed:  # nobody knows whether the original is what the rewritten model is
            checks.append(verdict_of(self.rewrite))
        # The checker is younger than the other two: where it is missing, nothing is missing.
        return worst(checks if self.checker is None else [self.checker.verdict, *checks])

    @property
    def picture_form(self) -> PictureForm:
        """How the model takes pictures."""
        return PictureForm(
            token=self.image_token,
            steps=self.picture_steps,
            text=self.picture_text,
            steps_beside_others=self.steps_beside_others,
        )

    @property
    def failures(self) -> tuple[str, ...]:
        """What the checks that ran have missed."""
        checks = (self.checker, self.fidelity, self.loss)
        return tuple(line for check in checks if check is not None for line in check.failures)


def tool_versions(model: ModelFacts | None = None) -> dict[str, str]:
    """Return the versions of this tool, Python and the packages that shape an artifact of a model."""
    versions = {"vtcompress": __version__, "python": platform.python_version()}
    for name in TOOLS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if model is not None and (package := model.family_package):
        versions[f"{package} (family {model.family})"] = metadata.version(package)
    return versions


def shortcoming(manifest: Manifest) -> str | None:
    """Return in one line why an artifact's answers are not to be relied on; None if both checks passed."""
    if manifest.verdict is Verdict.PASSED:
        return None
    if manifest.verdict is Verdict.FAILED:
        more = len(manifest.failures) - 1
        also = f", and {more} more" if more else ""
        return f"this artifact failed its checks: {manifest.failures[0]}{also}"
    checks: tuple[tuple[str, Check | None], ...] = (
        ("export fidelity", manifest.fidelity),
        ("compression loss", manifest.loss),
    )
    if manifest.streamed:
        checks = (
            *checks,
            ("comparison of the rewritten model with the original", manifest.rewrite),
        )
    open_ = "; ".join(
        f"{name}: {verdict_words(check)}"
        for name, check in checks
        if verdict_of(check) is not Verdict.PASSED
    )
    warned = manifest.loss.warnings if manifest.loss else ()
    changed = f" ({'; '.join(warned)})" if warned else ""
    return f"how far this artifact's answers can be relied on is not known: {open_}{changed}"
