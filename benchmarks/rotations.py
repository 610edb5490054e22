"""Times OpenVINO's decoders with rotations fused, as it compiles them, beside kept apart, as `Runtime` does.

Run from the repository: `python -m benchmarks.rotations`. Needs the extras `compress` and `openvino`. The
decoders and prompts are this project's of `benchmarks.peers` (24 layers, hidden 896); both ways of a decoder
run in turns, one thread, in OpenVINO's own choice of precision.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.decoder import STEPS_PER_REPEAT
from benchmarks.decoder_models import add_size, in_own_process
from benchmarks.interleaved import huge_pages, in_turns, on_huge_pages, ratio
from benchmarks.peers.contenders import HUGGING_FACE, Contender, contenders, make_model
from benchmarks.peers.running import Loaded


def compared(one: Contender, folder: Path, layers: int, repeats: int) -> str:
    """Return a line of a decoder: each time of the fused one divided by that of the other."""
    both = {
        apart: Loaded(one, folder, layers, threads=1, rotations_apart=apart)
        for apart in (False, True)
    }
    prefill = in_turns(
        {str(apart): each.calls["prefill"] for apart, each in both.items()}, repeats=repeats
    )
    steps = in_turns(
        {str(apart): each.calls["decode"] for apart, each in both.items()},
        repeats=repeats * STEPS_PER_REPEAT,
        warm_up=3,
    )
    fused, apart = (each.judged().logits for each in both.values())
    cells = []
    for times in (prefill, steps):
        found = ratio(times["False"], times["True"], "wall")
        cells.append(
            f"{1e3 * times['False'].least('wall'):9.1f} {1e3 * times['True'].least('wall'):9.1f} ms "
            f"{found.of_least:6.3f} ({found.low:.3f} {found.middle:.3f} {found.high:.3f})"
        )
    off = float(np.abs(fused - apart).max() / np.abs(fused).max())
    return f"{one.name:<28}" + "".join(cells) + f"{off:9.1e}"


def main() -> None:
    """Make each decoder, compare, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rotations", description=__doc__)
    add_size(parser)
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--only", action="append", help="of those whose name holds this; repeat it")
    parser.add_argument("--folder", type=Path, help="for graphs; those of an earlier run are used")
    options = parser.parse_args()
    ours = [one for one in contenders() if one.plan is not None and one.runs == "openvino"]
    with tempfile.TemporaryDirectory(prefix="vtcompress-bench-") as name:
        root = options.folder or Path(name)
        if not (root / HUGGING_FACE).is_dir():
            root.mkdir(exist_ok=True)
            in_own_process(make_model, root, options.layers, options.vocab)
        chosen = [c for c in ours if not options.only or any(o in c.name for o in options.only)]
        for one in chosen:
            folder = root / one.made
            if not folder.is_dir():
                folder.mkdir()
                (folder / HUGGING_FACE).symlink_to((root / HUGGING_FACE).absolute())
                in_own_process(one.make, folder, options.layers, options.vocab)
        print(f"load average {os.getloadavg()[0]:.1f}, memory on huge pages: {huge_pages()}")
        print("fused, apart, fused / apart of least (10% 50% 90%): prefill, decode step; logits")
        for one in chosen:
            folder = root / one.made
            print(
                in_own_process(compared, one, folder, options.layers, options.repeats), flush=True
            )


if __name__ == "__main__":
    on_huge_pages("benchmarks.rotations")
    main()
