"""What `vtcompress serve` turns away, and that who leaves ends what was made for them."""

import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import VtcompressError
from export.runtime.runtime import Runtime
from export.server.http.access import bound_sockets, check_key
from export.server.limits import ServerLimits
from tests.models import make_picture
from tests.serving import NAME, Served, asking, data_url, post, raw, served, slowed, wait_for

pytestmark = pytest.mark.filterwarnings("ignore::compressor.errors.ArtifactWarning")
KEY = "a-key-of-more-than-sixteen"


@pytest.fixture(scope="module")
def runtime(tiny_artifact: Path) -> Runtime:
    return Runtime.load(tiny_artifact, threads=1)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_picture(tmp_path_factory.mktemp("pictures") / "0.png", seed=300)


@pytest.fixture(scope="module")
def server(runtime: Runtime, tiny_artifact: Path) -> Iterator[Served]:
    limits = ServerLimits(max_request_bytes=200_000, max_tokens=64, max_images=3, client_seconds=1)
    with served(runtime, limits, folder=tiny_artifact) as found:
        yield found
        assert not found.failures


def part(**more: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": [{"role": "user", "content": [more]}]}


def image(url: Any, **more: Any) -> dict[str, Any]:
    return part(type="image_url", image_url={"url": url} | more)


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": [{"role": role, "content": content} | more]}


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        (asking("it", n=2), "n", "not made at once"),
        (asking("it", logprobs=True), "logprobs", "not done here"),
        (asking("it", tools=[{"type": "function"}]), "tools", "not done here"),
        (asking("it", response_format={"type": "json_object"}), "response_format", "not done"),
        (asking("it", frequency_penalty=0.5), "frequency_penalty", "not done here"),
        (asking("it", logit_bias={"5": 1}), "logit_bias", "not done here"),
        (asking("it", store=True), "store", "not done here"),
        (asking("it", top_k=5), "top_k", "not known"),
        (asking("it", temperature=3), "temperature", "from 0 to 2"),
        (asking("it", temperature="warm"), "temperature", "must be a number"),
        (asking("it", temperature=1e-9), "temperature", "must be 0, or from"),
        (asking("it", temperature=True), "temperature", "must be a number"),
        (asking("it", top_p=0.5), "top_p", "without a temperature"),
        (asking("it", top_p=0, temperature=1), "top_p", "above 0"),
        (asking("it", max_tokens=65), "max_tokens", "from 1 to 64"),
        (asking("it", max_tokens=0), "max_tokens", "from 1 to 64"),
        (asking("it", max_tokens=2.0), "max_tokens", "whole number"),
        (asking("it", max_tokens=2, max_completion_tokens=3), "max_tokens", "differ"),
        (asking("it", seed=10**30), "seed", "whole number"),
        (asking("it", stop=["a"] * 5), "stop", "4 texts at most"),
        (asking("it", stop=""), "stop", "1 to 500 characters"),
        (asking("it", stop=[1]), "stop", "list of texts"),
        (asking("it", stream="yes"), "stream", "true or false"),
        (asking("it", stream_options={"include_usage": True}), "stream_options", "stream alone"),
        ({"model": NAME}, "messages", "missing or empty"),
        ({"model": NAME, "messages": []}, "messages", "missing or empty"),
        ({"model": NAME, "messages": "it"}, "messages", "must be a list"),
        ({"model": 5, "messages": []}, "model", "must be text"),
        (turn("tool", "it"), "messages[0].role", "'tool' is not one of"),
        (turn("user", None), "messages[0].content", "must be text or a list"),
        (turn("user", []), "messages[0].content", "1 to 1000 parts"),
        (turn("user", "it", name="Ann"), "messages[0].name", "not known"),
        (turn("user", "it") | {"messages": [5]}, "messages[0]", "must be an object"),
        (turn("user", "<image>"), "messages[0].content", "messages[0].content: contains '<image>'"),
        (turn("system", "<image>"), "messages[0].content", "messages[0].content: contains '<image>'"),
        (part(type="text", text="<image>"), "messages[0].content[0].text", ".text: contains '<image>'"),
        (turn("system", [{"type": "text", "text": "<im"}, {"type": "text", "text": "age>"}]),
         "messages[0].content", "messages[0].content: contains '<image>'"),
        (part(type="input_audio"), "messages[0].content[0].type", "neither"),
        (part(type="text"), "messages[0].content[0].text", "missing"),
        (turn("assistant", image("data:")["messages"][0]["content"]), "messages[0].content[0].type",
         "turns of the user"),
        (image(5), "messages[0].content[0].image_url.url", "must be text"),
        (image("data:image/png;base64,AA==", detail="low"), "messages[0].content[0].image_url.detail",
         "not done"),
    ],
)  # fmt: skip
def test_what_is_not_done_is_refused_by_the_name_of_its_field(
    server: Served, body: dict[str, Any], param: str | None, said: str
) -> None:
    status, _, found = post(server.url, body)
    assert status == 400
    error = found["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert said in error["message"]


def test_what_asks_for_nothing_else_is_let_through(server: Served) -> None:
    neutral = {
        "n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "logprobs": False,
        "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "user": "u",
        "metadata": {"a": "b"}, "store": False, "seed": None, "stop": None, "top_p": 1,
        "service_tier": "auto", "max_tokens": 2, "max_completion_tokens": 2, "temperature": 0,
    }  # fmt: skip
    assert post(server.url, asking("it", **neutral))[0] == 200


WHERE = "messages[0].content[0].image_url.url"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1/a.png", "is an address of http: this server fetches nothing"),
        ("HTTPS://example.org/a.png", "is an address of https: this server fetches nothing"),
        ("ftp://example.org/a.png", "this server fetches nothing"),
        ("file:///etc/passwd", "files are not read by this server"),
        ("/etc/passwd", "files are not read by this server"),
        ("photo.png", "files are not read by this server"),
        ("", "files are not read by this server"),
        ("data:image/png;base64,", "holds no bytes"),
        ("data:image/png;base64,###", "base64 is damaged"),
        ("data:image/png;base64,AAA", "base64 is damaged"),
        ("data:image/png,AAAA", "no data URL of a picture"),
        ("data:text/html;base64,AAAA", "no data URL of a picture"),
        ("data:", "no data URL of a picture"),
        ("data:image/png;base64,AAAA", "no image of a format that is read"),
    ],
)
def test_addresses_that_hold_no_picture_are_refused(server: Served, url: str, said: str) -> None:
    status, _, found = post(server.url, image(url))
    assert status == 400
    assert found["error"]["param"] == WHERE
    assert said in found["error"]["message"]


