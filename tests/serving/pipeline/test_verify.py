"""Embed, Verify, Enroll and the batch over gRPC: answers match an independent computation in numpy."""

import contextlib
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from tests.serving import toy, toy_graph
from tests.serving.conftest import SEEDS
from tests.serving.harness import CALL_SECONDS, ServerProcess, plane, raw, talk, voice

STAGES = (pb.STAGE_S1, pb.STAGE_S2, pb.STAGE_S3, pb.STAGE_S4)
DA, CLEAN = pb.ModelSelector(variant="da"), pb.ModelSelector(variant="clean", version=1)


@pytest.fixture(scope="module")
def server(toy_bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    store = tmp_path_factory.mktemp("store") / "speakers.db"
    with ServerProcess(toy_bundles, f"--speakers={store}", "--window-seconds=3") as process:
        yield process


def refused(call: Callable[..., object], request: object) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=CALL_SECONDS)
    return caught.value.code().name, str(caught.value.details())


def embedding(audio: NDArray[np.float32], variant: str = "da", version: int = 1) -> NDArray[np.float64]:
    return np.asarray(toy.expected(toy.weights(SEEDS[variant, version]), audio)["embedding"])


def unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector))


def test_embeddings_of_every_variant(server: ServerProcess) -> None:
    audio = voice(1.3)
    answer = server.stub.Embed(pb.EmbedRequest(audio=raw(audio)), timeout=CALL_SECONDS)
    assert [(e.variant, e.version) for e in answer.embeddings] == [("act-da", 1), ("clean", 2), ("da", 1)]
    for each in answer.embeddings:
        np.testing.assert_allclose(each.values, embedding(audio, each.variant, each.version), rtol=1e-4, atol=1e-6)
    assert answer.audio.HasField("evidence")
    answer.audio.ClearField("evidence")
    assert answer.audio == pb.AudioInfo(seconds=1.3, sample_rate=16000, channels=1, speech=False)
    assert answer.timings.inference_s > 0


def test_one_model_is_described(server: ServerProcess) -> None:
    model = server.stub.GetModel(pb.GetModelRequest(model=CLEAN), timeout=CALL_SECONDS).model
    assert (model.variant, model.version, list(model.speakers)) == ("clean", 1, toy.speakers())
    assert refused(server.stub.GetModel, pb.GetModelRequest())[1].startswith("model: several variants are loaded")
    code, text = refused(server.stub.GetModel, pb.GetModelRequest(model=pb.ModelSelector(variant="x")))
    assert (code, text.split(":")[0]) == ("NOT_FOUND", "model.variant")


def test_failed_enrolment_stops_computing(server: ServerProcess) -> None:
    counter = 'speakerlens_batch_size_sum{kind="predict",variant="da"}'
    before = server.metrics().get(counter, 0)
    good, bad = raw(voice(1.0)), pb.Audio(encoded=b"no audio")
    request = pb.EnrollRequest(speaker="half", utterances=[good, bad, *[good] * 90], models=[DA])
    code, text = refused(server.stub.Enroll, request)
    assert (code, text.split(":")[0]) == ("INVALID_ARGUMENT", "utterances[1].encoded")
    assert server.metrics()["speakerlens_requests_in_flight"] == 0
    assert server.metrics().get(counter, 0) - before < 30


def test_two_utterances_are_compared(server: ServerProcess) -> None:
    first, second = voice(1.2), voice(0.9, seed=1)
    cosine = unit(embedding(first)) @ unit(embedding(second))
    request = pb.VerifyRequest(audio=raw(first), other=raw(second), model=DA)
    answer = server.stub.Verify(request, timeout=CALL_SECONDS)
    assert answer.score == pytest.approx(cosine, abs=1e-5)
    assert answer.threshold == toy.VERIFICATION_THRESHOLDS[1]
    assert answer.same == (cosine >= toy.VERIFICATION_THRESHOLDS[1])
    assert (answer.variant, answer.version) == ("da", 1)
    assert (answer.audio.seconds, answer.other.seconds) == (1.2, 0.9)
    assert not answer.HasField("explanation")
    itself = server.stub.Verify(pb.VerifyRequest(audio=raw(first), other=raw(first), model=DA), timeout=CALL_SECONDS)
    assert itself.same
    assert 1 - 1e-6 < itself.score <= 1


