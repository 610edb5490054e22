"""Small versions of `python -m tests.serve_load` and `python -m tests.serve_hostile`."""

from pathlib import Path

import pytest

from export.runtime.runtime import Runtime
from export.server.limits import ServerLimits
from tests import serve_hostile, serve_load
from tests.serving import post, served
from tests.test_fuzz import Count

pytestmark = pytest.mark.filterwarnings("ignore::compressor.errors.ArtifactWarning")
REQUESTS, CLIENTS = 32, 4
CASES = 5 * len(serve_hostile.KINDS)


@pytest.fixture(scope="module")
def runtime(tiny_artifact: Path) -> Runtime:
    return Runtime.load(tiny_artifact, threads=1)


def test_clients_at_once_get_the_answers_of_one_thread(
    runtime: Runtime, tiny_artifact: Path, questions: Path
) -> None:
    asked = serve_load.questions_of(tiny_artifact, questions, 6)
    assert len({text for _, text in asked}) > 3
    limits = ServerLimits(parallel=2, queue=CLIENTS)
    with served(runtime, limits, name=serve_load.MODEL) as server:
        found = serve_load.load_round(server.url, asked, REQUESTS, CLIENTS)
        assert not server.failures
    assert found.wrong == 0
    assert len(found.seconds) == REQUESTS
    assert len(found.first) == REQUESTS // 2
    assert "p95" in serve_load.told(found.seconds)


def test_another_answer_would_be_seen(
    runtime: Runtime, tiny_artifact: Path, questions: Path
) -> None:
    ((request, text), *_) = serve_load.questions_of(tiny_artifact, questions, 1)
    with served(runtime, name=serve_load.MODEL) as server:
        assert serve_load.load_round(server.url, [(request, f"{text} x")], 4, 2).wrong == 4


def test_hostile_requests_are_answered_by_4xx_or_closed(runtime: Runtime, counted: Count) -> None:
    limits = ServerLimits(
        queue=8, max_tokens=512, max_request_bytes=serve_hostile.MAX_BYTES, client_seconds=1
    )
    good = serve_hostile.asking("what is this", max_tokens=8) | {"model": serve_load.MODEL}
    with served(runtime, limits, name=serve_load.MODEL) as server:
        wanted = post(server.url, good)[2]["choices"]
        counts, wrong = serve_hostile.hostile_round(server.port, range(CASES), CLIENTS)
        assert wrong == []
        assert sum(counts.values()) == CASES
        assert {kind for kind, _ in counts} == {serve_hostile.case(i).kind for i in range(CASES)}
        assert len({status for _, status in counts}) > 4, "all are answered alike"
        assert post(server.url, good)[2]["choices"] == wanted
        assert not server.failures
    counted("hostile requests", CASES)


@pytest.mark.parametrize(
    ("status", "answered", "held"),
    [(400, False, True), (0, False, True), (429, False, True), (500, False, False), (503, True, False),
     (200, False, False), (200, True, True)],
)  # fmt: skip
def test_only_4xx_or_a_closed_connection_is_right(status: int, answered: bool, held: bool) -> None:
    case = serve_hostile.Hostile("a kind", [b"x"], answered=answered)
    assert (serve_hostile.judged(case, status) is None) == held
