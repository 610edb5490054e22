"""The whole ladder of checks on a machine with a GPU, in one command and under eight minutes.

    python -m tests.gpu.ladder                              # on the GPU
    python -m tests.gpu.ladder --device cpu --scale tiny    # a rehearsal without one: measures nothing of use

Needs the project and a torch with CUDA; what else is installed is used, what is not is skipped with the
reason. Steps: what the machine has; an artifact in float16, its engines, every backend beside ONNX Runtime on
the CPU; the compressed decoder in torch beside itself in float32 on the CPU; a calibration
beside the CPU's; times of decoders of LLaVA-1.5-7B's shape, in torch and, where `--graphs` names their ONNX
graphs, in ONNX Runtime. A step that cannot run does not end the others. Writes `ladder.json` and `ladder.md`.

Exit code 1 if a step that ran failed. The rehearsal is a test; docs/performance.md has what a GPU gave.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.gpu.answers import answers_agree, swept
from tests.gpu.profiles import DIGITS, agreement_of, calibrated

if TYPE_CHECKING:
    from tests.gpu.decoders import How, Row

ROOT = DIGITS.parent.parent
ENGINES = ("tensorrt", "tensorrt-rtx")
STEP_SECONDS = 240.0


class Skip(Exception):  # noqa: N818 - not an error
    """A step cannot run here; says why."""


class Failed(Exception):  # noqa: N818 - the script's own word
    """A step ran and found something wrong."""


@dataclass
class Step:
    """One step: what it proves, and what became of it."""

    name: str
    proves: str
    outcome: str = "skipped"
    detail: str = ""
    seconds: float = 0.0


@dataclass
class Run:
    """One run of the script.

    Attributes:
        options: of the command line.
        folder: for what is made on the way.
        steps: done so far.
        facts: what `vtcompress doctor` found.
        artifacts: that were exported or given.
        rows: of the tables of times.
        tables: in Markdown.
    """

    options: argparse.Namespace
    folder: Path
    steps: list[Step] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Path] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)

    def step(self, name: str, proves: str, work: Callable[[], str]) -> None:
        """Do one step, print it, and go on whatever becomes of it."""
        print(f"\n== {name}\n   proves: {proves}", flush=True)
        step, start = Step(name, proves), time.perf_counter()
        try:
            step.detail, step.outcome = work(), "passed"
        except Skip as reason:
            step.detail = str(reason)
        except Exception as failure:  # noqa: BLE001 - later steps still tell something
            step.detail, step.outcome = f"{type(failure).__name__}: {failure}", "FAILED"
        step.seconds = time.perf_counter() - start
        self.steps.append(step)
        print(f"   {step.outcome} ({step.seconds:.1f} s): {step.detail}", flush=True)

    def runs(self, backend: str) -> bool:
        """Whether doctor says that a backend can run here."""
        return any(a["backend"] == backend and a["runs"] for a in self.facts.get("abilities", ()))

    def why_not(self, backend: str) -> str:
        """Return what doctor says of a backend, with the remedy."""
        found = next((a for a in self.facts.get("abilities", ()) if a["backend"] == backend), None)
        return f"{backend}: {found['words']}; {found['remedy']}" if found else "doctor did not run"


def vtcompress(*arguments: str, wanted: tuple[int, ...] = (0,)) -> str:
    """Run the command line in a process of its own; return its stdout.

    Raises:
        Failed: it ended with another code than those wanted, or took too long.
    """
    command = [sys.executable, "-m", "vtcompress", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=STEP_SECONDS, check=False, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"vtcompress {arguments[0]}: took more than {STEP_SECONDS:.0f} s") from None
    if done.returncode not in wanted:
        said = "; ".join(done.stderr.strip().splitlines()[-3:])
        raise Failed(f"vtcompress {' '.join(arguments[:3])}: exit code {done.returncode}: {said}")
    return done.stdout


def device_facts(run: Run) -> str:
    """Ask doctor, and torch for the GPU that it sees."""
    run.facts = json.loads(vtcompress("--json", "doctor"))
    import torch

    run.facts["torch"] = torch.__version__
    run.facts["device"] = "CPU"
    if run.options.device == "cuda":
        if not torch.cuda.is_available():
            raise Failed(
                "torch sees no CUDA device; install torch's CUDA build and NVIDIA's driver, or "
                "rehearse with --device cpu --scale tiny"
            )
        run.facts["device"] = torch.cuda.get_device_name()
    driver = run.facts["driver"] or "none"
    return f"{run.facts['device']}, driver {driver}, torch {torch.__version__}"


def export(run: Run) -> str:
    """Export the bundled model in float16, or take the artifacts that were given."""
    if run.options.artifact:
        run.artifacts = run.options.artifact
        return f"given: {', '.join(path.name for path in run.artifacts)}"
    output = run.folder / "artifact"
    vtcompress(
        "export",
        "--recipe=shortv",
        f"--model={DIGITS / 'model'}",
        f"--data={DIGITS / 'calibration.jsonl'}",
        "--samples=8",
        "--validate-samples=16",
        f"--validate-data={DIGITS / 'heldout.jsonl'}",
        "--dtype=float16",
        "--bench-rounds=0",
        # One wrong answer of 16 would miss the recipe's limit: what is looked for here are numbers.
        "--set=validate.loss.min_exact_match_kept=null",
        "--set=validate.keep_pictures=all",
        f"--output={output}",
    )
    run.artifacts = [output]
    return f"{DIGITS.name}, shortv, float16"


def needed(run: Run) -> list[Path]:
    """Return the artifacts.

    Raises:
        Skip: there are none.
    """
    if not run.artifacts:
        raise Skip("there is no artifact: the export before did not end well")
    return run.artifacts


def build(run: Run, target: str) -> str:
    """Build the artifacts' engines for the GPU that is here."""
    artifacts = needed(run)
    if run.options.device != "cuda":
        raise Skip("needs a GPU (--device cuda); ahead-of-time builds are in the test suite")
    if not run.runs(target):
        raise Skip(run.why_not(target))
    more = ()
    if target == "tensorrt-rtx":
        more = (f"--compute-capability={run.facts['gpus'][0]['capability']}",)
    of_each(
        artifacts, lambda artifact: vtcompress("build", str(artifact), "--target", target, *more)
    )
    return f"engines of {len(artifacts)} artifacts for {run.facts['device']}"