def test_both_maps_explain_the_score(server: ServerProcess) -> None:
    first, second = voice(1.2), voice(0.9, seed=1)
    options = pb.ExplainOptions(stages=STAGES, resolution=pb.RESOLUTION_NATIVE)
    request = pb.VerifyRequest(audio=raw(first), other=raw(second), model=DA, explain=options)
    answer = server.stub.Verify(request, timeout=CALL_SECONDS)
    weights = toy.weights(SEEDS["da", 1])
    for message, audio, other in ((answer.explanation, first, second), (answer.other_explanation, second, first)):
        expected = toy.compared(weights, audio, embedding(other))
        assert message.target_speaker == ""
        for index, each in enumerate(message.saliency, 1):
            wanted = expected[f"saliency_s{index}"]
            np.testing.assert_allclose(plane(each), wanted, atol=1e-4 * wanted.max())
        np.testing.assert_allclose(plane(message.log_mel), expected["features"], atol=1e-4)


def test_utterance_is_compared_with_an_enrolled_speaker(server: ServerProcess) -> None:
    utterances = [voice(0.6 + 0.2 * index, seed=index) for index in range(3)]
    request = pb.EnrollRequest(speaker="Zoe\u0308", utterances=[raw(u) for u in utterances], models=[DA, CLEAN])
    stored = server.stub.Enroll(request, timeout=CALL_SECONDS).speaker
    assert stored.speaker == "Zo\u00eb"
    assert [(m.variant, m.version, m.utterances, m.usable) for m in stored.models] == [
        ("da", 1, 3, True),
        ("clean", 1, 3, True),
    ]
    audio = voice(1.1, seed=9)
    for model, key in ((DA, ("da", 1)), (CLEAN, ("clean", 1))):
        mean = np.mean([unit(embedding(u, *key)) for u in utterances], axis=0)
        options = pb.ExplainOptions(stages=STAGES, resolution=pb.RESOLUTION_NATIVE)
        answer = server.stub.Verify(
            pb.VerifyRequest(audio=raw(audio), enrolled_speaker="Zo\u00eb", model=model, explain=options),
            timeout=CALL_SECONDS,
        )
        assert answer.score == pytest.approx(unit(embedding(audio, *key)) @ unit(mean), abs=1e-5)
        assert answer.threshold == toy.VERIFICATION_THRESHOLDS[3]
        expected = toy.compared(toy.weights(SEEDS[key]), audio, mean)
        wanted = expected["saliency_s2"]
        np.testing.assert_allclose(plane(answer.explanation.saliency[1]), wanted, atol=1e-4 * wanted.max())
        assert answer.explanation.target_speaker == "Zo\u00eb"
        assert not answer.HasField("other_explanation")
        assert not answer.HasField("other")
    code, text = refused(
        server.stub.Verify,
        pb.VerifyRequest(audio=raw(audio), enrolled_speaker="Zo\u00eb", model=pb.ModelSelector(variant="act-da")),
    )
    assert code == "FAILED_PRECONDITION"
    assert "clean/1, da/1" in text
    assert "act-da/1" in text
    server.stub.RemoveSpeaker(pb.RemoveSpeakerRequest(speaker="Zoe\u0308"), timeout=CALL_SECONDS)
    assert refused(server.stub.RemoveSpeaker, pb.RemoveSpeakerRequest(speaker="Zo\u00eb"))[0] == "NOT_FOUND"


