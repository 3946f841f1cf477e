"""A real server under known traffic of every kind: each counter and histogram says what was sent, and nothing else."""

import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving import toy
from tests.serving.api.requests import SERVICE, infer, message, padded
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, talk, voice
from tests.serving.metrics.tally import Tally

ALL = ("act-da", "clean", "da")
FLOAT = pb.SAMPLE_FORMAT_FLOAT32
WINDOW_SECONDS = 2
WINDOWS = 5  # of 5 s of audio, a little more than one a second and one that ends with it


@pytest.fixture
def server(toy_bundles: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(
        toy_bundles,
        f"--window-seconds={WINDOW_SECONDS}",
        "--max-seconds=9",
        "--stream-idle-seconds=0.5",
        f"--speakers={tmp_path / 'speakers.db'}",
    ) as process:
        yield process


def models(*names: str) -> list[pb.ModelSelector]:
    return [pb.ModelSelector(variant=name) for name in names]


def fails(call: Callable[..., Any], request: object) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=CALL_SECONDS)
    return str(caught.value.code().name)


def identify(server: ServerProcess, tally: Tally, seconds: float, *names: str, **fields: Any) -> None:
    """One Identify of a single window, answered, and what is expected of it."""
    request = pb.IdentifyRequest(audio=raw(talk(seconds)), models=models(*names), **fields)
    answer = server.identify(request)
    asked = names or ALL
    explained = request.HasField("explain")
    tally.call("Identify", asked[0] if len(asked) == 1 else "_several")
    tally.identified(asked, seconds, "explain" if explained else "predict")
    tally.measured(seconds)
    tally.named(answer.answers, explained)


def test_successes(server: ServerProcess) -> None:
    tally = Tally()
    for seconds in (1.0, 1.25, 1.5):
        identify(server, tally, seconds, "clean")
    identify(server, tally, 1.0)
    identify(server, tally, 1.0, "da", "clean", explain=pb.ExplainOptions())
    server.stub.ListModels(pb.ListModelsRequest(), timeout=CALL_SECONDS)
    tally.call("ListModels")
    server.stub.GetModel(pb.GetModelRequest(model=models("da")[0]), timeout=CALL_SECONDS)
    tally.call("GetModel", "da")
    server.status()  # calls of health are not counted

    answer = server.identify(pb.IdentifyRequest(audio=raw(talk(5.0)), models=models("da")))
    tally.call("Identify", "da")
    tally.identified(["da"], 5.0, windows=WINDOWS - 1)  # the last has 0.2 s, too little for speech: it is not computed
    tally.measured(5.0)
    tally.named(answer.answers)
    page = tally.compare(server)
    assert page['drift_samples{measure="best_logit",variant="clean"}'] == 5
    assert page['drift_samples{measure="concentration",variant="clean"}'] == 1
    assert page['queue_capacity{kind="predict",variant="clean"}'] == 64


def test_a_batch_with_errors_of_single_requests(server: ServerProcess) -> None:
    tally = Tally()
    good = [pb.IdentifyRequest(audio=raw(talk(1.0, seed=seed)), models=models("clean")) for seed in range(4)]
    both = pb.IdentifyRequest(audio=raw(talk(1.5)), models=models("clean", "da"), explain=pb.ExplainOptions())
    short = pb.IdentifyRequest(audio=raw(talk(0.1)), models=models("clean"))
    unknown = pb.IdentifyRequest(audio=raw(talk(1.0)), models=models("nobody"))
    batch = pb.IdentifyBatchRequest(requests=[*good, short, both, unknown, short])
    results = server.stub.IdentifyBatch(batch, timeout=CALL_SECONDS).results
    assert [result.HasField("failure") for result in results] == [False] * 4 + [True, False, True, True]
    tally.call("IdentifyBatch", "_several")
    for result in results[:4]:
        tally.identified(["clean"], 1.0)
        tally.measured(1.0)
        tally.named(result.response.answers)
    tally.identified(["clean", "da"], 1.5, "explain")
    tally.measured(1.5)
    tally.named(results[5].response.answers, explained=True)
    for reason in ("too_short", "too_short", "unknown_variant"):
        tally.refused(reason)
    tally.compare(server)


