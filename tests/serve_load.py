"""Loads a server on this machine: equal answers to one thread's, seconds, and no growth of memory.

python -m tests.serve_load ARTIFACT QUESTIONS.jsonl    # 200 requests from 8 clients, 3 times each
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from export.runtime.runtime import Runtime
from tests.serving import asking, data_url, wait_for

ROOT = Path(__file__).parent.parent
REQUESTS, CLIENTS, ROUNDS, TOKENS = 200, 8, 3, 16
GROWTH = 1.03
MODEL = "loaded"
PAGE = ROOT / "docs" / "serving.md"
HEAD = (
    "`--parallel`", "round", "requests a second", "whole answer", "first piece of a stream",
    "answers others than one thread's", "resident memory",
)  # fmt: skip


@dataclass(frozen=True)
class Round:
    """What became of one round of requests.

    Attributes:
        seconds: of each request, to its end.
        first: seconds to the first piece, of those that were streamed.
        wrong: answers that are not one thread's.
        resident: bytes of the server behind the round.
        took: seconds of the whole round.
    """

    seconds: Sequence[float]
    first: Sequence[float]
    wrong: int
    resident: float
    took: float


@contextmanager
def server_of(
    artifact: Path, *options: str, **environment: str
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Serve an artifact in a process of its own; yield its address, and the process."""
    command = [sys.executable, "-m", "vtcompress", "serve", str(artifact), "--name", MODEL]
    command += ["--port", "0", *options]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as said:
            given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
            process = subprocess.Popen(command, stderr=said, env=given)
        try:
            wait_for(lambda: process.poll() is not None or b" at http://" in log.read_bytes(), 120)
            found = re.search(r"at (http://\S+)/v1;", log.read_text())
            assert found, log.read_text()
            yield found[1], process
        finally:
            process.terminate()
            code = process.wait(60)
            assert code == 0, f"exit code {code}: {log.read_text()[-2000:]}"


def counts_of(url: str) -> dict[str, float]:
    """Return the metrics of a server."""
    with urllib.request.urlopen(f"{url}/metrics") as response:
        lines = response.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def load_round(
    url: str, asked: Sequence[tuple[dict[str, Any], str]], requests: int, clients: int
) -> Round:
    """Send requests from several clients at once; every second one is streamed."""
    import openai

    def client(number: int) -> list[tuple[float, float | None, bool]]:
        found = []
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as one:
            for at in range(number, requests, clients):
                request, wanted = asked[at * 7 % len(asked)]
                started = time.perf_counter()
                first = None
                if at % 2:
                    text = ""
                    for chunk in one.chat.completions.create(**request, stream=True):
                        piece = chunk.choices[0].delta.content
                        if piece and first is None:
                            first = time.perf_counter() - started
                        text += piece or ""
                else:
                    text = one.chat.completions.create(**request).choices[0].message.content or ""
                found.append((time.perf_counter() - started, first, text != wanted))
        return found

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = [one for part in pool.map(client, range(clients)) for one in part]
    took = time.perf_counter() - started
    assert len(found) == requests
    resident = counts_of(url)["vtcompress_resident_memory_bytes"]
    first = [one for _, one, _ in found if one is not None]
    return Round([one[0] for one in found], first, sum(one[2] for one in found), resident, took)


def questions_of(artifact: Path, data: Path, count: int) -> list[tuple[dict[str, Any], str]]:
    """Return requests, with the answers of one thread."""
    runtime = Runtime.load(artifact, threads=1)
    found = []
    for line in data.read_text(encoding="utf-8").splitlines()[:count]:
        sample = json.loads(line)
        picture = data.parent / sample["image"]
        request = asking(sample["question"], data_url(picture), max_tokens=TOKENS)
        answer = runtime.answer(sample["question"], picture, max_new_tokens=TOKENS)
        found.append((request | {"model": MODEL}, answer.text))
    return found


def told(numbers: Sequence[float]) -> str:
    """Return the median and the 95th percentile in milliseconds."""
    parts = quantiles(numbers, n=20)
    return f"p50 {parts[9] * 1e3:,.0f} ms, p95 {parts[18] * 1e3:,.0f} ms"


def write_table(name: str, rows: Sequence[Sequence[str]]) -> None:
    """Put a table in its place of docs/serving.md; the first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    text = PAGE.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    head, rest = text.split(begin)
    tail = rest.split(end)[1]
    table = "".join(f"{line}\n" for line in lines)
    PAGE.write_text(f"{head}{begin}\n{table}\n{end}{tail}", encoding="utf-8")


def main() -> None:
    """Load servers, print what came of it and write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("data", type=Path)
    given = parser.parse_args()
    asked = questions_of(given.artifact, given.data, 60)
    rows = [HEAD]
    failed = False
    for parallel in (1, 2):
        options = ("--threads", "1", "--parallel", str(parallel), "--queue", str(CLIENTS))
        with server_of(given.artifact, *options) as (url, _):
            found = []
            for number in range(ROUNDS):
                found.append(one := load_round(url, asked, REQUESTS, CLIENTS))
                row = (
                    f"{parallel}", f"{number + 1}", f"{REQUESTS / one.took:.1f}", told(one.seconds),
                    told(one.first), f"{one.wrong}", f"{one.resident / 2**20:,.0f} MiB",
                )  # fmt: skip
                print(
                    *(f"{name}: {value};" for name, value in zip(HEAD, row, strict=True)),
                    flush=True,
                )
                rows.append(row)
            failed |= any(one.wrong for one in found)
            failed |= found[-1].resident > found[0].resident * GROWTH
    write_table("load", rows)
    sys.exit("answers are others, or memory grew" if failed else 0)


if __name__ == "__main__":
    main()
