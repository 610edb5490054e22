"""Damages files of models and artifacts, reads each case in a child, and prints kind, tried and held.

    python -m tests.fuzz                      # all cases
    python -m tests.fuzz --part 0.02          # the first 2 % of each kind
    python -m tests.fuzz KIND [NUMBER]        # of one kind, or its case of that number, with what it says
    python -m tests.fuzz [KIND] --write       # puts the whole cases' figures into docs/reliability.md
    python -m tests.fuzz --write FILE ...     # figures that runs with --json have printed

A case is held if it ends within ten seconds of a processor, within 2 GiB more than the process began with,
in success or in a `VtcompressError`, and starts no process and opens no connection. A case is its kind and
number: the same in every run. The parent imports what a child that read nothing damaged has loaded, and runs
nothing, so that a child costs milliseconds; it does some cases (`Kind.chunk`), unless one ends it.
"""

import argparse
import contextlib
import importlib
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from compressor.errors import VtcompressError
from compressor.telemetry import switch_off
from tests.fuzz_kinds import KINDS, Kind, Place
from tests.mutations import Watch

SECONDS, BYTES = 10, 2 << 30
# What a case may take by the clock where others have the processors; how often its seconds are looked at.
PATIENCE, LOOK = 200, 1.0
STARTS = ("subprocess", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket", "pickle")
ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"
BEGINS, ENDS = "<!-- written by python -m tests.fuzz --write -->\n", "<!-- end -->\n"
HEAD = "| kind | tried | held | longest | memory |\n|---|---|---|---|---|\n"
Figures = dict[str, float]


@dataclass
class Held:
    """What became of the cases of a kind.

    Attributes:
        outcomes: how many ended how: `read`, `refused` or `not held`.
        longest: seconds of the longest case.
        most: bytes that a child held at most, of them those that it began with.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    most: int = 0


def processor_seconds(pid: int) -> float:
    """Return the seconds that processors gave a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def child(
    kind: Kind, sources: Sequence[Path], folder: Path, numbers: Sequence[int], tell: int
) -> None:
    """Read cases; tell of each, one JSON line before and one after."""
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    make, read = kind.prepare(Place.copied(*sources, folder))
    watch = Watch()
    began = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (began + BYTES, began + BYTES))
    for number in numbers:
        content = make(f"{kind.name} {number}")
        os.write(tell, b"{}\n")
        how, why = "read", ""
        try:
            watch._on = True
            read(content)
        except VtcompressError as error:
            how, why = "refused", str(error)
            if not why.strip():
                how = "not held"
        except BaseException as error:  # noqa: BLE001 - panics of libraries are no Exception
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{last.filename}:{last.lineno}"
            how, why = "not held", f"{type(error).__name__}: {error!s:.500} ({place})"
        finally:
            watch._on = False
        started = [event for event in watch.seen if event.startswith(STARTS)]
        watch.seen.clear()
        if started:
            how, why = "not held", started[0]
        os.write(tell, json.dumps([how, why[:1000]]).encode() + b"\n")


def told(pid: int, reader: int) -> Iterator[tuple[float, list[str]]]:
    """Yield of each case its processor seconds and what was told; a child that is late is killed."""
    began: float | None
    waiting, began, clock = b"", None, 0.0
    while True:
        if not select.select([reader], [], [], LOOK)[0]:
            if began is None:
                continue
            took, waited = processor_seconds(pid) - began, time.monotonic() - clock
            if took > SECONDS or waited > PATIENCE:
                os.kill(pid, signal.SIGKILL)
                yield took, ["not held", f"{took:.0f} s of a processor in {waited:.0f} s"]
                return
            continue
        more = os.read(reader, 1 << 16)
        if not more:
            if began is not None:
                yield 0.0, ["not held", "died"]
            return
        *lines, waiting = (waiting + more).split(b"\n")
        for line in lines:
            now = processor_seconds(pid)
            if line == b"{}":
                began, clock = now, time.monotonic()
                continue
            assert began is not None
            answer = json.loads(line)
            if now - began > SECONDS:
                answer = ["not held", f"{now - began:.0f} s of a processor"]
            yield now - began, answer
            began = None