def test_streams(server: ServerProcess) -> None:
    """Windows count as they are answered, the whole for calls and answers; one that breaks off had its windows."""
    tally = Tally()
    audio = talk(5.0)
    start = pb.IdentifyStreamRequest(
        start=pb.StreamStart(models=models("da"), format=FLOAT, sample_rate=16_000, channels=1)
    )
    chunks = [pb.IdentifyStreamRequest(samples=part.tobytes()) for part in np.split(audio, 10)]
    answers = list(server.stub.IdentifyStream(iter([start, *chunks]), timeout=CALL_SECONDS))
    windows = [answer.window for answer in answers if answer.HasField("window")]
    assert len(windows) == WINDOWS
    assert answers[-1].HasField("whole")
    tally.call("IdentifyStream", "da")
    tally.identified(["da"], 5.0, windows=sum(window.speech for window in windows))
    for window in windows:
        tally.measured(window.end_s - window.start_s)
        tally.named(window.answers)
    tally.compare(server)

    def breaks_off() -> Iterator[pb.IdentifyStreamRequest]:
        yield start
        yield from chunks[:4]  # one window
        while call.is_active():
            idle.wait(0.01)

    idle = threading.Event()
    call = server.stub.IdentifyStream(breaks_off(), timeout=CALL_SECONDS)
    window = next(call).window
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    tally.call("IdentifyStream", "da", "DEADLINE_EXCEEDED")
    tally.refused("idle")
    tally.computed("da", "predict")
    tally.measured(2.0)
    tally.named(window.answers)
    tally.compare(server)


def test_voices(server: ServerProcess) -> None:
    """Embeddings name no speaker: their audio counts, predictions do not."""
    tally = Tally()
    server.stub.Embed(pb.EmbedRequest(audio=raw(talk(1.0))), timeout=CALL_SECONDS)
    tally.call("Embed", "_several")
    tally.identified(ALL, 1.0)
    tally.measured(1.0)
    utterances = [raw(talk(1.0, seed=seed)) for seed in (1, 2)]
    enroll = pb.EnrollRequest(speaker="somebody", utterances=utterances, models=models("clean", "da"))
    server.stub.Enroll(enroll, timeout=CALL_SECONDS)
    tally.call("Enroll", "_several")
    for _ in utterances:
        tally.identified(["clean", "da"], 1.0)
        tally.measured(1.0)
    verify = pb.VerifyRequest(model=models("da")[0], audio=raw(talk(1.0)), enrolled_speaker="somebody")
    server.stub.Verify(verify, timeout=CALL_SECONDS)
    tally.call("Verify", "da")
    tally.identified(["da"], 1.0)
    tally.measured(1.0)
    verify = pb.VerifyRequest(
        model=models("da")[0], audio=raw(talk(1.0)), other=raw(talk(1.5)), explain=pb.ExplainOptions()
    )
    server.stub.Verify(verify, timeout=CALL_SECONDS)
    tally.call("Verify", "da")
    for seconds in (1.0, 1.5):
        tally.identified(["da"], seconds)
        tally.measured(seconds)
        tally.computed("da", "verify")
    server.stub.ListSpeakers(pb.ListSpeakersRequest(), timeout=CALL_SECONDS)
    tally.call("ListSpeakers")
    server.stub.RemoveSpeaker(pb.RemoveSpeakerRequest(speaker="somebody"), timeout=CALL_SECONDS)
    tally.call("RemoveSpeaker")
    verify.enrolled_speaker = "somebody"
    assert fails(server.stub.Verify, verify) == "NOT_FOUND"
    tally.call("Verify", "da", "NOT_FOUND")
    tally.refused("unknown_speaker")
    tally.compare(server)