def test_long_audio_is_compared_by_its_mean_direction(server: ServerProcess) -> None:
    """The gradient of the whole's cosine by one window's embedding, carried back by hand."""
    audio, other = talk(7.3, seed=3), voice(1.0, seed=4)
    embedded = server.stub.Embed(pb.EmbedRequest(audio=raw(audio), models=[DA]), timeout=CALL_SECONDS)
    whole = np.array(embedded.embeddings[0].values)
    options = pb.ExplainOptions(stages=STAGES, resolution=pb.RESOLUTION_NATIVE)
    request = pb.VerifyRequest(audio=raw(audio), other=raw(other), model=DA, explain=options)
    answer = server.stub.Verify(request, timeout=CALL_SECONDS)
    reference = unit(embedding(other))
    assert answer.score == pytest.approx(unit(whole) @ reference, abs=1e-5)
    window = 48_000  # the last of them begins where the grid of S4 allows it
    weights = toy.weights(SEEDS["da", 1])
    starts = list(range(0, len(audio) - window, 23_040))
    last = -(-(len(audio) - window) // 1280) * 1280
    pieces = [audio[start : start + window] for start in starts if start < last] + [audio[last:]]
    directions = [unit(embedding(piece)) for piece in pieces]
    mean = np.mean(directions, axis=0)
    np.testing.assert_allclose(unit(whole), unit(mean), atol=1e-4)
    across = (reference - (unit(mean) @ reference) * unit(mean)) / np.linalg.norm(mean) / len(pieces)
    first = embedding(pieces[0])
    by_embedding = (across - (across @ directions[0]) * directions[0]) / np.linalg.norm(first)
    features = toy.expected(weights, pieces[0])["features"]
    wanted = np.maximum(features * (weights.embedding @ by_embedding / features.shape[1])[:, None], 0)
    alone = 23_040 // 160  # columns that no other window covers
    served = plane(answer.explanation.saliency[0])
    assert served.shape[1] == 1 + (len(audio) - 400) // 160
    np.testing.assert_allclose(served[:, :alone], wanted[:, :alone], atol=2e-3 * wanted.max())


BAD_NAMES = [
    *("", " anna", "a" * 129, "an\nna", "a\u202enna", "\ud7ff\ue000", "a\u0000"),
    # Marks that normalising has to sort, which for so many takes minutes.
    pytest.param("a" + "\u0300\u0316" * 200_000, id="marks"),
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_invalid_names_are_refused(server: ServerProcess, name: str) -> None:
    code, text = refused(server.stub.Enroll, pb.EnrollRequest(speaker=name, utterances=[raw(voice(1.0))]))
    assert (code, text.split(":")[0].split(" ")[0]) == ("INVALID_ARGUMENT", "speaker")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"other": raw(voice(1.0))}, "audio: no source"),
        ({"audio": raw(voice(1.0))}, "against: nothing to compare with"),
        ({"audio": raw(voice(1.0)), "other": pb.Audio()}, "other: no source"),
        ({"audio": raw(voice(1.0)), "other": raw(voice(0.1))}, "other: 0.100 s long"),
        ({"audio": raw(voice(1.0)), "other": raw(voice(1.0) * 99)}, "other.raw.samples: peak"),
        ({"audio": raw(voice(1.0)), "enrolled_speaker": "unknown"}, "enrolled_speaker: no enrolled speaker 'unknown'"),
        (
            {"audio": raw(voice(1.0)), "other": raw(voice(1.0)), "explain": pb.ExplainOptions(target_speaker="x")},
            "explain.target_speaker",
        ),
    ],
)
def test_invalid_verification_names_the_field(server: ServerProcess, fields: dict[str, object], sentence: str) -> None:
    code, text = refused(server.stub.Verify, pb.VerifyRequest(model=DA, **fields))  # type: ignore[arg-type]
    assert code in ("INVALID_ARGUMENT", "NOT_FOUND")
    assert text.startswith(sentence)


def test_invalid_utterance_is_named_and_enrols_no_speaker(server: ServerProcess) -> None:
    request = pb.EnrollRequest(speaker="ida", utterances=[raw(voice(1.0)), raw(voice(0.2))], models=[DA])
    code, text = refused(server.stub.Enroll, request)
    assert code == "INVALID_ARGUMENT"
    assert text.startswith("utterances[1]: 0.200 s long")
    for utterances in (b"", b"\x12\x02\x0a\x00" * 1_000_000):
        request = pb.EnrollRequest.FromString(pb.EnrollRequest(speaker="ida").SerializeToString() + utterances)
        sentence = f"utterances: {len(request.utterances)}; send 1 to 100"
        assert refused(server.stub.Enroll, request)[1].startswith(sentence)
    listed = server.stub.ListSpeakers(pb.ListSpeakersRequest(), timeout=CALL_SECONDS).speakers
    assert "ida" not in [each.speaker for each in listed]