def warm(kind: Kind, sources: Sequence[Path]) -> None:
    """Import what a child needs that reads a file that is whole.

    Raises:
        RuntimeError: it is not read.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        log = Path(folder) / "log"
        if (pid := os.fork()) == 0:
            try:
                make, read = kind.prepare(Place.copied(*sources, Path(folder)))
                read(make(""))
                log.write_text("\n".join(sys.modules))
            except BaseException:  # noqa: BLE001 - a child must never return into the parent's loop
                log.write_text("failed: " + traceback.format_exc())
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        names = log.read_text()
    if names.startswith("failed: "):
        raise RuntimeError(f"{kind.name}: {names}")
    for name in names.splitlines():
        if name not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def run(kind: Kind, sources: Sequence[Path], numbers: Sequence[int], *, say: bool = False) -> Held:
    """Return what became of these cases; print those that were not held, or all."""
    warm(kind, sources)
    held, at = Held(), 0
    while at < len(numbers):
        reader, tell = os.pipe()
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        pid = os.fork()
        if pid == 0:
            try:
                os.close(reader)
                os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
                child(kind, sources, folder, numbers[at : at + kind.chunk], tell)
            finally:
                os._exit(0)
        os.close(tell)
        before, why = at, ""
        for seconds, (how, why) in told(pid, reader):
            held.outcomes[how] += 1
            held.longest = max(held.longest, seconds)
            if how == "not held" or say:
                print(f"{kind.name} {numbers[at]}: {how}: {why}", file=sys.stderr, flush=True)
            at += 1
        os.close(reader)
        _, status, used = os.wait4(pid, 0)
        held.most = max(held.most, used.ru_maxrss * 1024)
        if why == "died":
            print(f"  with exit code {os.waitstatus_to_exitcode(status)}", file=sys.stderr)
        shutil.rmtree(folder)
        if at == before:
            raise RuntimeError(f"a child of {kind.name} did not begin")
    return held


def made(folder: Path) -> tuple[Path, Path]:
    """Make a model and its artifact, in a process of their own."""
    words = (
        "import sys; from pathlib import Path; from tests.models import *; "
        "from tests.runtimes import exported; f = Path(sys.argv[1]); "
        "make_llava(f / 'model', Variant(layers=2)); exported(f / 'model', f / 'artifact')"
    )
    command = [sys.executable, "-c", words, str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder / "model", folder / "artifact"


def main() -> int:
    """Run cases; the exit code says whether all were held."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("kind", nargs="?")
    arguments.add_argument("number", nargs="?", type=int)
    arguments.add_argument("--part", type=float, default=1.0)
    arguments.add_argument("--sources", nargs=2, type=Path, help="a model folder and its artifact")
    arguments.add_argument("--json", action="store_true", help="print figures as JSON")
    arguments.add_argument("--say", action="store_true", help="print how each case ended")
    arguments.add_argument("--write", nargs="*", type=Path, help="figures into the page's table")
    options = arguments.parse_args()
    if options.write:
        write({k: v for file in options.write for k, v in json.loads(file.read_text()).items()})
        return 0
    if options.write is not None and (options.part != 1.0 or options.number is not None):
        arguments.error("the page has figures of whole kinds: leave out --part and NUMBER")
    switch_off()
    torch.set_num_threads(1)
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    rows: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory() as scratch:
        sources = options.sources or made(Path(scratch))
        for kind in KINDS:
            if options.kind not in (None, kind.name):
                continue
            count = max(1, round(kind.count * options.part))
            numbers = range(count) if options.number is None else [options.number]
            held = run(kind, sources, numbers, say=options.say)
            rows[kind.name] = {
                "tried": len(numbers),
                **held.outcomes,
                "longest": held.longest,
                "most": held.most,
            }
            if not options.json:
                print(_row(kind.name, rows[kind.name]), flush=True)
    if options.json:
        print(json.dumps(rows))
    if options.write is not None:
        write(rows)
    return int(any(row.get("not held") for row in rows.values()))


def written(page: str, figures: Mapping[str, Figures]) -> str:
    """Return the page with the rows of these kinds in its table; those of other kinds stay.

    Raises:
        ValueError: fewer or more cases of a kind than it has.
    """
    before, _, rest = page.partition(BEGINS)
    table, _, after = rest.partition(ENDS)
    rows = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}
    counts = {kind.name: kind.count for kind in KINDS}
    for name, row in figures.items():
        if row["tried"] != counts[name]:
            raise ValueError(f"{name}: {row['tried']} cases of {counts[name]}")
        rows[name] = _row(name, row)
    lines = "".join(f"{rows[name]}\n" for name in counts if name in rows)
    return f"{before}{BEGINS}{HEAD}{lines}{ENDS}{after}"


def write(figures: Mapping[str, Figures]) -> None:
    """Put figures into the page's table."""
    page = written(PAGE.read_text(encoding="utf-8"), figures)
    PAGE.write_text(page, encoding="utf-8")


def _row(name: str, row: Figures) -> str:
    good = row["tried"] - row.get("not held", 0)
    return (
        f"| `{name}` | {row['tried']:,} | {good:,}: {row.get('read', 0):,} read, "
        f"{row.get('refused', 0):,} refused | {row['longest']:.1f} s | {row['most'] / 2**30:.1f} GiB |"
    )


if __name__ == "__main__":
    sys.exit(main())
