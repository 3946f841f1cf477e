"""Through the real server: an answer does not depend on other calls at the same time, or on their order."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving import toy
from tests.serving.harness import CALL_SECONDS, ServerProcess, plane, raw, voice

SEEDS = {"clean": 1, "da": 2, "act-da": 3}


@dataclass(frozen=True)
class Ask:
    """One caller; the audio is drawn from its length and seed."""

    variant: str
    seconds: float
    seed: int
    explains: bool
    bulk: bool
    cancels: bool

    def request(self) -> pb.IdentifyRequest:
        options = pb.ExplainOptions(stages=[pb.STAGE_S2], resolution=pb.RESOLUTION_NATIVE) if self.explains else None
        return pb.IdentifyRequest(
            audio=raw(voice(self.seconds, seed=self.seed)),
            models=[pb.ModelSelector(variant=self.variant)],
            top_k=len(toy.speakers()),
            with_embedding=True,
            explain=options,
            priority=pb.PRIORITY_BULK if self.bulk else pb.PRIORITY_INTERACTIVE,
        )

    def check(self, answer: pb.ModelAnswer) -> None:
        """Against what the network gives for this audio alone."""
        expected = toy.expected(toy.weights(SEEDS[self.variant]), voice(self.seconds, seed=self.seed))
        logits = {each.speaker: each.logit for each in answer.speakers}
        actual = np.array([logits[name] for name in toy.speakers()])
        np.testing.assert_allclose(actual, expected["logits"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(answer.embedding, expected["embedding"], rtol=1e-4, atol=1e-6)
        if self.explains:
            np.testing.assert_allclose(
                plane(answer.explanation.saliency[0]), expected["saliency_s2"], rtol=1e-3, atol=1e-6
            )


ASK = st.builds(
    Ask,
    variant=st.sampled_from(sorted(SEEDS)),
    seconds=st.floats(0.5, 3.0),
    seed=st.integers(0, 99),
    explains=st.booleans(),
    bulk=st.booleans(),
    cancels=st.sampled_from([False, False, False, True]),
)


@pytest.fixture(scope="module")
def parallel_server(toy_bundles: Path) -> Iterator[ServerProcess]:
    """A server that computes three batches at a time."""
    with ServerProcess(toy_bundles, "--instances=3", "--threads=3") as server:
        assert server.ready["instances"] == server.metrics()["speakerlens_engine_instances"] == 3
        yield server


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asks=st.lists(ASK, min_size=2, max_size=16))
def test_answers_do_not_depend_on_other_calls(toy_server: ServerProcess, asks: list[Ask]) -> None:
    check_answers(toy_server, asks)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asks=st.lists(ASK, min_size=4, max_size=16))
def test_answers_do_not_depend_on_batches_beside_them(parallel_server: ServerProcess, asks: list[Ask]) -> None:
    check_answers(parallel_server, asks)


def check_answers(server: ServerProcess, asks: list[Ask]) -> None:
    calls = [server.stub.Identify.future(ask.request(), timeout=CALL_SECONDS) for ask in asks]
    for ask, call in zip(asks, calls, strict=True):
        if ask.cancels:
            call.cancel()
    for ask, call in zip(asks, calls, strict=True):
        try:
            answers = call.result().answers
        except (grpc.RpcError, grpc.FutureCancelledError):
            assert ask.cancels
        else:  # of one who gave up too late as well
            ask.check(answers[0])
