"""The sound of maps: what is kept and removed add up to the audio, and its scores are those of asking about it."""

import io

import grpc
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from speakerlens.measures.listening import kept
from speakerlens.measures.windows import Windowing
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.pipeline.listen import _joined
from speakerlens.serving.pipeline.windows import cut
from tests.serving.harness import CALL_SECONDS, ServerProcess, plane, raw, talk

MODELS = [pb.ModelSelector(variant="da")]
STAGES = [pb.STAGE_FUSED, pb.STAGE_S4]


def listened(server: ServerProcess, samples: NDArray[np.float32], target: str = "") -> pb.Explanation:
    explain = pb.ExplainOptions(stages=STAGES, listen=True, target_speaker=target)
    request = pb.IdentifyRequest(audio=raw(samples), models=MODELS, explain=explain)
    return server.identify(request).answers[0].explanation


def probability(server: ServerProcess, samples: NDArray[np.float32], speaker: str) -> float:
    request = pb.IdentifyRequest(audio=raw(samples), models=MODELS, top_k=8)
    scores = {each.speaker: each.probability for each in server.identify(request).answers[0].speakers}
    return scores[speaker]


def sound(content: bytes) -> NDArray[np.float32]:
    samples, rate = soundfile.read(io.BytesIO(content), dtype="float32")
    assert rate == 16_000
    return np.asarray(samples)


@pytest.mark.parametrize("target", ["", "speaker-03"])
def test_sound_and_scores_are_those_of_the_map(toy_server: ServerProcess, target: str) -> None:
    samples = talk(1.2)
    explanation = listened(toy_server, samples, target)
    assert [each.stage for each in explanation.listening] == STAGES
    assert explanation.target_speaker == (target or explanation.target_speaker)
    for saliency, each in zip(explanation.saliency, explanation.listening, strict=True):
        part, rest = sound(each.kept), sound(each.removed)
        np.testing.assert_allclose(part + rest, samples, atol=2e-4)
        expected = kept(samples, plane(saliency), np.array(saliency.frequencies_hz), 400, 160)
        np.testing.assert_allclose(part, expected, atol=1e-3)
        found = [probability(toy_server, heard, explanation.target_speaker) for heard in (samples, part, rest)]
        np.testing.assert_allclose([each.score, each.kept_score, each.removed_score], found, atol=2e-3)
        assert each.increase == (each.kept_score > each.score)
        assert each.drop == pytest.approx(max(0, each.score - each.kept_score) / each.score)


def test_sound_is_no_answer_of_its_own_in_the_metrics(toy_server: ServerProcess) -> None:
    name = 'speakerlens_answers_total{output="explain",variant="da"}'
    before = toy_server.metrics()
    listened(toy_server, talk(1.2))
    after = toy_server.metrics()
    changed = {key: after[key] - before.get(key, 0) for key in after if key.startswith("speakerlens_answers_total")}
    assert sum(changed.values()) == 1, (name, changed)
    seconds = "speakerlens_audio_seconds_total"
    assert after[seconds] - before[seconds] == pytest.approx(1.2)


@pytest.mark.parametrize("count", [900, 1000, 1001, 2345])
async def test_windows_are_joined_to_the_audio(count: int) -> None:
    samples = np.arange(count, dtype=np.float32)
    windows = [(each.start, each.samples) async for each in cut(samples, Windowing(1000, 480, 160))]
    np.testing.assert_array_equal(_joined(windows), samples)


def test_other_calls_refuse_to_return_sound(toy_server: ServerProcess) -> None:
    explain = pb.ExplainOptions(listen=True)
    verify = pb.VerifyRequest(audio=raw(talk(1.2)), other=raw(talk(1.2)), model=MODELS[0], explain=explain)
    start = pb.StreamStart(format=pb.SAMPLE_FORMAT_INT16, sample_rate=16_000, explain=explain)
    with pytest.raises(grpc.RpcError) as of_verify:
        toy_server.stub.Verify(verify, timeout=CALL_SECONDS)
    with pytest.raises(grpc.RpcError) as of_stream:
        list(toy_server.stub.IdentifyStream(iter([pb.IdentifyStreamRequest(start=start)]), timeout=CALL_SECONDS))
    for refused in (of_verify, of_stream):
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "explain.listen: only Identify and IdentifyBatch" in str(refused.value.details())
