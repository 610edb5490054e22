"""`vtcompress serve` in OpenAI's wire format: its own client gets the answers of `Runtime.answer`."""

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from export.runtime.runtime import Runtime
from export.runtime.stops import StopText
from export.server.limits import ServerLimits
from export.server.picture_cache import CacheCounts, PictureCache
from tests.models import make_picture
from tests.runtimes import spied, with_template
from tests.serving import NAME, Served, asking, data_url, post, served, wait_for

openai = pytest.importorskip("openai", reason="the client that this is about")
pytestmark = pytest.mark.filterwarnings("ignore::compressor.errors.ArtifactWarning")
QUESTIONS = ("what is this", "red a b c", "is it blue", "no")
KEPT = {"max_new_tokens": 8}
ROLES = (
    "{{ bos_token }} {% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ m['content'] }} a {% else %}"
    "{{ 'USER:' if m['role'] == 'user' else 'ASSISTANT:' }} "
    "{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.fixture(scope="module")
def runtime(plain_artifact: Path) -> Runtime:
    return Runtime.load(plain_artifact, threads=1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return [make_picture(folder / f"{i}.png", seed=300 + i) for i in range(3)]


@pytest.fixture(scope="module")
def server(runtime: Runtime, plain_artifact: Path) -> Iterator[Served]:
    with served(runtime, ServerLimits(parallel=2, max_tokens=64), folder=plain_artifact) as found:
        yield found
        assert not found.failures


def asked(server: Served, request: dict[str, Any]) -> Any:
    return server.client().chat.completions.create(**request)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_answers_are_those_of_the_runtime(
    server: Served, runtime: Runtime, pictures: list[Path], count: int
) -> None:
    urls = [data_url(picture) for picture in pictures[:count]]
    for question in QUESTIONS:
        wanted = runtime.answer(question, pictures[:count], max_new_tokens=8)
        for known in (False, True):  # the second time the pictures are
            found = asked(server, asking(question, *urls, max_tokens=8, temperature=0))
            (choice,) = found.choices
            assert choice.message.content == wanted.text
            assert choice.message.role == "assistant"
            ended = wanted.token_ids[-1] in runtime.prompter.eos_ids
            assert choice.finish_reason == ("stop" if ended else "length")
            assert found.usage.completion_tokens == len(wanted.token_ids)
            prompt = runtime.prepare(question, pictures[:count])
            assert found.usage.prompt_tokens == len(prompt.ids)
            assert found.usage.total_tokens == len(prompt.ids) + len(wanted.token_ids)
            kept = found.usage.prompt_tokens_details.cached_tokens
            assert (kept > 16 * count) if count and known else kept <= 16 * count + 4


def test_a_stream_has_the_role_the_pieces_the_reason_and_the_counts(
    server: Served, runtime: Runtime, pictures: list[Path]
) -> None:
    wanted = runtime.answer("what is it", pictures[:1], max_new_tokens=8)
    options = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 8}
    chunks = list(asked(server, asking("what is it", data_url(pictures[0]), **options)))
    first, *middle, last, counts = chunks
    assert first.choices[0].delta.role == "assistant"
    assert len(middle) > 1
    text = "".join(chunk.choices[0].delta.content for chunk in middle)
    assert text == wanted.text
    assert {chunk.choices[0].finish_reason for chunk in (first, *middle)} == {None}
    assert last.choices[0].finish_reason in ("stop", "length")
    assert counts.choices == []
    assert counts.usage.completion_tokens == len(wanted.token_ids)
    assert len({chunk.id for chunk in chunks}) == 1
    plain = list(asked(server, asking("what is it", data_url(pictures[0]), stream=True)))
    assert all(chunk.usage is None for chunk in plain)
    _, headers, _ = post_stream(server, asking("what is it", stream=True))
    assert headers["content-type"].startswith("text/event-stream")


def post_stream(server: Served, body: dict[str, Any]) -> tuple[int, dict[str, str], str]:
    import json

    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        return response.status, headers, response.read().decode()


def test_a_stream_is_server_sent_events_that_end_with_done(server: Served) -> None:
    status, _, text = post_stream(server, asking("what is it", stream=True, max_tokens=3))
    assert status == 200
    *events, end = text.split("\n\n")
    assert end == ""
    assert events[-1] == "data: [DONE]"
    assert all(one.startswith("data: {") for one in events[:-1])


def test_turns_with_pictures_are_those_of_a_conversation(
    server: Served, runtime: Runtime, pictures: list[Path]
) -> None:
    chat = runtime.chat()
    turns: list[dict[str, Any]] = []
    steps: list[tuple[str, list[Path]]] = [
        ("what is this", pictures[:1]),
        ("a b", []),
        ("is this red", pictures[1:]),
    ]
    for question, images in steps:
        turns += asking(question, *map(data_url, images))["messages"]
        wanted = "".join(chat.ask(question, images, max_new_tokens=6))
        found = asked(server, {"model": NAME, "messages": turns, "max_completion_tokens": 6})
        assert found.choices[0].message.content == wanted
        turns.append({"role": "assistant", "content": found.choices[0].message.content})


def test_drawn_answers_are_those_of_the_runtime_with_their_seed(
    server: Served, runtime: Runtime
) -> None:
    options = {"temperature": 1.5, "top_p": 0.9}
    said = set()
    for seed in (1, 2, 3):
        wanted = "".join(runtime.generate("what is it", seed=seed, max_new_tokens=8, **options))
        found = asked(server, asking("what is it", seed=seed, max_tokens=8, **options))
        assert found.choices[0].message.content == wanted
        said.add(wanted)
    assert len(said) > 1
    drawn = {
        asked(server, asking("what is it", max_tokens=8, **options)).choices[0].message.content
        for _ in range(8)
    }
    assert len(drawn) > 1, "without a seed each draw is another"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_before_a_stop(server: Served, runtime: Runtime, stream: bool) -> None:
    whole = runtime.answer("what is it", max_new_tokens=12).text
    words = whole.split()
    stop = f"{words[3][-2:]} {words[4][:2]}"  # over the edge of two pieces
    wanted = whole[: whole.find(stop)]
    assert 0 < len(wanted) < len(whole)
    request = asking("what is it", max_tokens=12, stop=["never", stop], stream=stream)
    found = asked(server, request)
    if stream:
        chunks = list(found)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == wanted
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        assert found.choices[0].message.content == wanted
        assert found.choices[0].finish_reason == "stop"
        assert found.usage.completion_tokens < 12


@pytest.mark.parametrize(
    ("stops", "pieces", "sent", "found"),
    [
        (["cd"], ["ab", "c", "de"], ["ab", "", ""], True),
        (["cd"], ["ab", "c", "x"], ["ab", "", "cx"], False),
        (["aab"], ["a", "a", "a", "b"], ["", "", "a", ""], True),
        (["x", "bc"], ["abcx"], ["a"], True),
        ([], ["ab", "c"], ["ab", "c"], False),
    ],
)
def test_text_is_held_back_while_a_stop_may_begin_in_it(
    stops: list[str], pieces: list[str], sent: list[str], found: bool
) -> None:
    text = StopText(stops)
    assert [text.push(piece) for piece in pieces] == sent
    assert text.found == found
    held = StopText(["abc"])
    assert held.push("xab") == "x"
    assert held.finish() == "ab"


def test_an_answer_without_a_number_of_tokens_has_the_room_that_there_is(
    server: Served, runtime: Runtime
) -> None:
    found = asked(server, asking("what is it"))
    assert found.usage.completion_tokens == len(runtime.answer("what is it").token_ids)
    room = runtime.facts.decoder.max_positions
    prompt = "a " * (room - 20)
    ids = runtime.encode([{"role": "user", "content": [{"type": "text", "text": prompt}]}], ())
    assert runtime.room_for(ids, (), 1000) == room - len(ids) < 64
    found = asked(server, asking(prompt))
    assert found.usage.total_tokens <= room
    with pytest.raises(openai.BadRequestError, match="positions"):
        asked(server, asking(prompt, max_tokens=64))


def test_system_turns_are_written_where_the_template_has_them(
    server: Served,
    runtime: Runtime,
    llava: Any,
    tmp_path: Path,
) -> None:
    system = {"role": "system", "content": "red blue"}
    user = {"role": "user", "content": [{"type": "text", "text": "what is it"}]}
    with pytest.raises(
        openai.BadRequestError, match=r"messages\[0\].role: .*no turns of the system"
    ):
        asked(server, {"model": NAME, "messages": [system, user]})
    other = with_template(runtime, llava("clip+llama"), ROLES, tmp_path / "roles")
    ids = other.encode([system, user], ())
    wanted = other.replies([other.prompt_of(ids, ())], options(6))[0].text
    with served(other) as found:
        for role in ("system", "developer"):
            asked_with = {
                "model": NAME,
                "messages": [system | {"role": role}, user],
                "max_tokens": 6,
            }
            answer = asked(found, asked_with)
            assert answer.choices[0].message.content == wanted
            assert answer.usage.prompt_tokens == len(ids)


def options(tokens: int) -> Any:
    from export.runtime.sampling import AnswerOptions

    return AnswerOptions(tokens)


def test_pictures_that_are_known_are_not_looked_at_again(
    runtime: Runtime, pictures: list[Path]
) -> None:
    watched, spy = spied(runtime)
    url = data_url(pictures[0])
    with served(watched) as server:
        for question in QUESTIONS:
            asked(server, asking(question, url, max_tokens=1))
        assert spy.pictures == 1
        assert [rows[0] for rows in spy.rows if rows[0]] == [16]
        counts = server.metrics()
        assert counts['vtcompress_picture_cache_hits_total{kind="rows"}'] == 3
        assert counts['vtcompress_picture_cache_misses_total{kind="rows"}'] == 1
        assert counts["vtcompress_picture_cache_entries"] == 2
        assert counts["vtcompress_picture_cache_bytes"] > 3 * 32 * 32 * 4
    spy.clear()
    with served(watched, ServerLimits(cache_bytes=0)) as server:
        for question in QUESTIONS:
            wanted = runtime.answer(question, pictures[:1], max_new_tokens=5).text
            found = asked(server, asking(question, url, max_tokens=5))
            assert found.choices[0].message.content == wanted
        assert spy.pictures == len(QUESTIONS)
        assert server.metrics()["vtcompress_picture_cache_entries"] == 0


def test_what_is_kept_of_pictures_has_a_bound(runtime: Runtime, pictures: list[Path]) -> None:
    with served(runtime) as server:
        asked(server, asking("it", data_url(pictures[0]), max_tokens=1))
        one = int(server.metrics()["vtcompress_picture_cache_bytes"])
    with served(runtime, ServerLimits(cache_bytes=2 * one)) as server:
        for picture in (0, 1, 2, 0):
            asked(server, asking("it", data_url(pictures[picture]), max_tokens=1))
        counts = server.metrics()
        assert one < counts["vtcompress_picture_cache_bytes"] <= 2 * one
        assert counts['vtcompress_picture_cache_misses_total{kind="rows"}'] == 4


def test_the_bound_counts_what_has_grown_since_it_was_put_there() -> None:
    cache, sizes = PictureCache(100), {"a": 40, "b": 40, "c": 101}
    for key in tuple(sizes):
        cache.put("k", key, key.upper(), partial(sizes.__getitem__, key))
    assert (cache.entries, cache.bytes, cache.get("k", "c")) == (2, 80, None)
    assert cache.get("k", "a") == "A"
    sizes["a"] = 70
    cache.trim()
    assert (cache.bytes, cache.get("k", "b")) == (70, None), (
        "that which was not used for longest goes"
    )
    cache.put("k", "a", "again", lambda: 10)
    assert (cache.entries, cache.bytes, cache.get("k", "a")) == (1, 10, "again")
    sizes["c"] = 95
    cache.put("k", "c", "C", lambda: sizes["c"])
    assert (cache.entries, cache.bytes) == (1, 95)
    assert cache.counts["k"] == CacheCounts(hits=2, misses=2)


def test_models_and_health(server: Served) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "vtcompress"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError, match="the model is 'tiny'"):
        asked(server, asking("it") | {"model": "gpt-4o"})
    with urllib.request.urlopen(f"{server.url}/health") as response:
        assert response.read() == b'{"status":"ok"}'