def bomb(side: int) -> bytes:
    """Return a small PNG that says it is a square of so many pixels a side."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    pixels = zlib.compress(bytes(1 << 20), 9)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_decompression_bomb_is_refused_by_its_header(server: Served) -> None:
    status, _, found = post(server.url, image(data_url(bomb(30_000))))
    assert status == 400
    assert "more pixels than the 100000000 allowed" in found["error"]["message"]
    assert found["error"]["param"] == WHERE
    assert post(server.url, image(data_url(bomb(2000))))[0] == 400, "its pixels are not all there"


def test_more_pictures_than_are_read_are_refused(server: Served, picture: Path) -> None:
    status, _, found = post(server.url, asking("it", *[data_url(picture)] * 4))
    assert status == 400
    assert found["error"]["message"] == "messages: have 4 pictures, and 3 are read at most"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": NaN}', b'{"model": "\\ud800"}', b"[" * 100_000,
        b'{"a":' * 30_000, b"1" * 100_000, b'{"model": "tiny", "messages": [' + b"[]," * 60_000 + b"[]]}",
    ],
)  # fmt: skip
def test_what_is_no_json_object_of_a_request_is_refused(server: Served, body: bytes) -> None:
    status, _, found = post(server.url, body)
    assert status == 400
    assert found["error"]["type"] == "invalid_request_error"


def test_a_body_of_many_values_is_not_even_parsed(runtime: Runtime) -> None:
    body = b'{"model": "tiny", "messages": [' + b"[]," * 300_000 + b"[]]}"
    with served(runtime) as server:
        status, _, found = post(server.url, body)
    assert status == 400
    assert "more than 250,000 values" in found["error"]["message"]


def test_kinds_of_bodies_and_methods_that_are_not_read(server: Served) -> None:
    body = json.dumps(asking("it")).encode()
    assert post(server.url, body, Content_Type="text/plain")[0] == 415
    assert post(server.url, body, Content_Encoding="gzip")[0] == 415
    assert post(server.url, body, "/v1/models")[0] == 405
    status, _, found = post(server.url, body, "/v1/completions")
    assert (status, found["error"]["message"]) == (404, "no such route")
    assert b"405" in raw(
        server.port, b"GET /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\n\r\n"
    )


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_long_is_refused_while_it_comes(server: Served, chunked: bool) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Content-Type: application/json\r\n"
    content = b"a" * 300_000
    if chunked:
        sent = (
            head + b"Transfer-Encoding: chunked\r\n\r\n" + b"493e0\r\n" + content + b"\r\n0\r\n\r\n"
        )
    else:
        sent = head + b"Content-Length: 300000\r\n\r\n" + content
    found = raw(server.port, sent)
    assert found.startswith(b"HTTP/1.1 413 ")
    assert b"more than the 200,000 bytes" in found


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Ty",
        b"",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{",
    ],
)
def test_a_slow_client_is_let_go(server: Served, sent: bytes) -> None:
    started = time.monotonic()
    found = raw(server.port, sent)
    assert 0.9 < time.monotonic() - started < 10
    assert found == b"" or (found.startswith(b"HTTP/1.1 408 ") and b"within 1 s" in found)
    assert bool(found) == (b"\r\n\r\n" in sent)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9.9\r\n\r\n", b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)  # fmt: skip
def test_what_is_no_http_is_answered_by_400_or_closed(server: Served, sent: bytes) -> None:
    found = raw(server.port, sent)
    assert found == b"" or re_status(found) in (400, 403, 404)


def re_status(found: bytes) -> int:
    return int(found.split(b" ", 2)[1])


def test_a_key_is_needed_where_there_is_one(runtime: Runtime) -> None:
    import openai

    with served(runtime, key=KEY) as server:
        for sent in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
            status, headers, found = post(server.url, asking("it"), **sent)
            assert status == 401
            assert headers["WWW-Authenticate"] == "Bearer"
            assert found["error"]["code"] == "invalid_api_key"
        with pytest.raises(openai.AuthenticationError):
            server.client("wrong").models.list()
        for path in ("/metrics", "/nothing", "/v1/models"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(server.url + path)
        with urllib.request.urlopen(f"{server.url}/health") as response:
            assert response.status == 200
        assert server.client(KEY).models.list().data[0].id == NAME
        assert post(server.url, asking("it", max_tokens=1), Authorization=f"bearer {KEY}")[0] == 200
        # Whoever has the key may come by any name.
        named = {"Authorization": f"Bearer {KEY}", "Host": "example.org"}
        assert post(server.url, asking("it", max_tokens=1), **named)[0] == 200
    assert KEY not in "".join(server.said)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("example.org", 403),
        ("127.0.0.1.example.org:8000", 403),
        ("localhost:80", 200),
        ("[::1]:8", 200),
    ],
)
def test_without_a_key_no_strangers_name_leads_here(server: Served, host: str, status: int) -> None:
    assert post(server.url, asking("it", max_tokens=1), Host=host)[0] == status


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
def test_no_address_beyond_this_machine_is_bound_without_a_key(host: str) -> None:
    with pytest.raises(VtcompressError, match="can be reached from other machines, so an API key"):
        bound_sockets(host, 0, keyed=False)


def test_hosts_and_ports_that_cannot_be_bound_are_named() -> None:
    with pytest.raises(VtcompressError, match="no such address"):
        bound_sockets("no.such.host.invalid", 0, keyed=True)
    taken = bound_sockets("127.0.0.1", 0, keyed=False)
    port = taken[0].getsockname()[1]
    taken[0].listen()
    with pytest.raises(VtcompressError, match=rf"127.0.0.1, port {port}: Address already in use"):
        bound_sockets("127.0.0.1", port, keyed=False)
    taken[0].close()


@pytest.mark.parametrize("key", ["", "short", "a" * 15, "a b" * 10, "é" * 20, "a" * 5000])
def test_keys_that_could_be_guessed_or_sent_by_no_header_are_refused(key: str) -> None:
    with pytest.raises(VtcompressError, match="16 to 4,096 visible ASCII characters"):
        check_key(key)


def test_requests_beyond_the_queue_are_turned_away(runtime: Runtime) -> None:
    slow_runtime, slow = slowed(runtime)
    with served(slow_runtime, ServerLimits(queue=2)) as server, ThreadPoolExecutor(3) as pool:
        try:
            queue = server.chat.chat.queue
            first = [pool.submit(post, server.url, asking("it", max_tokens=2)) for _ in range(3)]
            wait_for(lambda: (queue.running, queue.waiting) == (1, 2))
            assert server.metrics()["vtcompress_queue_length"] == 2
            status, headers, found = post(server.url, asking("it", max_tokens=2))
            assert status == 429
            assert 1 <= int(headers["Retry-After"]) <= 120
            assert found["error"]["type"] == "rate_limit_error"
        finally:
            slow.gate.set()
        assert [one.result()[0] for one in first] == [200] * 3
        assert post(server.url, asking("it", max_tokens=2))[0] == 200


def test_bodies_hold_no_more_memory_together_than_they_may(runtime: Runtime) -> None:
    slow_runtime, slow = slowed(runtime)
    limits = ServerLimits(queue=20, max_request_bytes=20_000)
    body = asking("it", user="x" * 19_000, max_tokens=1)
    with served(slow_runtime, limits) as server, ThreadPoolExecutor(8) as pool:
        try:
            queue = server.chat.chat.queue
            first = [pool.submit(post, server.url, body) for _ in range(8)]
            wait_for(lambda: queue.running + queue.waiting == 8)
            status, headers, found = post(server.url, body)
            assert (status, found["error"]["code"]) == (429, "memory_full")
            assert "Retry-After" in headers
        finally:
            slow.gate.set()
        assert [one.result()[0] for one in first] == [200] * 8
        assert post(server.url, body)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_ends_the_generation(runtime: Runtime, stream: bool) -> None:
    _, slow = slowed(runtime, seconds=0.01)
    slow.gate.set()
    endless = Runtime(
        slow, runtime.facts, without_end(runtime.prompter), runtime.images, runtime.settings
    )
    body = json.dumps(asking("it", max_tokens=400, stream=stream)).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    with served(endless) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(head + body)
            wait_for(lambda: len(slow.rows) > 3)
        wait_for(lambda: server.chat.chat.queue.running == 0)
        ran = len(slow.rows)
        assert ran < 200
        wait_for(lambda: server.metrics()["vtcompress_disconnects_total"] == 1)
        assert len(slow.rows) == ran
        assert "the client left" in server.said[0]
        assert post(server.url, asking("it", max_tokens=2))[0] == 200
    assert not server.failures


def without_end(prompter: Any) -> Any:
    from dataclasses import replace

    return replace(prompter, eos_ids=())


def test_who_leaves_while_waiting_makes_room(runtime: Runtime) -> None:
    slow_runtime, slow = slowed(runtime)
    with served(slow_runtime, ServerLimits(queue=1)) as server, ThreadPoolExecutor(1) as pool:
        try:
            queue = server.chat.chat.queue
            first = pool.submit(post, server.url, asking("it", max_tokens=2))
            wait_for(lambda: queue.running == 1)
            body = json.dumps(asking("it")).encode()
            head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(head + body)
                wait_for(lambda: queue.waiting == 1)
            wait_for(lambda: queue.waiting == 0)
        finally:
            slow.gate.set()
        assert first.result()[0] == 200
    assert [rows for rows in slow.rows if rows[1] > 1] == slow.rows[:1], "the second never ran"


def test_files_of_one_folder_are_read_and_no_others(
    runtime: Runtime, picture: Path, tmp_path: Path
) -> None:
    folder, outside = tmp_path / "allowed", tmp_path / "outside"
    (folder / "inner").mkdir(parents=True)
    outside.mkdir()
    for place in (folder / "a b.png", folder / "inner" / "b.png", outside / "c.png"):
        place.write_bytes(picture.read_bytes())
    (folder / "link.png").symlink_to(outside / "c.png")
    (folder / "way").symlink_to(outside)
    (folder / "large.png").write_bytes(bytes(30_000))
    os.mkfifo(folder / "pipe.png")
    wanted = runtime.answer("what is it", [picture], max_new_tokens=4).text
    limits = ServerLimits(max_request_bytes=20_000)
    with served(runtime, limits, files=folder) as server:
        for url in (
            "a b.png", "inner/b.png", f"{folder}/a b.png", f"file://{folder}/a%20b.png", data_url(picture),
            f"file://localhost{folder}/inner/b.png", "./inner/b.png",
        ):  # fmt: skip
            status, _, found = post(server.url, asking("what is it", url, max_tokens=4))
            assert status == 200, url
            assert found["choices"][0]["message"]["content"] == wanted
        for url in (
            "link.png", "way/c.png", "../outside/c.png", f"{outside}/c.png", f"file://{outside}/c.png",
            "inner/../../outside/c.png", "pipe.png", "inner", ".", "", "none.png", "a\0b.png", "file:",
            f"file://host{folder}/a%20b.png", "file:///%2e%2e/etc/passwd", f"{folder}/../outside/c.png",
            "a b.png/x", "x" * 5000, "file://[", f"file://{folder}/a%20b.png?x",
        ):  # fmt: skip
            status, _, found = post(server.url, asking("what is it", url))
            assert status == 400, url
            assert (
                "no such picture in the folder that this server reads" in found["error"]["message"]
            )
            assert str(tmp_path) not in json.dumps(found)
        assert post(server.url, asking("it", "large.png"))[0] == 413
        assert post(server.url, asking("it", "https://example.org/a.png"))[0] == 400
    assert not server.failures


def test_a_folder_that_is_not_there_is_refused_at_once(runtime: Runtime, tmp_path: Path) -> None:
    with (
        pytest.raises(VtcompressError, match="no such folder"),
        served(runtime, files=tmp_path / "x"),
    ):
        pass


def test_an_error_of_the_inside_says_nothing_of_it(runtime: Runtime) -> None:
    slow_runtime, slow = slowed(runtime)
    slow.gate.set()
    secret = "/home/someone/secret.bin"

    def fails(*_: Any) -> Any:
        raise RuntimeError(secret)

    slow.embed = fails  # type: ignore[method-assign]
    with served(slow_runtime) as server:
        for stream in (False, True):
            status, _, found = post_any(server, asking("it", stream=stream))
            assert status == (200 if stream else 500)
            assert "the server failed" in found
            assert secret not in found
            assert "Traceback" not in found
        assert [str(error) for error in server.failures] == [secret] * 2
        del slow.embed
        assert post(server.url, asking("it", max_tokens=1))[0] == 200


def post_any(server: Served, body: dict[str, Any]) -> tuple[int, dict[str, str], str]:
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, {}, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {}, error.read().decode()


def test_answers_end_in_their_time_when_the_server_stops(runtime: Runtime) -> None:
    slow_runtime, slow = slowed(runtime, seconds=0.02)
    limits = ServerLimits(stop_seconds=20, queue=4)
    with served(slow_runtime, limits) as server, ThreadPoolExecutor(3) as pool:
        queue = server.chat.chat.queue
        answers = [pool.submit(post, server.url, asking("it", max_tokens=8)) for _ in range(2)]
        wait_for(lambda: (queue.running, queue.waiting) == (1, 1))
        server.server.stop()
        wait_for(lambda: refuses(server.port))
        slow.gate.set()
        wanted = runtime.answer("it", max_new_tokens=8).text
        for answer in answers:
            status, _, found = answer.result()
            assert status == 200
            assert found["choices"][0]["message"]["content"] == wanted


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize(("seconds", "twice"), [(0.5, False), (60, True)])
def test_answers_that_take_longer_are_cut_off_when_the_server_stops(
    runtime: Runtime, seconds: float, twice: bool
) -> None:
    _, slow = slowed(runtime, seconds=0.05)
    slow.gate.set()
    endless = Runtime(slow, runtime.facts, without_end(runtime.prompter), runtime.images)
    limits = ServerLimits(stop_seconds=seconds)
    found: list[Any] = []
    with served(endless, limits) as server:
        for stream in (False, True):
            body = asking("it", max_tokens=400, stream=stream)
            threading.Thread(target=lambda body=body: found.append(post_any(server, body))).start()
        wait_for(
            lambda: server.chat.chat.queue.running == 1 and server.chat.chat.queue.waiting == 1
        )
        started = time.monotonic()
        server.server.stop()
        if twice:
            server.server.stop()
        wait_for(lambda: len(found) == 2)
        assert twice or time.monotonic() - started > 0.3
        assert time.monotonic() - started < 8
    # Of a stream the answer has begun, or it still waited for its turn.
    assert all("the server is stopping" in text for _, _, text in found)
    assert {status for status, _, _ in found} <= {200, 503}
