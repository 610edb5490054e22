"""Sends a server what nobody should: each is answered by a 4xx or closed, and the server goes on as before.

python -m tests.serve_hostile ARTIFACT    # 1,000 seeded requests from 8 clients, 6 times
"""

import base64
import io
import json
import random
import socket
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.serve_load import MODEL, counts_of, server_of, write_table
from tests.serving import asking, post

REQUESTS, CLIENTS, ROUNDS = 1000, 8, 6
GROWTH = 1.02
# So that glibc gives back what large blocks took: what it keeps for itself differs from run to run.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "2"}
WARM_UP = 2
CLIENT_SECONDS = 2
MAX_BYTES = 4 << 20
LONGEST_SECONDS = 60.0
CLOSED = 0
LEAST_ERROR, LEAST_FAULT = 400, 500


class Hostile(NamedTuple):
    """A request.

    Attributes:
        kind: of it.
        sent: bytes, sent with pauses between.
        pause: seconds between parts.
        shut: whether the client closes its half when it has sent.
        leaves: whether the client closes all of it then.
        answered: whether a 200 is right, too: it is odd, but there is nothing wrong in it.
    """

    kind: str
    sent: Sequence[bytes]
    pause: float = 0.0
    shut: bool = False
    leaves: bool = False
    answered: bool = False


def request(
    body: bytes, *more: str, path: str = "/v1/chat/completions", length: int | None = None
) -> bytes:
    """Return a request with a body."""
    head = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body) if length is None else length}",
        "Connection: close",
        *more,
    ]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def of(document: Any) -> bytes:
    """Return a request of a document."""
    return request(json.dumps(document).encode())


def pictured(content: bytes, kind: str = "png") -> bytes:
    """Return a request about a picture."""
    url = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return of(asking("what is this", url, max_tokens=2) | {"model": MODEL})


def broken_json(rng: random.Random) -> Hostile:
    """A body with bytes changed, taken out or cut off."""
    body = bytearray(json.dumps(asking("what is this", max_tokens=1) | {"model": MODEL}).encode())
    for _ in range(rng.randint(1, 6)):
        place = rng.randrange(len(body))
        if rng.random() < 0.5:
            body[place] = rng.randrange(256)
        else:
            del body[place : place + rng.randint(1, 20)]
    return Hostile("broken JSON", [request(bytes(body))], answered=True)


WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 1e308, 10**40, "", "x", "\x00", "a" * 5000, [], [[]], {}, {"a": []}, [None],
    "{{ 7 * 7 }}", "{% for i in range(10**9) %}{% endfor %}", "../../etc/passwd", "\u202e", "<image>", "<s>",
)  # fmt: skip


def wrong_types(rng: random.Random) -> Hostile:
    """Values of other kinds, in any place of the document."""
    document: Any = asking(
        "what is this", "data:image/png;base64,AAAA", max_tokens=1, stop=["a"], n=1
    )
    document |= {"model": MODEL, "temperature": 0.5, "seed": 3, "stream": False, "top_p": 0.5}
    for _ in range(rng.randint(1, 3)):
        inner = document
        while True:
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(inner[key], dict | list) and inner[key] and rng.random() < 0.7:
                inner = inner[key]
                continue
            inner[key] = rng.choice(WRONG)
            break
    if rng.random() < 0.3:
        document[rng.choice(["logprobs", "tools", "x" * 3000, "", "stream_options"])] = rng.choice(
            WRONG
        )
    return Hostile("wrong types", [of(document)], answered=True)


def deep(rng: random.Random) -> Hostile:
    """Lists and objects in each other, or very many of them."""
    levels = rng.choice((250, 5000, 200_000))
    body = rng.choice((
        b"[" * levels, b'{"a":' * levels, b'{"model":"x","messages":' + b"[" * levels + b"]" * levels + b"}",
        b'{"messages":[' + b"{}," * levels + b"{}]}", b'{"messages":[' + b"1," * levels + b"1]}",
        b'{"model":"x","messages":[' + b'{"role":"user","content":""},' * 2000 + b'{}]}',
        b'{"a":' + b"9" * levels + b"}", b'"' + b"\\u0000" * levels + b'"',
    ))  # fmt: skip
    return Hostile("deep or many", [request(body)])


