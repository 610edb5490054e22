"""A streamed export of LLaVA-1.5-7B's size, an answer, a calibration, a loss: memory of each, and time.

    python -m benchmarks.streaming /some/folder

The folder gets a model of LLaVA-1.5-7B's files, names and shapes with random float16 weights (14 GB, a shard
at a time), then the artifact, as large again. Both are deleted afterwards. Copying the model's weights to the
same disk is timed beside. `--only` runs one of these, `--keep` leaves the model there for the next run.

- export: the artifact, both graphs checked by layer.
- answer: the artifact answers a question about a picture, float weights mapped.
- calibration: measures of questions, by default ShortV's and VTW's, layers read when they run.
- loss: another export, which asks both models questions, layer by layer.

Reads /proc, so Linux alone.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.calibrating import EXAMPLE, METHODS, calibrated
from benchmarks.decoder_models import in_own_process
from tests.llava_7b import make_llava_7b

GB, MB = 1e9, 1e6
LAYERS, TOWER = 32, 24
EVERY_SECONDS = 0.1


class Watched(NamedTuple):
    """What a command took.

    Attributes:
        seconds: wall time.
        processor: seconds of the processor, its processes' all together.
        peak: highest sum of its processes' resident memory, bytes.
        own: of that, what is no page of a file.
    """

    seconds: float
    processor: float
    peak: int
    own: int

    def __str__(self) -> str:
        sizes = (
            f"{self.peak / MB:,.0f} MB resident, {self.own / MB:,.0f} MB of it not pages of files"
        )
        times = f"{self.seconds:.0f} s, {self.processor:.0f} s of the processor"
        return f"{times}, peak memory {sizes}"


def tree(process: int) -> list[int]:
    """Return a process and all that came of it."""
    found = [process]
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        found += [one for child in task.read_text().split() for one in tree(int(child))]
    return found


def resident(process: int) -> tuple[int, int]:
    """Return a process's resident memory, and how much of it belongs to no file; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {k: int(v.split()[0]) * 1024 for k, v in (x.split(":", 1) for x in lines) if " kB" in v}
    return sizes.get("VmRSS", 0), sizes.get("RssAnon", 0)


def vtcompress(*arguments: str) -> Watched:
    """Run the command line; see `watch`."""
    return watch([sys.executable, "-m", "vtcompress", *arguments])


def watch(command: list[str]) -> Watched:
    """Run a command, and look at its processes meanwhile.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    started, peak, own = time.monotonic(), 0, 0
    before = processor_seconds()
    running = subprocess.Popen(command)
    while running.poll() is None:
        try:
            sizes = [resident(process) for process in tree(running.pid)]
        except OSError:  # one ended meanwhile
            continue
        peak = max(peak, sum(size for size, _ in sizes))
        own = max(own, sum(size for _, size in sizes))
        time.sleep(EVERY_SECONDS)
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command)
    return Watched(time.monotonic() - started, processor_seconds() - before, peak, own)


def processor_seconds() -> float:
    """Return what processes that this one started, and that have ended, took of the processor."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def copied(model: Path, folder: Path) -> float:
    """Return how many seconds copying the weights takes, until they are on the disk."""
    folder.mkdir()
    started = time.monotonic()
    for path in model.glob("*.safetensors"):
        shutil.copyfile(path, folder / path.name)
    os.sync()
    seconds = time.monotonic() - started
    shutil.rmtree(folder)
    return seconds


def made(work: Path, layers: int) -> Path:
    """Return the model's folder, written unless it is there; writing and copying it are timed."""
    model = work / "model"
    if model.is_dir():
        return model
    started = time.monotonic()
    half = make_llava_7b(
        work / "half",
        text={"num_hidden_layers": layers},
        vision={"num_hidden_layers": TOWER},
    )
    half.rename(model)
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    print(f"model: {size / GB:.2f} GB, written in {time.monotonic() - started:.0f} s")
    print(f"copying its weights: {copied(model, work / 'copy'):.0f} s", flush=True)
    return model


def exported(model: Path, artifact: Path, given: argparse.Namespace, *more: str) -> None:
    """Export the model, streamed, and print what that took."""
    took = vtcompress(
        "export", f"--recipe={given.recipe}", f"--model={model}", "--dtype=float16",
        f"--weights={given.weights}", "--stream", f"--output={artifact}", *more,
    )  # fmt: skip
    weights = (artifact / "weights.bin").stat().st_size
    print(f"export, {given.weights}: {took}; weights.bin {weights / GB:.2f} GB", flush=True)


def main() -> None:
    """Make the model, export it, ask it, calibrate it, and print what each took."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streaming",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole = ["export", "answer", "calibration", "loss"]
    parser.add_argument("folder", type=Path, help="with room for 41 GB")
    parser.add_argument("--only", nargs="+", choices=whole, default=whole)
    parser.add_argument("--keep", action="store_true", help="leave the model, or use what was left")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the decoder")
    parser.add_argument("--recipe", default="shortv-llava-1.5-7b", help="of the export")
    parser.add_argument("--weights", default="float", choices=("float", "int8", "int4"))
    parser.add_argument("--tokens", type=int, default=4, help="of the answer, at most")
    parser.add_argument("--samples", type=int, default=2, help="of the calibration and the loss")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=[*METHODS], help="of the calibration"
    )
    given = parser.parse_args()
    if "answer" in given.only and "export" not in given.only:
        parser.error("--only answer: it asks the artifact; add export")
    work: Path = given.folder
    work.mkdir(parents=True, exist_ok=given.keep)
    artifact = work / "artifact"
    try:
        model = made(work, given.layers)
        if "export" in given.only:
            exported(model, artifact, given)
        if "answer" in given.only:
            took = vtcompress(
                "generate", str(artifact), f"--image={EXAMPLE / 'heldout' / '0001.png'}",
                "--prompt=read row 1", f"--max-new-tokens={given.tokens}", "--stats", "--no-verify",
                *(["--mapped"] if given.weights == "float" else []),
            )  # fmt: skip
            print(f"an answer of {given.tokens} tokens: {took}", flush=True)
        shutil.rmtree(artifact, ignore_errors=True)
        if "calibration" in given.only:
            found = in_own_process(calibrated, model, given.samples, True, given.methods, True)
            print(
                f"calibration of {given.samples} questions, {' and '.join(given.methods)}: "
                f"{found.seconds:.0f} s, {found.processor:.0f} s of the processor, "
                f"peak memory {found.peak / MB:,.0f} MB, "
                f"{found.read / GB:.2f} GB of layers read",
                flush=True,
            )
        if "loss" in given.only:
            # Random weights lose whatever is cut; the recipe's bound would end the command with an error.
            exported(
                model, artifact, given, f"--validate-data={EXAMPLE / 'heldout.jsonl'}",
                f"--validate-samples={given.samples}", "--set=validate.loss.min_exact_match_kept=null",
            )  # fmt: skip
    finally:
        shutil.rmtree(artifact if given.keep else work, ignore_errors=given.keep)


if __name__ == "__main__":
    main()