def test_the_inference_protocol(server: ServerProcess) -> None:
    tally = Tally()
    rows = [talk(seconds, seed=seed) for seed, seconds in enumerate((1.0, 1.5, 0.75))]
    probabilities = [toy.expected(toy.weights(2), row)["logits"].max() / toy.SCALE >= toy.THRESHOLD for row in rows]
    for outputs, kind in ((("probabilities",), "predict"), (("saliency",), "explain")):
        infer(server, message(padded(rows), *outputs, model="da"))
        tally.call("ModelInfer", "da")
        for index, (row, known) in enumerate(zip(rows, probabilities, strict=True)):
            tally.identified(["da"], len(row) / 16_000, kind, phases=index == 0)
            tally.measured(len(row) / 16_000)
            tally.named([pb.ModelAnswer(variant="da", known=bool(known))], kind == "explain")
    rows[1] *= 0
    request = message(padded(rows), "probabilities", model="da")
    with pytest.raises(grpc.RpcError):
        infer(server, request)
    tally.call("ModelInfer", "da", "INVALID_ARGUMENT")
    tally.refused("silent")
    with pytest.raises(grpc.RpcError):
        infer(server, message(padded(rows), "probabilities", model="nobody"))
    tally.call("ModelInfer", "_none", "NOT_FOUND")
    tally.refused("unknown_variant")
    load: Callable[..., bytes] = server.channel.unary_unary(f"{SERVICE}RepositoryModelLoad")
    assert fails(load, b"") == "UNIMPLEMENTED"
    tally.compare(server)


def test_recordings_without_speech_are_counted(server: ServerProcess) -> None:
    tally = Tally()
    hiss = np.random.default_rng(0).normal(0, 0.01, 80_000).astype(np.float32)
    answer = server.identify(pb.IdentifyRequest(audio=raw(hiss), models=models("da")))
    tally.call("Identify", "da")
    tally.identified(["da"], 5.0, windows=WINDOWS, speech=False)
    tally.measured(5.0)
    tally.named(answer.answers)
    start = pb.StreamStart(models=models("da"), format=FLOAT, sample_rate=16_000, channels=1)
    parts = [pb.IdentifyStreamRequest(start=start), pb.IdentifyStreamRequest(samples=hiss.tobytes())]
    answers = list(server.stub.IdentifyStream(iter(parts), timeout=CALL_SECONDS))
    assert not any(each.window.speech or each.window.answers for each in answers[:-1])
    assert not answers[-1].whole.audio.speech
    tally.call("IdentifyStream", "da")
    tally.identified(["da"], 5.0, windows=WINDOWS, speech=False)
    for each in answers[:-1]:
        tally.measured(each.window.end_s - each.window.start_s)
    tally.compare(server)


def test_refusals(server: ServerProcess) -> None:
    tally = Tally()
    infinite = talk(1.0)
    infinite[7] = np.inf
    refusals: list[tuple[str, str, dict[str, Any]]] = [
        ("argument", "INVALID_ARGUMENT", {"top_k": -1}),
        ("not_audio", "INVALID_ARGUMENT", {"audio": pb.Audio(encoded=b"this is no file of audio")}),
        ("empty", "INVALID_ARGUMENT", {"audio": pb.Audio()}),
        ("not_finite", "INVALID_ARGUMENT", {"audio": raw(infinite)}),
        ("out_of_scale", "INVALID_ARGUMENT", {"audio": raw(talk(1.0) * 30_000)}),
        ("silent", "INVALID_ARGUMENT", {"audio": raw(talk(1.0) * 0)}),
        ("too_short", "INVALID_ARGUMENT", {"audio": raw(talk(0.3))}),
        ("too_long", "INVALID_ARGUMENT", {"audio": raw(voice(9.5))}),
        ("sample_rate", "INVALID_ARGUMENT", {"audio": raw(talk(1.0), rate=100)}),
        ("channels", "INVALID_ARGUMENT", {"audio": raw(talk(1.0), channels=100)}),
        ("unknown_variant", "NOT_FOUND", {"models": models("nobody")}),
        ("unknown_version", "NOT_FOUND", {"models": [pb.ModelSelector(variant="da", version=99)]}),
        ("unknown_speaker", "NOT_FOUND", {"explain": pb.ExplainOptions(target_speaker="nobody")}),
    ]
    for reason, code, fields in refusals:
        request = pb.IdentifyRequest(**{"audio": raw(talk(1.0)), "models": models("da"), **fields})
        assert fails(server.stub.Identify, request) == code, reason
        # The variant is known once the form of the request is valid, before its audio is read.
        early = reason in ("empty", "unknown_variant", "unknown_version")
        tally.call("Identify", "_none" if early else "da", code)
        tally.refused(reason)
    method = "/speakerlens.v1.SpeakerIdentification/Identify"
    assert fails(server.channel.unary_unary(method), b"\xff\xff\xff") == "INVALID_ARGUMENT"
    tally.call("Identify", "_none", "INVALID_ARGUMENT")
    tally.refused("malformed")
    page = tally.compare(server)
    assert page["audio_seconds_total"] == 0
    assert page["input_duration_seconds_sum"] == 0