def png(width: int, height: int, rows: bytes) -> bytes:
    """Return a PNG of grey pixels with these compressed rows, whatever they are."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 0, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@cache
def zeros(count: int) -> bytes:
    """Return so many zeros, compressed."""
    return zlib.compress(bytes(count), 9)


def bomb(rng: random.Random) -> Hostile:
    """A small file that says it is a huge picture, or unpacks to much more than it says."""
    many = zeros(8 << 20)
    content = rng.choice((
        png(60_000, 60_000, many), png(2**31 - 1, 1, many), png(11_000, 10_000, many), png(0, 5, many),
        png(8, 8, zeros(64 << 20)), png(20_000, 4_000, many[:1000]),
        b"GIF89a" + b"\xff\xff\xff\xff" + bytes(100), b"BM" + bytes(12) + b"\x28" + bytes(3) + b"\xff" * 60,
        b"II*\x00\x08\x00\x00\x00\xff\xff" + b"\xff" * 500, b"P6 99999999 99999999 255\n" + bytes(100),
        b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 50,
    ))  # fmt: skip
    return Hostile("bombs", [pictured(content)], answered=True)


def damaged(rng: random.Random) -> Hostile:
    """A picture with bytes changed or cut off."""
    kind = rng.choice(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
    pixels = np.random.default_rng(rng.randrange(1000)).integers(
        0, 256, (24, 24, 3), dtype=np.uint8
    )
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    content = bytearray(stream.getvalue())
    for _ in range(rng.randint(1, 8)):
        content[rng.randrange(len(content))] = rng.randrange(256)
    if rng.random() < 0.3:
        del content[rng.randrange(len(content)) :]
    return Hostile("damaged pictures", [pictured(bytes(content), kind.lower())], answered=True)


def large(rng: random.Random) -> Hostile:
    """A body beyond what is read, said or sent in parts."""
    if rng.random() < 0.5:
        return Hostile("too large", [request(b"a" * (MAX_BYTES + rng.randint(1, 1 << 20)))])
    part = b"10000\r\n" + b"a" * 65536 + b"\r\n"
    head = request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    return Hostile("too large", [head, part * (MAX_BYTES // 65536 + 3), b"0\r\n\r\n"])


def addresses(rng: random.Random) -> Hostile:
    """Addresses that would be fetched, and files."""
    url = rng.choice((
        "http://127.0.0.1:1/a.png", "https://169.254.169.254/latest", "file:///etc/passwd", "/etc/passwd",
        "ftp://a/b", "data:text/plain,hello", "data:image/svg+xml;base64,PHN2Zz48L3N2Zz4=", "javascript:1",
        "file:///dev/zero", "file:///proc/self/environ", "\\\\host\\share", "gopher://x",
        "data:image/png,%89", "data:" + "a" * 100_000, "data:image/png;base64," + "=" * 5000, "//host/a.png", "HTTP://A/",
    ))  # fmt: skip
    return Hostile("addresses", [of(asking("it", url) | {"model": MODEL})])


def slow(rng: random.Random) -> Hostile:
    """Headers or a body that do not come to an end."""
    whole = request(b"{" * 500)
    cut = rng.randrange(1, len(whole) - 1)
    return Hostile("slow clients", [whole[:cut], whole[cut : cut + 1]], pause=0.2)


def half_closed(rng: random.Random) -> Hostile:
    """A client that closes its half in the middle, or behind all of it."""
    whole = of(asking("what is this", max_tokens=400) | {"model": MODEL})
    cut = rng.choice([0, 10, len(whole) // 2, len(whole)])
    return Hostile("half-closed", [whole[:cut]], shut=True)


def gone(rng: random.Random) -> Hostile:
    """A client that leaves while it is answered."""
    stream = rng.random() < 0.5
    whole = of(asking("what is this", max_tokens=400, stream=stream) | {"model": MODEL})
    return Hostile("gone", [whole], pause=rng.random() * 0.05, leaves=True)


def lengths(rng: random.Random) -> Hostile:
    """A length that is not that of the body, or no length."""
    body = json.dumps(asking("it", max_tokens=1) | {"model": MODEL}).encode()
    say: Any = rng.choice(
        (0, 1, len(body) - 5, len(body) + 5, "-1", "1e3", "+5", "0x10", "9" * 40, "", " ")
    )
    sent = request(body, length=say)
    if rng.random() < 0.3:
        sent = sent.replace(b"\r\nConnection", b"\r\nContent-Length: 7\r\nConnection", 1)
    return Hostile("wrong lengths", [sent])


def no_http(rng: random.Random) -> Hostile:
    """Bytes that are no HTTP, or hardly."""
    line = rng.choice((
        bytes(rng.randrange(256) for _ in range(rng.randint(1, 400))), b"\r\n" * 5000,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 9000, b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"DELETE /v1/models/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        b"GET /v1/models/%00%ff/../../x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
    ))  # fmt: skip
    return Hostile("no HTTP", [line], shut=rng.random() < 0.5)


KINDS: tuple[Callable[[random.Random], Hostile], ...] = (
    broken_json, wrong_types, deep, bomb, damaged, large, addresses, slow, half_closed, gone,
    lengths, no_http,
)  # fmt: skip


def case(number: int) -> Hostile:
    """Return a case by its number: the same in every run."""
    return KINDS[number % len(KINDS)](random.Random(number))


def status_of(port: int, hostile: Hostile) -> int:
    """Send a case; return the status that came back, 0 where the connection was closed without one."""
    found = b""
    with socket.create_connection(("127.0.0.1", port), timeout=LONGEST_SECONDS) as connection:
        try:
            for part in hostile.sent:
                connection.sendall(part)
                time.sleep(hostile.pause)
            if hostile.leaves:
                return CLOSED
            if hostile.shut:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                found += part
        except (ConnectionResetError, BrokenPipeError):
            pass
    head = found.split(b"\r\n", 1)[0].split(b" ")
    return int(head[1]) if len(head) > 1 else CLOSED


def judged(hostile: Hostile, status: int) -> str | None:
    """Return what is wrong with a status; None: nothing."""
    if status == CLOSED or LEAST_ERROR <= status < LEAST_FAULT:
        return None
    if status < LEAST_ERROR and hostile.answered:
        return None
    return f"{hostile.kind}: status {status} for {b''.join(hostile.sent)[:300]!r}"


def hostile_round(
    port: int, numbers: Sequence[int], clients: int
) -> tuple[Counter[tuple[str, int]], list[str]]:
    """Send cases from several clients; return statuses by kind, and what was wrong."""

    def send(number: int) -> tuple[str, int, str | None]:
        hostile = case(number)
        status = status_of(port, hostile)
        return hostile.kind, status, judged(hostile, status)

    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(send, numbers))
    return Counter((kind, status) for kind, status, _ in found), [w for *_, w in found if w]


def main() -> None:
    """Send all cases, print what came of them and write it into the page."""
    options = ("--threads", "1", "--client-seconds", str(CLIENT_SECONDS), "--queue", "8")
    options += ("--max-request-bytes", str(MAX_BYTES), "--max-tokens", "512")
    good = asking("what is this", max_tokens=8) | {"model": MODEL}
    wrong: list[str] = []
    resident: list[float] = []
    with server_of(Path(sys.argv[1]), *options, **MALLOC) as (url, process):
        port = int(url.rsplit(":", 1)[1])
        wanted = post(url, good)[2]["choices"]
        for number in range(ROUNDS):
            started = time.perf_counter()
            counts, found = hostile_round(port, range(REQUESTS), CLIENTS)
            wrong += found
            if process.poll() is not None or post(url, good)[2]["choices"] != wanted:
                wrong.append("the server does not go on as before")
            metrics = counts_of(url)
            resident.append(metrics["vtcompress_resident_memory_bytes"])
            print(
                f"round {number + 1}: {REQUESTS} hostile requests in {time.perf_counter() - started:.0f} s; "
                f"{len(found)} wrong; {resident[-1] / 2**20:,.0f} MiB resident; still running or waiting: "
                f"{metrics['vtcompress_queue_length'] + metrics['vtcompress_answers_running']:.0f}",
                flush=True,
            )
    rows = [("hostile requests", "what came back")]
    for kind in sorted({kind for kind, _ in counts}):
        of_kind = {s: n for (k, s), n in sorted(counts.items()) if k == kind}
        told = ", ".join(
            f"{n} {f'with {status}' if status else 'closed'}" for status, n in of_kind.items()
        )
        rows.append((kind, told))
    memory = ", ".join(f"{one / 2**20:,.0f}" for one in resident)
    rows.append(("wrong of all rounds; resident memory behind each", f"{len(wrong)}; {memory} MiB"))
    for row in rows:
        print(": ".join(row))
    write_table("hostile", rows)
    for line in wrong[:20]:
        print(line)
    # Behind the first rounds the memory that requests take at most has been taken.
    if resident[-1] > resident[WARM_UP - 1] * GROWTH:
        wrong.append("memory grew")
    sys.exit("not held" if wrong else 0)


if __name__ == "__main__":
    main()
