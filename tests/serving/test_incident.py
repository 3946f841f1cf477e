"""What was not foreseen: INTERNAL with an id that the log has, for that caller alone."""

import re

import grpc
import pytest

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving import toy
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice


def test_nan_from_the_model_never_leaves(toy_server: ServerProcess) -> None:
    """The toy's embedding is NaN for loud audio; neighbours in its batch are answered."""
    selector = [pb.ModelSelector(variant="da")]
    quiet, loud = voice(1.0, seed=3), voice(1.0) * 20
    assert toy.NAN_PEAK < abs(loud).max() < 16
    requests = [pb.IdentifyRequest(audio=raw(audio), models=selector) for audio in (quiet, loud, quiet, loud, quiet)]
    calls = [toy_server.stub.Identify.future(request, timeout=CALL_SECONDS) for request in requests]
    for index in (0, 2, 4):
        expected = toy.expected(toy.weights(2), quiet)["logits"].max()
        assert calls[index].result().answers[0].speakers[0].logit == pytest.approx(expected, rel=1e-4)
    for index in (1, 3):
        with pytest.raises(grpc.RpcError) as caught:
            calls[index].result()
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        found = re.fullmatch(
            r"internal error; the server's log has it under ([0-9a-f]{16})", caught.value.details() or ""
        )
        assert found
        toy_server.wait_for_log(f"request={found[1]} failed unexpectedly")
        assert [each.value for each in caught.value.trailing_metadata() if each.key == "x-request-id"] == [found[1]]