def parity(run: Run, backend: str) -> str:
    """Compare a backend with ONNX Runtime on the CPU."""
    artifacts = needed(run)
    if not run.runs(backend):
        raise Skip(run.why_not(backend))

    def compare(artifact: Path) -> str:
        found = json.loads(
            vtcompress("--json", "validate", str(artifact), "--backend", backend, wanted=(0, 3))
        )
        outputs = found["outputs"]
        words = (
            f"{outputs['calls']} outputs, largest difference {outputs['worst_abs']['max_abs']:.2e}"
        )
        failures = [*outputs["failures"], *((found["loss"] or {}).get("failures", ()))]
        if failures:
            raise Failed(f"{words}; {'; '.join(failures[:3])}")
        return words

    return of_each(artifacts, compare)


def of_each(artifacts: Sequence[Path], work: Callable[[Path], str]) -> str:
    """Do one thing to every artifact; one that fails does not end the others.

    Raises:
        Failed: one failed; tells of all.
    """
    words, failed = [], False
    for artifact in artifacts:
        try:
            said = work(artifact)
        except Failed as failure:
            said, failed = f"FAILED: {failure}", True
        words.append(f"{artifact.name}: {said}" if said else artifact.name)
        print(f"   {words[-1][:2000]}", flush=True)
    if failed:
        raise Failed("; ".join(words))
    return "; ".join(words)


def torch_agrees(run: Run) -> str:
    """Run small compressed decoders on the device and in float32 on the CPU."""
    import torch

    from tests.gpu.decoders import LEAST_COSINE, agreement

    found = agreement(torch.device(run.options.device))
    words = ", ".join(f"{name} {cosine:.6f}" for name, cosine in found.items())
    if not min(found.values()) >= LEAST_COSINE:
        raise Failed(f"least cosine of logits: {words}; wanted {LEAST_COSINE}")
    return f"least cosine of logits: {words}"


def calibration(run: Run) -> str:
    """Calibrate the bundled model on the device and on the CPU."""
    device = run.options.device
    if device != "cuda":
        raise Skip("needs a GPU (--device cuda); on the CPU both would be the same run")
    wanted, found = (calibrated(vtcompress, run.folder, where) for where in ("cpu", device))
    words, agree = agreement_of(wanted, found)
    if not agree:
        raise Failed(words)
    return words


def answers(run: Run) -> str:
    """Let the bundled model, and plans of it, answer on the device and on the CPU."""
    device = run.options.device
    if device != "cuda":
        raise Skip("needs a GPU (--device cuda); on the CPU both would be the same run")
    wanted, found = (swept(vtcompress, run.folder, where) for where in ("cpu", device))
    words, agree = answers_agree(wanted, found)
    if not agree:
        raise Failed(words)
    return words


def times(run: Run, how: "How") -> str:
    """Time decoders of 7B's shape, and check their caches against the prediction."""
    import torch

    from tests.gpu.decoders import measure, scale

    o = run.options
    device = torch.device(o.device)
    if how == "one CUDA graph a call" and device.type != "cuda":
        raise Skip("needs a GPU (--device cuda)")
    return told(run, f"torch, {how}", measure(scale(o.scale), device, o.rounds, o.seconds, how))