def test_speakers_are_listed_page_by_page(server: ServerProcess) -> None:
    names = [f"page {letter}" for letter in "édcba"]
    for name in names:
        request = pb.EnrollRequest(speaker=name, utterances=[raw(voice(1.0))], models=[DA, CLEAN])
        server.stub.Enroll(request, timeout=CALL_SECONDS)
    [*everybody] = server.stub.ListSpeakers(pb.ListSpeakersRequest(page_size=5000), timeout=CALL_SECONDS).speakers
    listed: list[pb.EnrolledSpeaker] = []
    token = ""
    while True:
        page = server.stub.ListSpeakers(pb.ListSpeakersRequest(page_size=2, page_token=token), timeout=CALL_SECONDS)
        listed += page.speakers
        token = page.next_page_token
        if not token:
            break
        assert len(page.speakers) == 2
    assert listed == everybody
    assert [each.speaker for each in listed if each.speaker.startswith("page")] == sorted(names)
    assert refused(server.stub.ListSpeakers, pb.ListSpeakersRequest(page_size=-1))[1].startswith("page_size: -1")
    for bad in ("page a", "/w==", "é", "AA=="):
        code, text = refused(server.stub.ListSpeakers, pb.ListSpeakersRequest(page_token=bad))
        assert (code, text.split(":")[0]) == ("INVALID_ARGUMENT", "page_token")
    for name in names:
        server.stub.RemoveSpeaker(pb.RemoveSpeakerRequest(speaker=name), timeout=CALL_SECONDS)


def test_server_without_a_store_names_the_flag(toy_server: ServerProcess) -> None:
    stub = toy_server.stub
    for call, request in (
        (stub.ListSpeakers, pb.ListSpeakersRequest()),
        (stub.RemoveSpeaker, pb.RemoveSpeakerRequest(speaker="anna")),
        (stub.Enroll, pb.EnrollRequest(speaker="anna", utterances=[raw(voice(1.0))])),
        (stub.Verify, pb.VerifyRequest(audio=raw(voice(1.0)), enrolled_speaker="anna", model=DA)),
    ):
        code, text = refused(call, request)
        assert code == "FAILED_PRECONDITION"
        assert "--speakers FILE" in text


def test_enrolments_survive_a_kill_and_belong_to_one_bundle(tmp_path: Path) -> None:
    store = tmp_path / "speakers.db"
    toy.write_bundle(tmp_path / "a", "da", 1, seed=2)
    enroll = pb.EnrollRequest(speaker="anna", utterances=[raw(voice(1.0))])
    first = ServerProcess(tmp_path / "a", f"--speakers={store}")
    before = first.stub.Enroll(enroll, timeout=CALL_SECONDS).speaker
    first.channel.close()
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    with ServerProcess(tmp_path / "a", f"--speakers={store}") as second:
        assert list(second.stub.ListSpeakers(pb.ListSpeakersRequest()).speakers) == [before]
        request = pb.VerifyRequest(audio=raw(voice(1.0)), enrolled_speaker="anna")  # one variant: no model named
        assert second.stub.Verify(request, timeout=CALL_SECONDS).same
    toy.write_bundle(tmp_path / "b", "da", 1, seed=5)
    with ServerProcess(tmp_path / "b", f"--speakers={store}") as third:
        [listed] = third.stub.ListSpeakers(pb.ListSpeakersRequest()).speakers
        assert [(m.variant, m.version, m.usable) for m in listed.models] == [("da", 1, False)]
        code, text = refused(third.stub.Verify, request)
        assert code == "FAILED_PRECONDITION"
        assert "another bundle" in text
        third.stub.Enroll(enroll, timeout=CALL_SECONDS)
        assert third.stub.Verify(request, timeout=CALL_SECONDS).same


@pytest.mark.parametrize("blob", [b"odd", bytes(4 * 3), np.full(toy_graph.EMBEDDING, np.nan, "<f4").tobytes()])
def test_damaged_reference_is_refused_until_enrolled_again(tmp_path: Path, blob: bytes) -> None:
    toy.write_bundle(tmp_path / "bundles", "da", 1)
    file = tmp_path / "speakers.db"
    with ServerProcess(tmp_path / "bundles", f"--speakers={file}") as server:
        enrol = pb.EnrollRequest(speaker="anna", utterances=[raw(voice(1.0))])
        verify = pb.VerifyRequest(audio=raw(voice(1.0)), enrolled_speaker="anna")

        def usable() -> list[bool]:
            listed = server.stub.ListSpeakers(pb.ListSpeakersRequest(), timeout=CALL_SECONDS)
            return [model.usable for speaker in listed.speakers for model in speaker.models]

        server.stub.Enroll(enrol, timeout=CALL_SECONDS)
        assert usable() == [True]
        with contextlib.closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("UPDATE exemplars SET embedding = ?", (blob,))
        code, text = refused(server.stub.Verify, verify)
        assert code == "FAILED_PRECONDITION"
        assert text.endswith("is damaged in the speakers' store; enrol the speaker again")
        assert usable() == [False]
        server.stub.Enroll(enrol, timeout=CALL_SECONDS)
        assert server.stub.Verify(verify, timeout=CALL_SECONDS).score == pytest.approx(1, abs=1e-5)