def test_counts_without_speakers_and_while_draining(toy_bundles: Path) -> None:
    tally = Tally()
    with ServerProcess(toy_bundles, "--stream-idle-seconds=60") as server:
        enroll = pb.EnrollRequest(speaker="somebody", utterances=[raw(talk(1.0))], models=models("da"))
        assert fails(server.stub.Enroll, enroll) == "FAILED_PRECONDITION"
        tally.call("Enroll", "da", "FAILED_PRECONDITION")
        tally.refused("no_store")
        slow = pb.IdentifyRequest(audio=raw(talk(6.0)), models=models("da"))
        asked = server.stub.Identify.future(slow, timeout=CALL_SECONDS)
        server.wait_for_metric("speakerlens_requests_in_flight", 1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for_log("draining")
        assert fails(server.stub.Identify, slow) == "UNAVAILABLE"
        page = server.metrics()
        assert page['speakerlens_rejections_total{reason="not_serving"}'] == 1
        assert page['speakerlens_rejections_total{reason="no_store"}'] == 1
        assert page['speakerlens_requests_total{code="UNAVAILABLE",method="Identify",variant="_none"}'] == 1
        assert asked.result().answers
        assert server.wait() == 0


def test_cancellations_and_deadlines(toy_bundles: Path) -> None:
    """Who gives up is counted as such, and is no refusal; who is refused or dies at the deadline is one."""
    with ServerProcess(toy_bundles) as server:
        slow = pb.IdentifyRequest(audio=raw(talk(6.0)), models=models("da"))
        first = server.stub.Identify.future(slow, timeout=CALL_SECONDS)
        server.wait_for_metric("speakerlens_requests_in_flight", 1)
        others = [server.stub.Identify.future(slow, timeout=CALL_SECONDS) for _ in range(3)]
        server.wait_for_metric("speakerlens_requests_in_flight", 4)
        for other in others:
            other.cancel()
        cancelled = 'speakerlens_requests_total{code="CANCELLED",method="Identify",variant="da"}'
        server.wait_for_metric(cancelled, 3)
        with pytest.raises(grpc.RpcError) as caught:
            server.identify(slow, timeout=0.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert first.result().answers
        server.wait_for_metric('speakerlens_rejections_total{reason="deadline"}', 1)
        server.wait_for_metric("speakerlens_input_duration_seconds_count", 1)
        page = server.metrics()
        assert page[cancelled] == 3
        late = {
            name: value for name, value in page.items() if 'code="DEADLINE_EXCEEDED"' in name and "requests" in name
        }
        assert list(late.values()) == [1]
        assert page['speakerlens_requests_total{code="OK",method="Identify",variant="da"}'] == 1
        refused = {n: v for n, v in page.items() if n.startswith("speakerlens_rejections_total") and v}
        assert refused == {'speakerlens_rejections_total{reason="deadline"}': 1}
        assert page['speakerlens_answers_total{kind="predict",variant="da"}'] == 1
        assert page['speakerlens_prediction_margin_count{variant="da"}'] == 1
        assert page["speakerlens_audio_seconds_total"] == pytest.approx(6.0)
        assert page["speakerlens_requests_in_flight"] == 0