def graph_times(run: Run, backend: str) -> str:
    """Time graphs of 7B's shape, and tell which of their nodes the GPU does not run."""
    o = run.options
    if o.graphs is None:
        raise Skip("no graphs: write them with `python -m tests.gpu.graphs FOLDER`, give --graphs")
    if not run.runs(backend):
        raise Skip(run.why_not(backend))
    from tests.gpu.decoders import scale
    from tests.gpu.graphs import fill, measure

    fill(o.graphs)
    rows, left = measure(scale(o.scale), o.graphs, backend, o.rounds, o.seconds)
    words = [f"{name}: {kinds}" for name, kinds in left.items()]
    return "; ".join([told(run, f"ONNX graphs, {backend}", rows), *words])


def told(run: Run, title: str, rows: "list[Row]") -> str:
    """Put rows of times into the results; return what they show.

    Raises:
        Failed: one is no number, or its caches have another size than predicted.
    """
    from tests.gpu.decoders import table

    run.rows += [{"of": title, **asdict(row)} for row in rows]
    text = table(rows)
    print(text, flush=True)
    run.tables.append(f"### {title}\n\n{text}\n")
    wrong = [f"{row.plan} at {row.visual}" for row in rows if not row.right]
    if wrong:
        raise Failed(f"no numbers, or caches of another size than predicted: {', '.join(wrong)}")
    return f"{len(rows)} rows; caches have the predicted sizes"


def summary(run: Run) -> str:
    """Return everything as Markdown."""
    f = run.facts
    lines = [
        f"# Ladder on {f.get('device', 'an unknown device')}",
        f"Driver {f.get('driver') or 'none'}, torch {f.get('torch', '-')}, {f.get('system', '-')}; scale "
        f"{run.options.scale}, random weights, batch 1. Ratios are original / plan inside one round, median "
        "and quartiles; predicted are FLOPs of the prefill.",
    ]
    lines += ["| step | outcome | proves | found |\n|---|---|---|---|"]
    clean = [
        [str(c).replace("|", "/") for c in (s.name, s.outcome, s.proves, s.detail)]
        for s in run.steps
    ]
    lines[-1] += "".join(f"\n| {' | '.join(cells)} |" for cells in clean)
    lines += run.tables
    if run.options.device != "cuda":
        lines.append("A rehearsal on the CPU: these times say nothing of a GPU.")
    return "\n\n".join(lines) + "\n"


def climb(run: Run) -> None:
    """Do every step."""
    o = run.options
    run.step("device", "what this machine has", lambda: device_facts(run))
    if run.steps[0].outcome == "FAILED" and o.device == "cuda":
        return
    run.step(
        "export", "the artifact passes its checks in ONNX Runtime on the CPU", lambda: export(run)
    )
    for target in ENGINES:
        proves = f"{target} has kernels for the artifact's sizes on this GPU"
        run.step(f"build {target}", proves, lambda target=target: build(run, target))
    backends = [*ENGINES, "onnxruntime-cuda", *(["openvino"] if o.device == "cpu" else [])]
    for backend in backends:
        proves = f"{backend} gives ONNX Runtime's numbers here"
        run.step(f"parity {backend}", proves, lambda backend=backend: parity(run, backend))
    run.step(
        "torch parity",
        "the compressed decoder in torch computes on this device what it does on the CPU",
        lambda: torch_agrees(run),
    )
    run.step(
        "calibration",
        "`calibrate --device` gives the CPU's profile of the bundled model, in float32",
        lambda: calibration(run),
    )
    run.step(
        "answers",
        "`sweep --device` gives the CPU's answers, of the bundled model and of it compressed",
        lambda: answers(run),
    )
    proves = "how much of the predicted saving comes out here; no engine is timed"
    hows: list[How] = ["eager", "one CUDA graph a call", *o.compile]
    for how in hows:
        run.step(f"times, {how}", proves, lambda how=how: times(run, how))
    backend = "onnxruntime-cuda" if o.device == "cuda" else "onnxruntime"
    run.step("times of graphs", proves, lambda: graph_times(run, backend))


def main() -> int:
    """Run every step; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.ladder", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--scale", choices=("7b", "tiny"), default="7b")
    parser.add_argument("--rounds", type=int, default=12, help="of each call at most")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each kind of call")
    parser.add_argument(
        "--compile",
        action="store_const",
        const=["torch.compile"],
        default=[],
        help="time torch.compile as well: minutes",
    )
    parser.add_argument(
        "--artifact",
        type=Path,
        action="append",
        help="instead of exporting the bundled model; may be given several times",
    )
    parser.add_argument("--graphs", type=Path, help="folder of `python -m tests.gpu.graphs`")
    parser.add_argument("--output", type=Path, default=Path("build/gpu-ladder"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vtcompress-ladder-") as name:
        run = Run(options, Path(name))
        climb(run)
        text = summary(run)
    document = {"facts": run.facts, "steps": [asdict(s) for s in run.steps], "times": run.rows}
    (options.output / "ladder.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    (options.output / "ladder.md").write_text(text, encoding="utf-8")
    print(f"\nwritten: {options.output}/ladder.json and ladder.md")
    return 1 if any(step.outcome == "FAILED" for step in run.steps) else 0


if __name__ == "__main__":
    sys.exit(main())