def test_concurrent_enrolments_of_a_name_leave_one_whole(server: ServerProcess) -> None:
    audios = [voice(1.0, seed=seed) for seed in range(6)]
    requests = [pb.EnrollRequest(speaker="kim", utterances=[raw(audio)] * (i + 1)) for i, audio in enumerate(audios)]
    calls = [server.stub.Enroll.future(request) for request in requests]
    for call in calls:
        assert call.result(CALL_SECONDS)
    [kim] = [s for s in server.stub.ListSpeakers(pb.ListSpeakersRequest()).speakers if s.speaker == "kim"]
    [count] = {model.utterances for model in kim.models}
    assert len(kim.models) == 3
    request = pb.VerifyRequest(audio=raw(audios[count - 1]), enrolled_speaker="kim", model=DA)
    assert server.stub.Verify(request, timeout=CALL_SECONDS).score == pytest.approx(1.0, abs=1e-5)


def test_batch_has_an_answer_or_error_for_each_request(server: ServerProcess) -> None:
    audios = [voice(0.5 + 0.1 * index, seed=index) for index in range(20)]
    requests = [pb.IdentifyRequest(audio=raw(audio), models=[DA], top_k=1) for audio in audios]
    requests[3] = pb.IdentifyRequest(models=[DA])
    requests[7] = pb.IdentifyRequest(audio=raw(audios[7]), models=[pb.ModelSelector(variant="none")])
    requests[11] = pb.IdentifyRequest(audio=raw(audios[11] * toy.NAN_PEAK / np.abs(audios[11]).max() * 2), models=[DA])
    answer = server.stub.IdentifyBatch(pb.IdentifyBatchRequest(requests=requests), timeout=CALL_SECONDS)
    assert len(answer.results) == 20
    failures = {i: r.failure for i, r in enumerate(answer.results) if r.HasField("failure")}
    assert {i: f.code for i, f in failures.items()} == {3: "INVALID_ARGUMENT", 7: "NOT_FOUND", 11: "INTERNAL"}
    assert failures[3].message.startswith("audio: no source")
    assert "there are act-da, clean, da" in failures[7].message
    for index, (audio, result) in enumerate(zip(audios, answer.results, strict=True)):
        if index not in failures:
            expected = toy.expected(toy.weights(SEEDS["da", 1]), audio)["logits"].max()
            assert result.response.answers[0].speakers[0].logit == pytest.approx(expected, rel=1e-4)


def test_batch_limits_are_named(server: ServerProcess) -> None:
    one = pb.IdentifyRequest(audio=raw(voice(0.5)))
    for count in (0, 257):
        code, text = refused(server.stub.IdentifyBatch, pb.IdentifyBatchRequest(requests=[one] * count))
        assert code == "INVALID_ARGUMENT"
        assert text.startswith(f"requests: {count}; send 1 to 256")


def test_batch_larger_than_the_queue_waits(toy_bundles: Path) -> None:
    with ServerProcess(toy_bundles, "--queue-size=4", "--max-batch=2") as server:
        requests = [pb.IdentifyRequest(audio=raw(voice(0.6, seed=i)), models=[DA]) for i in range(60)]
        batch = server.stub.IdentifyBatch.future(pb.IdentifyBatchRequest(requests=requests), timeout=CALL_SECONDS)
        others = [server.stub.Identify(requests[i], timeout=CALL_SECONDS) for i in range(5)]
        assert all(other.answers for other in others)
        assert all(result.HasField("response") for result in batch.result().results)


def test_timings_of_a_comparison_add_up(server: ServerProcess) -> None:
    """Both utterances are computed concurrently, and that time counts once."""
    name = 'speakerlens_request_duration_seconds_sum{method="Verify",variant="da"}'
    before = server.metrics().get(name, 0)
    request = pb.VerifyRequest(model=DA, explain=pb.ExplainOptions())
    request.audio.CopyFrom(raw(np.tile(talk(10.0, seed=1), 6)))
    request.other.CopyFrom(raw(np.tile(talk(10.0, seed=2), 6)))
    timings = server.stub.Verify(request, timeout=CALL_SECONDS).timings
    together = timings.decode_s + timings.queue_s + timings.inference_s + timings.encode_s
    took = server.metrics()[name] - before
    assert 0.7 * took < together <= took
