"""The typed service over gRPC: answers match an independent computation in numpy."""

import io
import time

import grpc
import numpy as np
import pytest
import soundfile as sf
import soxr
import torch
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from numpy.typing import NDArray

from speakerlens.measures.sound import measure_sound
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving import toy, toy_graph
from tests.serving.conftest import SEEDS
from tests.serving.harness import CALL_SECONDS, ServerProcess, plane, raw, talk, voice

SERVICE = "speakerlens.v1.SpeakerIdentification"


def resized(values: NDArray[np.floating], rows: int, columns: int) -> NDArray[np.float32]:
    tensor = torch.from_numpy(np.ascontiguousarray(values, np.float32))[None, None]
    result = torch.nn.functional.interpolate(tensor, (rows, columns), mode="bilinear", align_corners=False)
    return np.asarray(result[0, 0])


def ask(*models: str, **fields: object) -> pb.IdentifyRequest:
    return pb.IdentifyRequest(models=[pb.ModelSelector(variant=name) for name in models], **fields)  # type: ignore[arg-type]


def test_every_variant_at_its_newest_version(toy_server: ServerProcess) -> None:
    audio = voice(1.3)
    answer = toy_server.identify(pb.IdentifyRequest(audio=raw(audio), with_embedding=True, top_k=12))
    assert [(a.variant, a.version) for a in answer.answers] == [("act-da", 1), ("clean", 2), ("da", 1)]
    for each in answer.answers:
        expected = toy.expected(toy.weights(SEEDS[each.variant, each.version]), audio)
        order = np.argsort(-expected["logits"])
        assert [score.speaker for score in each.speakers] == [toy.speakers()[label] for label in order]
        np.testing.assert_allclose([s.logit for s in each.speakers], expected["logits"][order], rtol=1e-4, atol=1e-6)
        posterior = np.exp(expected["logits"] / toy.TEMPERATURE)
        np.testing.assert_allclose(
            [s.probability for s in each.speakers], (posterior / posterior.sum())[order], rtol=1e-4
        )
        assert each.known == (expected["logits"].max() / toy.SCALE >= toy.THRESHOLD)
        np.testing.assert_allclose(each.embedding, expected["embedding"], rtol=1e-4, atol=1e-6)
        assert not each.HasField("explanation")
    assert answer.audio.HasField("evidence")
    answer.audio.ClearField("evidence")
    assert answer.audio == pb.AudioInfo(seconds=1.3, sample_rate=16000, channels=1, speech=False)
    phases = answer.timings
    assert phases.decode_s > 0
    assert phases.queue_s >= 0
    assert phases.inference_s > 0
    assert phases.encode_s > 0


def test_known_follows_the_threshold(toy_server: ServerProcess) -> None:
    """The toy's scores grow with the loudness, so the same voice crosses the threshold."""
    loud, quiet = voice(1.0), voice(1.0) * 1e-3
    answers = [toy_server.identify(ask("clean", audio=raw(audio))).answers[0] for audio in (loud, quiet)]
    assert [answer.known for answer in answers] == [True, False]
    assert answers[0].speakers[0].speaker == answers[1].speakers[0].speaker


def test_models_in_the_order_asked(toy_server: ServerProcess) -> None:
    selectors = [pb.ModelSelector(variant="da"), pb.ModelSelector(variant="clean", version=1)]
    selectors += [pb.ModelSelector(variant="act-da"), pb.ModelSelector(variant="clean", version=2)]
    audio = voice(1.0)
    answer = toy_server.identify(pb.IdentifyRequest(audio=raw(audio), models=selectors, top_k=1))
    assert [(a.variant, a.version) for a in answer.answers] == [("da", 1), ("clean", 1), ("act-da", 1), ("clean", 2)]
    for each in answer.answers:
        logits = toy.expected(toy.weights(SEEDS[each.variant, each.version]), audio)["logits"]
        assert each.speakers[0].logit == pytest.approx(logits.max(), rel=1e-4)