def test_metrics_are_in_prometheus_form_and_count(runtime: Runtime, pictures: list[Path]) -> None:
    with served(runtime) as server:
        answers = [
            asked(server, asking("what is it", data_url(pictures[0]), max_tokens=4))
            for _ in range(2)
        ]
        post(server.url, b"{")
        counts = server.metrics()
        with urllib.request.urlopen(f"{server.url}/metrics") as response:
            assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            text = response.read().decode()
    route = 'route="/v1/chat/completions"'
    assert counts[f'vtcompress_requests_total{{{route},status="200"}}'] == 2
    assert counts[f'vtcompress_requests_total{{{route},status="400"}}'] == 1
    for kind in ("prompt", "completion"):
        total = sum(getattr(answer.usage, f"{kind}_tokens") for answer in answers)
        assert counts[f"vtcompress_{kind}_tokens_total"] == total
    cached = [answer.usage.prompt_tokens_details.cached_tokens for answer in answers]
    assert cached[0] == 0
    assert counts["vtcompress_cached_tokens_total"] == cached[1] > 16
    for name in ("first_token", "answer"):
        assert counts[f"vtcompress_{name}_seconds_count"] == 2
        assert counts[f'vtcompress_{name}_seconds_bucket{{le="+Inf"}}'] == 2
        assert 0 < counts[f"vtcompress_{name}_seconds_sum"] < 60
    assert counts["vtcompress_first_token_seconds_sum"] < counts["vtcompress_answer_seconds_sum"]
    assert counts["vtcompress_queue_length"] == 0
    value = r"(\{\w+=\"[^\"]*\"(,\w+=\"[^\"]*\")*\})? [0-9.e+-]+"
    declared: dict[str, str] = {}
    for line in text.splitlines():
        if named := re.fullmatch(r"# TYPE (\w+) (counter|gauge|histogram)", line):
            assert named[1] not in declared
            declared[named[1]] = named[2]
        elif not line.startswith("# HELP "):
            name = re.split(r"[{ ]", line)[0]
            name = re.sub(r"_(bucket|sum|count)$", "", name)
            assert name in declared
            assert re.fullmatch(rf"\w+{value}", line), line
    assert text.endswith("\n")


def test_a_line_of_the_log_tells_of_a_request_and_nothing_of_its_words(
    runtime: Runtime, pictures: list[Path]
) -> None:
    with served(runtime) as server:
        found = asked(server, asking("is it blue", data_url(pictures[0]), max_tokens=4))
        post(server.url, {"model": "blue"})
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{server.url}/blue")
        wait_for(lambda: len(server.said) == 3)  # a line comes behind its answer
        lines = list(server.said)
    assert lines[0].startswith("POST /v1/chat/completions 200 ")
    assert f"prompt {found.usage.prompt_tokens} tokens" in lines[0]
    assert lines[1].startswith("POST /v1/chat/completions 400 ")
    assert lines[2].startswith("GET other 404 ")
    assert "blue" not in "".join(lines)
    assert found.choices[0].message.content not in "".join(lines)
