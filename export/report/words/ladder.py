"""The ladder of checks: how far an artifact was checked, what each rung proves, and what it does not.

The only place that says what may be claimed. A claim reaches as far as the last rung that ran: graphs that
parse are not built, engines that were built ahead of time have not run, and what ran on one GPU ran on no
other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.artifact.engine_set import artifact_digest, engine_sets
from export.artifact.manifest import Compared, Manifest
from export.backends.backend import Backend
from export.backends.registry import BACKENDS
from export.results.backend_parity import BackendParity
from export.results.verdict import Verdict, verdict_of


@dataclass(frozen=True)
class Rung:
    """One check.

    Attributes:
        proves: what follows if it passed, and what does not.
        outcome: what became of it; a rung is always judged.
        detail: figures, or why it did not run.
        on_gpu: it ran on one, well or not.
    """

    name: str
    proves: str
    outcome: Verdict
    detail: str
    on_gpu: bool = False


@dataclass(frozen=True)
class EngineFacts:
    """What reports need to know of a set of engines that belongs to the artifact as it is.

    Attributes:
        target: the backend that runs them.
        compute_capabilities: that it was built for, such as `SM86`.
        version: of the builder.
        engines: graphs that have one.
        device: GPU that it was built on; empty: none, it was built ahead of time.
        parity: how its engines ran; None: they never did.
    """

    target: str
    compute_capabilities: tuple[str, ...]
    version: str
    engines: tuple[str, ...]
    device: str = ""
    parity: BackendParity | None = None

    @property
    def words(self) -> str:
        """Return what was built, for what, by what."""
        place = f" on {self.device}" if self.device else ""
        served = ", ".join(self.compute_capabilities)
        return f"{', '.join(self.engines)} for {served}{place} (builder {self.version})"


WITH_ENGINES = tuple(backend for backend in BACKENDS.values() if backend.proofs)
"""The backends that run engines."""

PROVES = {
    "ONNX checker": (
        "the files are valid ONNX and every shape in them follows from their inputs; says nothing of numbers"
    ),
    "ONNX Runtime numerics": (
        "the graphs compute what the compressed torch model computes, in ONNX Runtime on a CPU; says nothing "
        "of other backends"
    ),
    "Other backends": (
        "the named backends gave ONNX Runtime's numbers on the machine that ran them; says nothing of other "
        "machines"
    ),
    "Engine run and parity": (
        "the engines ran on the named GPU and gave ONNX Runtime's numbers there; says nothing of other GPUs"
    ),
    **{name: words for backend in WITH_ENGINES for name, words in backend.proofs},
}
"""What each rung proves and what it does not, by its name."""


def engine_facts(folder: Path, manifest: Manifest) -> tuple[EngineFacts, ...]:
    """Return the facts of every set of engines that belongs to an artifact as it is now.

    Raises:
        ArtifactError: a set's manifest or its record of a run is broken.
    """
    digest = artifact_digest(manifest)
    return tuple(
        EngineFacts(
            target=opened.facts.target,
            compute_capabilities=opened.facts.compute_capabilities,
            version=opened.facts.version,
            engines=tuple(entry.graph for entry in opened.facts.engines),
            device=opened.facts.device,
            parity=BackendParity.load(opened.folder),
        )
        for opened in engine_sets(folder)
        if opened.facts.artifact == digest
    )


COLUMNS = ("check", "outcome", "what it proves", "found")


def ladder(manifest: Manifest, engines: Sequence[EngineFacts] = ()) -> tuple[Rung, ...]:
    """Return every rung of an artifact, lowest first.

    Args:
        manifest: of the artifact.
        engines: its sets of engines; those of an earlier state of the artifact are not among them.
    """
    built = (rung for backend in WITH_ENGINES for rung in _built(backend, engines))
    rungs = (_checker(manifest), _numerics(manifest), *_others(manifest.compared))
    return (*rungs, *built, _run(engines))


def _rung(name: str, outcome: Verdict, detail: str, *, on_gpu: bool = False) -> Rung:
    return Rung(name, PROVES[name], outcome, detail, on_gpu)


def _checker(manifest: Manifest) -> Rung:
    report = manifest.checker
    detail = "the artifact was made before this check was; export it anew"
    if report is not None:
        files = f"{', '.join(report.files)} (onnx {report.version})"
        detail = "; ".join(report.failures) or files
    return _rung("ONNX checker", verdict_of(report), detail)


def _numerics(manifest: Manifest) -> Rung:
    report, detail = manifest.fidelity, "export fidelity was not measured"
    if report is not None:
        worst = report.worst_abs.max_abs
        detail = f"{report.calls} outputs, largest difference {worst:.2e} ({manifest.dtype})"
    return _rung("ONNX Runtime numerics", verdict_of(report), detail)


def _others(compared: Sequence[Compared]) -> list[Rung]:
    """Return the rung of backends that need no engines; none: no artifact must run in them."""
    if not compared:
        return []
    on_gpu = {name for name, backend in BACKENDS.items() if backend.on_gpu}
    words = [
        f"{c.backend} ({c.precision}){' on a GPU' if c.backend in on_gpu else ''}: "
        f"{'passed' if c.passed else 'missed'}"
        for c in compared
    ]
    outcome = Verdict.PASSED if all(c.passed for c in compared) else Verdict.FAILED
    ran = any(c.backend in on_gpu for c in compared)
    return [_rung("Other backends", outcome, "; ".join(words), on_gpu=ran)]


def _built(backend: Backend, engines: Sequence[EngineFacts]) -> list[Rung]:
    sets = [facts for facts in engines if facts.target == backend.name]
    *first, last = (name for name, _ in backend.proofs)
    if not sets:
        # What needs a GPU to be built is no gap where there is none.
        why = f"no engine set; `vtcompress build ARTIFACT --target {backend.name}`"
        return [_rung(name, Verdict.NOT_RUN, why) for name in (*first, last) if backend.ahead]
    parsed = ", ".join(dict.fromkeys(name for facts in sets for name in facts.engines))
    versions = ", ".join(dict.fromkeys(facts.version for facts in sets))
    by = f"{parsed} ({backend.title} {versions})"
    built = _rung(last, Verdict.PASSED, "; ".join(facts.words for facts in sets))
    return [*(_rung(name, Verdict.PASSED, by) for name in first), built]


def _run(engines: Sequence[EngineFacts]) -> Rung:
    name = "Engine run and parity"
    ran = [(facts, facts.parity) for facts in engines if facts.parity is not None]
    if not ran:
        first, *more = (backend.name for backend in WITH_ENGINES)
        why = f"needs a GPU: `vtcompress validate ARTIFACT --backend {first}` (or {', '.join(more)}) on it"
        return _rung(name, Verdict.NOT_RUN, why if engines else f"no engine set; {why}")
    # The rung proves numbers; what answers lose is judged where limits for it are set.
    failed = any(parity.failures for _, parity in ran)
    words = "; ".join(_parity_words(facts, parity) for facts, parity in ran)
    return _rung(name, Verdict.FAILED if failed else Verdict.PASSED, words, on_gpu=True)


def _parity_words(facts: EngineFacts, parity: BackendParity) -> str:
    outputs = parity.outputs
    place = parity.device or facts.device or ", ".join(facts.compute_capabilities)
    missed = f"; missed: {'; '.join(parity.failures)}" if parity.failures else ""
    return (
        f"{facts.target} on {place}: {outputs.calls} outputs, largest difference "
        f"{outputs.worst_abs.max_abs:.2e} from ONNX Runtime on the CPU{missed}"
    )


def claim(rungs: Sequence[Rung]) -> str:
    """Return in a sentence how far the artifact was checked, and no further."""
    highest = next((rung for rung in reversed(rungs) if rung.outcome is not Verdict.NOT_RUN), None)
    if highest is None:
        return "Nothing was checked."
    if failed := [rung.name for rung in rungs if rung.outcome is Verdict.FAILED]:
        return f"Failed: {', '.join(failed)}."
    if highest.on_gpu:
        return f"Checked up to: {highest.name} ({highest.detail})."
    on_gpu = [f"On a GPU: {rung.name} ({rung.detail})" for rung in rungs if rung.on_gpu]
    return f"Checked up to: {highest.name}. {'; '.join(on_gpu) or 'Nothing was run on a GPU'}."


def ran_on_gpu(rungs: Sequence[Rung]) -> bool:
    """Whether anything ran on a GPU, well or not."""
    return any(rung.on_gpu for rung in rungs)
