"""More calls than the server accepts: refused at once, counted, and accepted again once work is done."""

import time
from pathlib import Path

import grpc
import pytest

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving import toy
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice


def request(variant: str, seconds: float) -> pb.IdentifyRequest:
    return pb.IdentifyRequest(audio=raw(voice(seconds)), models=[pb.ModelSelector(variant=variant)])


def refused(server: ServerProcess, variant: str) -> str:
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        server.identify(request(variant, 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert time.monotonic() - started < 0.5
    hints = [each.value for each in caught.value.trailing_metadata() if each.key == "retry-after-ms"]
    assert [int(hint) > 0 for hint in hints] == [True]
    return caught.value.details() or ""


@pytest.mark.parametrize(
    ("flag", "reason", "words"),
    [
        ("--queue-size=2", "queue_full", "2 requests wait for clean/2 predict already"),
        ("--max-in-flight=3", "in_flight", "3 requests are in work already"),
    ],
)
def test_calls_are_refused_at_once_and_answered_later(toy_bundles: Path, flag: str, reason: str, words: str) -> None:
    with ServerProcess(toy_bundles, flag, "--instances=1") as server:
        slow = server.stub.Identify.future(request("da", toy.SLOW_SECONDS + 3), timeout=CALL_SECONDS)
        server.wait_for_metric("speakerlens_requests_in_flight", 1)
        waiting = [server.stub.Identify.future(request("clean", 1), timeout=CALL_SECONDS) for _ in range(2)]
        server.wait_for_metric('speakerlens_queue_depth{kind="predict",variant="clean"}', 2)
        assert words in refused(server, "clean")
        assert not slow.done(), "the device was not busy: the test shows nothing"
        assert all(call.result().answers for call in (slow, *waiting))
        assert server.identify(request("clean", 1)).answers
        page = server.metrics()
        assert page[f'speakerlens_rejections_total{{reason="{reason}"}}'] == 1
        assert page['speakerlens_requests_total{code="RESOURCE_EXHAUSTED",method="Identify",variant="clean"}'] == 1
        assert page['speakerlens_answers_total{kind="predict",variant="clean"}'] == 3


def test_a_cancelled_call_is_not_computed(toy_bundles: Path) -> None:
    with ServerProcess(toy_bundles, "--instances=1") as server:
        slow = server.stub.Identify.future(request("da", toy.SLOW_SECONDS + 3), timeout=CALL_SECONDS)
        server.wait_for_metric("speakerlens_requests_in_flight", 1)
        waiting = server.stub.Identify.future(request("clean", 1), timeout=CALL_SECONDS)
        server.wait_for_metric('speakerlens_queue_depth{kind="predict",variant="clean"}', 1)
        waiting.cancel()
        cancelled = 'speakerlens_requests_total{code="CANCELLED",method="Identify",variant="clean"}'
        server.wait_for_metric(cancelled, 1)
        assert not slow.done(), "the device was not busy: the test shows nothing"
        assert slow.result().answers
        page = server.metrics()
        assert page['speakerlens_queue_depth{kind="predict",variant="clean"}'] == 0
        assert page['speakerlens_batch_size_sum{kind="predict",variant="clean"}'] == 0