@pytest.mark.parametrize("encoding", [pb.ENCODING_FLOAT32, pb.ENCODING_UINT8])
def test_maps_at_the_features_resolution(toy_server: ServerProcess, encoding: pb.Encoding.ValueType) -> None:
    audio = voice(1.07)
    stages = [pb.STAGE_FUSED, pb.STAGE_S4, pb.STAGE_S1, pb.STAGE_S2, pb.STAGE_S3]
    options = pb.ExplainOptions(stages=stages, encoding=encoding)
    answer = toy_server.identify(ask("da", audio=raw(audio), explain=options)).answers[0]
    expected = toy.expected(toy.weights(SEEDS["da", 1]), audio)
    rows, columns = expected["features"].shape
    shown = {
        name: resized(expected[name] / expected[name].max(), rows, columns)
        for name in ("saliency_s1", "saliency_s2", "saliency_s3", "saliency_s4")
    }
    wanted = [
        np.mean([shown["saliency_s2"], shown["saliency_s3"], shown["saliency_s4"]], axis=0),
        shown["saliency_s4"],
        shown["saliency_s1"],
        shown["saliency_s2"],
        shown["saliency_s3"],
    ]
    explanation = answer.explanation
    assert explanation.target_speaker == answer.speakers[0].speaker
    assert [message.stage for message in explanation.saliency] == stages
    for message, reference in zip(
        [*explanation.saliency, explanation.log_mel], [*wanted, expected["features"]], strict=True
    ):
        step = np.ptp(reference) / 255 if encoding == pb.ENCODING_UINT8 else 0
        np.testing.assert_allclose(plane(message), reference, atol=2e-5 + 0.51 * step)
        assert (message.rows, message.columns) == (rows, columns)
        np.testing.assert_allclose(message.times_s, (np.arange(columns) * 160 + 200) / 16000, atol=1e-6)
        np.testing.assert_allclose(message.frequencies_hz, np.linspace(100, 7900, toy.MEL), rtol=1e-6)


def test_native_maps_and_a_named_target(toy_server: ServerProcess) -> None:
    audio = voice(0.93)
    stages = [pb.STAGE_S1, pb.STAGE_S2, pb.STAGE_S3, pb.STAGE_S4]
    target = toy.speakers()[5]
    options = pb.ExplainOptions(stages=stages, resolution=pb.RESOLUTION_NATIVE, target_speaker=target)
    explanation = toy_server.identify(ask("clean", audio=raw(audio), explain=options)).answers[0].explanation
    expected = toy.expected(toy.weights(SEEDS["clean", 2]), audio, target=5)
    assert explanation.target_speaker == target
    frames = expected["features"].shape[1]
    for stage, message in enumerate(explanation.saliency, 1):
        reference = expected[f"saliency_s{stage}"]
        np.testing.assert_allclose(plane(message), reference, atol=2e-5)
        # A ramp over the frames, interpolated down and up again, must agree with the axes inside.
        ramp = np.interp(
            (np.arange(frames) * 160 + 200) / 16000, message.times_s, np.arange(message.columns, dtype=float)
        )
        up = resized(np.arange(message.columns, dtype=np.float32)[None], 1, frames)[0]
        np.testing.assert_allclose(ramp, up, atol=1e-3)


def test_any_format_and_rate_gives_the_same_speaker(toy_server: ServerProcess) -> None:
    audio = voice(1.5, rate=44_100)
    stereo = np.stack([audio, np.zeros_like(audio)], axis=1)
    file = io.BytesIO()
    sf.write(file, stereo, 44_100, format="FLAC", subtype="PCM_24")
    answer = toy_server.identify(ask("clean", audio=pb.Audio(encoded=file.getvalue()), top_k=12))
    assert answer.audio.HasField("evidence")
    answer.audio.ClearField("evidence")
    assert answer.audio == pb.AudioInfo(seconds=1.5, sample_rate=44_100, channels=2, speech=False)
    expected = toy.expected(toy.weights(SEEDS["clean", 2]), soxr.resample(audio / 2, 44_100, 16_000))
    best = np.argsort(-expected["logits"])
    assert [s.speaker for s in answer.answers[0].speakers] == [toy.speakers()[label] for label in best]
    np.testing.assert_allclose([s.logit for s in answer.answers[0].speakers], expected["logits"][best], atol=1e-4)


def test_int16_samples(toy_server: ServerProcess) -> None:
    audio = np.round(voice(1.0) * 32768).astype("<i2")
    stereo = np.repeat(audio, 2)
    message = pb.RawAudio(samples=stereo.tobytes(), format=pb.SAMPLE_FORMAT_INT16, sample_rate=16_000, channels=2)
    answer = toy_server.identify(ask("da", audio=pb.Audio(raw=message), top_k=1)).answers[0]
    expected = toy.expected(toy.weights(SEEDS["da", 1]), (audio / 32768).astype(np.float32))
    assert answer.speakers[0].logit == pytest.approx(expected["logits"].max(), rel=1e-4)


def test_list_models(toy_server: ServerProcess) -> None:
    answer = toy_server.stub.ListModels(pb.ListModelsRequest(), timeout=CALL_SECONDS)
    assert [(m.variant, m.version) for m in answer.models] == [("act-da", 1), ("clean", 1), ("clean", 2), ("da", 1)]
    model = answer.models[0]
    assert list(model.speakers) == toy.speakers()
    assert (model.sample_rate, model.mel_bins, model.embedding_size) == (16000, toy.MEL, toy_graph.EMBEDDING)
    assert [(s.stage, s.rows, s.stride) for s in model.stages] == [(1, 16, 1), (2, 8, 2), (3, 4, 4), (4, 2, 8)]
    assert answer.provider == toy_server.ready["provider"] == "CPUExecutionProvider"
    assert answer.limits == pb.Limits(max_bytes=32 * 1024 * 1024, min_seconds=0.5, max_seconds=60, max_requests=256)


