"""A streamed export of LLaVA-1.5-7B's size, an answer of it, a calibration: memory of each, and wall time.

    python -m benchmarks.streaming /some/folder

The folder gets a model of LLaVA-1.5-7B's files, names and shapes with random float16 weights (14 GB, a shard
at a time), then the artifact, as large again. Both are deleted afterwards. Copying the model's weights to the
same disk is timed beside. The artifact answers a question about a picture, float weights mapped; the model
is calibrated on questions, its layers read when they run. Reads /proc, so Linux alone.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from compressor.recipe import dump_recipe
from tests.llava_7b import make_llava_7b
from vtcompress import load_recipe

GB, MB = 1e9, 1e6
LAYERS, TOWER = 32, 24
EXAMPLE = Path(__file__).parent.parent / "examples" / "digits-llava"
EVERY_SECONDS = 0.1


class Watched(NamedTuple):
    """What a command took.

    Attributes:
        seconds: wall time.
        peak: highest sum of its processes' resident memory, bytes.
        own: of that, what is no page of a file.
    """

    seconds: float
    peak: int
    own: int

    def __str__(self) -> str:
        sizes = (
            f"{self.peak / MB:,.0f} MB resident, {self.own / MB:,.0f} MB of it not pages of files"
        )
        return f"{self.seconds:.0f} s, peak memory {sizes}"


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
    return Watched(time.monotonic() - started, peak, own)


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


def main() -> None:
    """Make the model, export it, ask it, calibrate it, and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with room for 41 GB")
    parser.add_argument("--layers", type=int, default=LAYERS, help="of the decoder")
    parser.add_argument("--recipe", default="shortv-llava-1.5-7b", help="of the export")
    parser.add_argument("--weights", default="float", choices=("float", "int8", "int4"))
    parser.add_argument("--tokens", type=int, default=4, help="of the answer, at most")
    parser.add_argument("--samples", type=int, default=2, help="of the calibration")
    given = parser.parse_args()
    work: Path = given.folder
    work.mkdir(parents=True)
    try:
        started = time.monotonic()
        model = make_llava_7b(
            work / "model",
            text={"num_hidden_layers": given.layers},
            vision={"num_hidden_layers": TOWER},
        )
        size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
        print(f"model: {size / GB:.2f} GB, written in {time.monotonic() - started:.0f} s")
        print(f"copying its weights: {copied(model, work / 'copy'):.0f} s", flush=True)
        artifact = work / "artifact"
        took = vtcompress(
            "export", f"--recipe={given.recipe}", f"--model={model}", "--dtype=float16",
            f"--weights={given.weights}", "--stream", f"--output={artifact}",
        )  # fmt: skip
        weights = (artifact / "weights.bin").stat().st_size
        print(f"export: {took}; weights.bin {weights / GB:.2f} GB", flush=True)
        took = vtcompress(
            "generate", str(artifact), f"--image={EXAMPLE / 'heldout' / '0001.png'}",
            "--prompt=read row 1", f"--max-new-tokens={given.tokens}", "--stats", "--no-verify",
            *(["--mapped"] if given.weights == "float" else []),
        )  # fmt: skip
        print(f"an answer of {given.tokens} tokens: {took}", flush=True)
        # Random weights lose much wherever visual tokens leave; the recipe would refuse to.
        recipe = load_recipe("vtw").override({"compress.visual_exit.max_kl": 100.0})
        (work / "vtw.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
        took = vtcompress(
            "calibrate", f"--recipe={work / 'vtw.yaml'}", f"--model={model}",
            f"--data={EXAMPLE / 'calibration.jsonl'}",
            f"--samples={given.samples}", "--stream", f"--output={work / 'profile.json'}",
        )  # fmt: skip
        print(f"calibration of {given.samples} questions, recipe vtw: {took}")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
