"""IdentifyBatch: which models answer, what is counted, and how large an answer may be."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.api.identification import Service
from speakerlens.serving.config import Config
from speakerlens.serving.context import CallContext, current_context
from speakerlens.serving.gallery.asynchronous import AsyncSpeakerStore
from speakerlens.serving.rpc.transfer import ByteBudget
from tests.serving import toy
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice
from tests.serving.models.test_repository import World, play
from tests.serving.models.test_watch import WATCH, expected, logit, publish, request


def test_batch_keeps_the_models_it_began_with(tmp_path: Path) -> None:
    """A new version comes while its first request is in work; those not begun then are answered by the old one."""
    toy.write_bundle(tmp_path, "v", 1, seed=1)
    with ServerProcess(tmp_path, WATCH, "--keep-versions=1", "--max-batch=1") as server:
        requests = [request(seconds=toy.SLOW_SECONDS + 3), *[request() for _ in range(4)], request(version=2)]
        message = pb.IdentifyBatchRequest(requests=requests)
        batch = server.stub.IdentifyBatch.future(message, timeout=CALL_SECONDS)
        server.wait_for_metric("speakerlens_requests_in_flight", 1)
        publish(tmp_path, 2, seed=2)
        server.wait_for_log("v/1 is no longer served")
        assert not batch.done(), "the call was not in work: the test shows nothing"
        assert "unloading v/1" not in server.log
        *answered, other = batch.result().results
        assert [result.response.answers[0].version for result in answered] == [1] * 5
        for result in answered[1:]:
            assert logit(result.response) == pytest.approx(expected(1), rel=1e-4)
        assert other.failure.message == "models[0].version: no version 2 of v; there are 1", "it was not, at the start"
        server.wait_for_log("unloading v/1")
        assert server.identify(request()).answers[0].version == 2


def test_each_refusal_in_a_batch_is_counted(toy_server: ServerProcess) -> None:
    def rejections() -> dict[str, float]:
        metrics = toy_server.metrics()
        return {name: value for name, value in metrics.items() if name.startswith("speakerlens_rejections_total")}

    def finished(variant: str) -> float:
        labels = f'{{code="OK",method="IdentifyBatch",variant="{variant}"}}'
        return toy_server.metrics().get(f"speakerlens_requests_total{labels}", 0)

    silent, da = np.zeros(16_000, np.float32), pb.ModelSelector(variant="da")
    wrong = [
        pb.IdentifyRequest(audio=raw(silent), models=[da]),
        pb.IdentifyRequest(audio=raw(silent), models=[da]),
        pb.IdentifyRequest(audio=raw(voice(0.1)), models=[da]),
        pb.IdentifyRequest(audio=raw(voice(1.0)), models=[pb.ModelSelector(variant="none")]),
    ]
    before, calls = rejections(), finished("da")
    batch = pb.IdentifyBatchRequest(requests=[*wrong, pb.IdentifyRequest(audio=raw(voice(1.0)), models=[da])])
    results = toy_server.stub.IdentifyBatch(batch, timeout=CALL_SECONDS).results
    assert [result.HasField("failure") for result in results] == [True] * 4 + [False]
    after = rejections()
    grown = {name.split('"')[1]: value - before[name] for name, value in after.items() if value > before[name]}
    assert grown == {"silent": 2, "too_short": 1, "unknown_variant": 1}
    assert finished("da") == calls + 1


def refusals(world: World, reason: str) -> float | None:
    return world.metrics.registry.get_sample_value("speakerlens_rejections_total", {"reason": reason})


def test_request_that_makes_the_answer_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no longer fits does not keep out the smaller one behind it."""
    toy.write_bundle(tmp_path, "v", 1, seed=1)
    explain = pb.ExplainOptions(stages=[pb.STAGE_S1])
    requests = [pb.IdentifyRequest(audio=raw(voice(seconds)), explain=explain) for seconds in (1.0, 2.0, 0.6, 2.0)]

    async def scenario(world: World) -> None:
        await world.load()
        config = Config(bundles=tmp_path, max_batch=1)
        with ThreadPoolExecutor(2) as codec:
            service = Service(config, world.metrics, codec, AsyncSpeakerStore(None))
            service.pipeline = world.identifier(codec, config)
            current_context.set(CallContext("IdentifyBatch", "1"))
            context = SimpleNamespace(time_remaining=lambda: None)
            message = pb.IdentifyBatchRequest(requests=requests)
            whole = await service.IdentifyBatch(message, context)
            sizes = [result.response.ByteSize() for result in whole.results]
            most = sizes[0] + sizes[2] + 64
            with ByteBudget(most).reservation() as share:
                current_context.set(CallContext("IdentifyBatch", "2", reserve_answer=share.reserve_answer))
                crowded = await service.IdentifyBatch(message, context)
            current_context.set(CallContext("IdentifyBatch", "3"))
            monkeypatch.setattr("speakerlens.serving.api.batches.MAX_ANSWER_BYTES", most)
            bounded = await service.IdentifyBatch(message, context)
        assert [result.HasField("response") for result in whole.results] == [True] * 4
        assert [result.HasField("response") for result in bounded.results] == [True, False, True, False]
        assert bounded.results[1].failure == pb.Failure(
            code="RESOURCE_EXHAUSTED", message=f"the answer would be above {most} bytes; ask for fewer in one call"
        )
        assert refusals(world, "answer_size") == 2
        assert [result.failure.code for result in crowded.results] == ["", "RESOURCE_EXHAUSTED"] * 2
        assert "all calls together may hold" in crowded.results[1].failure.message
        assert refusals(world, "held") == 2

    play(tmp_path, scenario)