def test_health_and_reflection(toy_server: ServerProcess) -> None:
    assert toy_server.status() == toy_server.status(SERVICE) == "SERVING"
    with pytest.raises(grpc.RpcError) as caught:
        toy_server.health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=CALL_SECONDS)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    replies = reflection_pb2_grpc.ServerReflectionStub(toy_server.channel).ServerReflectionInfo(requests)
    names = {service.name for service in next(iter(replies)).list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


def test_concurrent_callers_get_their_own_answers(toy_server: ServerProcess) -> None:
    """They wait while the device is busy, and are then computed together, whatever their lengths."""
    before = toy_server.metrics()
    busy = toy_server.stub.Identify.future(ask("da", audio=raw(voice(toy.SLOW_SECONDS + 1.5))))
    toy_server.wait_for_metric("speakerlens_requests_in_flight", 1)
    audios = [voice(0.5 + 0.11 * index, seed=index) for index in range(24)]
    calls = [toy_server.stub.Identify.future(ask("clean", audio=raw(audio), top_k=1)) for audio in audios]
    for audio, call in zip(audios, calls, strict=True):
        expected = toy.expected(toy.weights(SEEDS["clean", 2]), audio)["logits"].max()
        assert call.result(CALL_SECONDS).answers[0].speakers[0].logit == pytest.approx(expected, rel=1e-4)
    assert busy.result(CALL_SECONDS).answers
    after = toy_server.metrics()
    name = 'speakerlens_batch_size_{}{{kind="predict",variant="clean"}}'
    utterances, batches = (after[name.format(part)] - before[name.format(part)] for part in ("sum", "count"))
    assert utterances == 24
    assert batches < 12, "next to nothing was batched"


def test_health_answers_while_the_device_is_busy(toy_server: ServerProcess) -> None:
    slow = toy_server.stub.Identify.future(ask("clean", audio=raw(voice(toy.SLOW_SECONDS + 5))))
    waits: list[float] = []
    while not slow.done() and len(waits) < 20:
        started = time.monotonic()
        assert toy_server.status() == "SERVING"
        waits.append(time.monotonic() - started)
        time.sleep(0.02)
    assert len(waits) > 10, "the device was not busy: the test shows nothing"
    assert max(waits) < 0.5, waits
    assert np.median(waits) < 0.1, waits
    assert slow.result(CALL_SECONDS).answers


def test_deadline_passes_in_the_queue(toy_server: ServerProcess) -> None:
    """The client is refused in time, nothing is computed, and calls with more time are answered."""
    before = toy_server.metrics()
    first, slow = (
        toy_server.stub.Identify.future(ask("clean", audio=raw(voice(toy.SLOW_SECONDS + 3)))) for _ in range(2)
    )
    # One waits, so the device has begun with the other.
    toy_server.wait_for_metric('speakerlens_queue_depth{kind="predict",variant="clean"}', 1)
    hurried = [toy_server.stub.Identify.future(ask("da", audio=raw(voice(1.0))), timeout=0.3) for _ in range(3)]
    longer = toy_server.stub.Identify.future(ask("da", audio=raw(voice(1.0))), timeout=CALL_SECONDS)
    for call in hurried:
        # The second where the estimate would allow it, and only caution does not.
        assert call.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert not slow.done(), "the device was not busy: the test shows nothing"
    assert longer.result().answers
    assert first.result(CALL_SECONDS).answers
    assert slow.result(CALL_SECONDS).answers
    after = toy_server.metrics()
    computed = 'speakerlens_batch_size_sum{kind="predict",variant="da"}'
    assert after[computed] - before.get(computed, 0) == 1
    refused = [
        f'speakerlens_requests_total{{code="{code}",method="Identify",variant="{variant}"}}'
        for code in ("DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED")
        for variant in ("da", "_none")
    ]
    assert sum(after.get(name, 0) - before.get(name, 0) for name in refused) == 3


def test_answers_carry_evidence_of_the_windows_with_speech(toy_server: ServerProcess) -> None:
    spoken, noise = talk(2.0), 0.05 * voice(2.0)
    for audio, speech in ((spoken, True), (noise, False)):
        request = pb.IdentifyRequest(audio=raw(audio), models=[pb.ModelSelector(variant="da")])
        answer = toy_server.stub.Identify(request, timeout=CALL_SECONDS)
        measured, evidence = measure_sound(audio), answer.audio.evidence
        assert answer.audio.speech is speech
        assert evidence.speech_s == pytest.approx(2.0 * measured.speech_share if speech else 0.0)
        assert evidence.HasField("level_db") is speech
        assert evidence.snr_db == pytest.approx(measured.snr_db)
        assert evidence.bandwidth_hz == measured.bandwidth_hz
