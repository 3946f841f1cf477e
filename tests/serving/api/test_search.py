"""Search over gRPC: decisions, candidates and maps match an independent computation; exemplars are made to measure."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.gallery.exemplar import unit
from tests.serving import toy
from tests.serving.enrolled import (
    CALIBRATION,
    COSINES,
    QUERY,
    SECTION,
    SEEDS,
    Store,
    at,
    embedding,
    search_server,
    write_bundles,
)
from tests.serving.harness import CALL_SECONDS, ServerProcess, plane, raw, talk, voice

DA, CLEAN = pb.ModelSelector(variant="da"), pb.ModelSelector(variant="clean")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Store]]:
    with search_server(tmp_path_factory.mktemp("search")) as found:
        yield found


@pytest.fixture(scope="module")
def server(running: tuple[ServerProcess, Store]) -> ServerProcess:
    return running[0]


@pytest.fixture(scope="module")
def store(running: tuple[ServerProcess, Store]) -> Store:
    return running[1]


def search(server: ServerProcess, audio: NDArray[np.float32] = QUERY, **fields: object) -> pb.SearchResponse:
    request = pb.SearchRequest(audio=raw(audio), **{"model": DA, **fields})  # type: ignore[arg-type]
    return server.stub.Search(request, timeout=CALL_SECONDS)


def refused(call: Callable[..., object], request: object) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=CALL_SECONDS)
    return caught.value.code().name, str(caught.value.details())


def answer_of(server: ServerProcess, gallery: int, **fields: object) -> pb.SearchAnswer:
    """The answer once the server has seen the change of another process, which takes half a second at most."""
    deadline = time.monotonic() + CALL_SECONDS
    while (answer := search(server, **fields).answer).gallery != gallery:  # type: ignore[arg-type]
        assert time.monotonic() < deadline, f"{answer.gallery} speakers are searched"
    return answer


def codes(answer: pb.SearchAnswer) -> list[str]:
    return [pb.ReasonCode.Name(each.code).removeprefix("REASON_CODE_") for each in answer.reasons]


def test_best_exemplar_names_the_speaker(server: ServerProcess) -> None:
    response = search(server)
    answer, evidence = response.answer, response.audio.evidence
    assert (answer.variant, answer.version, answer.gallery) == ("da", 1, 4)
    assert [each.speaker for each in answer.candidates] == ["anna", "bo", "cleo", "zo\u00eb"]
    assert [each.exemplars for each in answer.candidates] == [3, 1, 2, 1]
    np.testing.assert_allclose([each.cosine for each in answer.candidates], [0.95, 0.3, 0.1, 0.0], atol=1e-4)
    ratios = CALIBRATION.log_likelihood_ratio(
        np.array([0.95, 0.3, 0.1, 0.0]), evidence.speech_s, evidence.snr_db, np.array([3, 1, 2, 1])
    )
    np.testing.assert_allclose([each.log_likelihood_ratio for each in answer.candidates], ratios, atol=0.01)
    probabilities = CALIBRATION.probability(ratios, 4)
    np.testing.assert_allclose([each.probability for each in answer.candidates], probabilities, atol=1e-3)
    threshold = CALIBRATION.threshold(4, evidence.speech_s, evidence.snr_db, 7 / 4)
    assert answer.threshold == pytest.approx(threshold, abs=1e-6)
    assert answer.margin == pytest.approx(ratios[0] - ratios[1], abs=0.01)
    assert (answer.decision, answer.speaker, codes(answer)) == (pb.DECISION_SPEAKER, "anna", [])
    assert answer.false_alarm == pytest.approx(SECTION["false_alarm"])
    assert answer.basis == pb.CALIBRATION_BASIS_OUT_OF_SET_SPEAKERS
    assert not answer.outlook
    difference = answer.mismatch
    assert difference.snr_db == pytest.approx(evidence.snr_db - 20.0)
    assert difference.speech_s == pytest.approx(evidence.speech_s - 3.0)
    assert response.timings.inference_s > 0


def test_named_subset_is_searched_alone(server: ServerProcess) -> None:
    answer = search(server, speakers=["bo", "zoe\u0308", "bo"], top_k=1).answer
    assert ([each.speaker for each in answer.candidates], answer.gallery) == (["bo"], 2)
    assert answer.margin > 0
    assert (answer.decision, answer.speaker) == (pb.DECISION_UNKNOWN, "")
    [reason] = answer.reasons
    assert codes(answer) == ["BELOW_THRESHOLD"]
    assert (reason.value, reason.limit) == (answer.candidates[0].log_likelihood_ratio, answer.threshold)
    assert "for 2 speakers" in reason.text


def test_two_close_speakers_are_ambiguous(server: ServerProcess, store: Store) -> None:
    store.enroll("anton", [at(0.95, unit(embedding(QUERY)), 99)])
    answer = answer_of(server, gallery=5)
    store.remove("anton")
    answer_of(server, gallery=4)
    assert {each.speaker for each in answer.candidates[:2]} == {"anna", "anton"}
    assert (answer.decision, codes(answer)) == (pb.DECISION_AMBIGUOUS, ["MARGIN"])
    assert answer.reasons[0].limit == pytest.approx(CALIBRATION.margin(5))


def test_doubtful_audio_is_unreliable(server: ServerProcess) -> None:
    noisy = talk(2.5, seed=1) + 0.02 * np.random.default_rng(0).normal(size=40_000).astype(np.float32)
    for audio, rate, code in (
        (talk(0.6, seed=1), 16_000, "TOO_LITTLE_SPEECH"),
        (talk(2.5, 8_000, seed=1), 8_000, "TOO_NARROW"),
        (voice(2.5), 16_000, "NO_SPEECH"),
        (noisy, 16_000, "TOO_NOISY"),
    ):
        request = pb.SearchRequest(audio=raw(audio, rate), model=DA, with_outlook=True)
        answer = server.stub.Search(request, timeout=CALL_SECONDS).answer
        assert (answer.decision, answer.speaker) == (pb.DECISION_UNRELIABLE, "")
        assert code in codes(answer), (code, codes(answer))
        assert len(answer.candidates) == 4
        assert [each.condition for each in answer.outlook] == [each["condition"] for each in SECTION["outlook"]]


def test_bundle_without_calibration_answers_cosines(server: ServerProcess) -> None:
    answer = search(server, model=CLEAN).answer
    assert (answer.decision, codes(answer)) == (pb.DECISION_UNRELIABLE, ["UNCALIBRATED"])
    assert answer.basis == pb.CALIBRATION_BASIS_NONE
    assert [each.speaker for each in answer.candidates] == ["anna", "bo", "cleo", "zo\u00eb"]
    assert answer.margin == pytest.approx(0.65, abs=1e-4)
    assert [each.log_likelihood_ratio for each in answer.candidates] == [0.0] * 4


def test_maps_explain_the_score_and_the_difference(server: ServerProcess) -> None:
    stages = (pb.STAGE_S1, pb.STAGE_S2, pb.STAGE_S3, pb.STAGE_S4)
    answer = search(server, explain=pb.ExplainOptions(stages=stages, resolution=pb.RESOLUTION_NATIVE)).answer
    direction, weights = unit(embedding(QUERY)), toy.weights(SEEDS["da"])
    first, second = at(0.95, direction, 1), at(0.3, direction, 10)
    for message, reference, length in (
        (answer.explanation, first, 1.0),
        (answer.difference, first - second, np.linalg.norm(first - second)),
    ):
        expected = toy.compared(weights, QUERY, reference)
        assert message.target_speaker == "anna"
        for index, each in enumerate(message.saliency, 1):
            wanted = length * expected[f"saliency_s{index}"]
            np.testing.assert_allclose(plane(each), wanted, atol=1e-3 * wanted.max())
    one = search(server, speakers=["bo"], explain=pb.ExplainOptions()).answer
    assert one.HasField("explanation")
    assert not one.HasField("difference")


def test_model_says_what_its_searches_rest_on(server: ServerProcess) -> None:
    """The numbers are those of the section in the bundle; a bundle without one has no message."""
    models = {
        each.variant: server.stub.GetModel(pb.GetModelRequest(model=each), timeout=CALL_SECONDS).model
        for each in (DA, CLEAN)
    }
    assert not models["clean"].HasField("search")
    found = models["da"].search
    assert found.basis == pb.CALIBRATION_BASIS_OUT_OF_SET_SPEAKERS
    assert (found.speakers, found.recordings) == (SECTION["speakers"], SECTION["utterances"])
    assert (found.false_alarm, found.margin) == pytest.approx((SECTION["false_alarm"], CALIBRATION.margin()))
    limits = (found.least_speech_s, found.least_snr_db, found.least_bandwidth_hz)
    assert limits == tuple(SECTION["limits"][name] for name in ("speech_s", "snr_db", "bandwidth_hz"))
    assert [(each.condition, each.miss, each.low, each.high) for each in found.outlook] == [
        (each["condition"], each["miss"], each["low"], each["high"]) for each in SECTION["outlook"]
    ]
    listed = server.stub.ListModels(pb.ListModelsRequest(), timeout=CALL_SECONDS).models
    assert {each.variant: each.HasField("search") for each in listed} == {"da": True, "clean": False}


def test_identical_exemplars_have_no_difference_to_explain(server: ServerProcess, store: Store) -> None:
    direction = unit(embedding(QUERY, "clean"))
    for name in ("twin 1", "twin 2"):
        store.enroll(name, [at(0.99, direction, 7)], "clean")
    answer = answer_of(server, gallery=6, model=CLEAN, explain=pb.ExplainOptions())
    assert answer.margin == 0
    assert answer.HasField("explanation")
    assert not answer.HasField("difference")
    for name in ("twin 1", "twin 2"):
        store.remove(name)
    answer_of(server, gallery=4, model=CLEAN)


def test_long_audio_is_searched_by_its_mean_direction(server: ServerProcess) -> None:
    audio = np.concatenate([QUERY, talk(5.0, seed=1)])
    embedded = server.stub.Embed(pb.EmbedRequest(audio=raw(audio), models=[DA]), timeout=CALL_SECONDS)
    direction = unit(np.array(embedded.embeddings[0].values))
    response = search(server, audio, explain=pb.ExplainOptions(stages=[pb.STAGE_S1]))
    exemplars = [at(each, unit(embedding(QUERY)), index) for index, each in enumerate(COSINES["anna"])]
    expected = max(float(each @ direction) for each in exemplars)
    cosine = {each.speaker: each.cosine for each in response.answer.candidates}["anna"]
    assert cosine == pytest.approx(expected, abs=1e-4)
    assert response.answer.explanation.saliency[0].columns == response.answer.explanation.log_mel.columns
    assert response.audio.evidence.speech_s == pytest.approx(7.5 * 0.58, rel=0.1)


def test_invalid_search_names_the_field(server: ServerProcess) -> None:
    audio = raw(QUERY)
    for fields, code, sentence in (
        ({}, "INVALID_ARGUMENT", "audio: no source"),
        ({"audio": audio, "speakers": ["anna", "nora", "x\n"]}, "INVALID_ARGUMENT", "speakers[2]"),
        ({"audio": audio, "speakers": ["anna", "nora"]}, "NOT_FOUND", "speakers: not enrolled with da/1: 'nora'"),
        ({"audio": audio, "speakers": ["a"] * 10_001}, "INVALID_ARGUMENT", "speakers: 10001 names"),
        ({"audio": audio, "top_k": 101}, "INVALID_ARGUMENT", "top_k: 101"),
        ({"audio": audio, "top_k": -1}, "INVALID_ARGUMENT", "top_k: -1"),
        ({"audio": audio, "priority": 9}, "INVALID_ARGUMENT", "priority: 9"),
        ({"audio": audio, "explain": pb.ExplainOptions(target_speaker="bo")}, "INVALID_ARGUMENT", "explain.target"),
    ):
        found = refused(server.stub.Search, pb.SearchRequest(model=DA, **fields))
        assert found[0] == code
        assert found[1].startswith(sentence)
    assert refused(server.stub.Search, pb.SearchRequest(audio=audio))[1].startswith("model: several variants")


def test_batch_answers_each_request_or_says_why_not(server: ServerProcess) -> None:
    requests = [
        pb.SearchRequest(audio=raw(QUERY), model=DA),
        pb.SearchRequest(audio=raw(QUERY), model=DA, speakers=["nora"]),
        pb.SearchRequest(audio=raw(QUERY), model=pb.ModelSelector(variant="x")),
        pb.SearchRequest(audio=raw(QUERY), model=CLEAN),
    ]
    results = server.stub.SearchBatch(pb.SearchBatchRequest(requests=requests), timeout=CALL_SECONDS).results
    assert [each.failure.code for each in results] == ["", "NOT_FOUND", "NOT_FOUND", ""]
    assert results[0].response.answer.speaker == "anna"
    assert results[3].response.answer.variant == "clean"
    assert refused(server.stub.SearchBatch, pb.SearchBatchRequest())[1].startswith("requests: 0")


def test_stream_answers_each_window_and_the_whole(server: ServerProcess) -> None:
    audio = np.concatenate([QUERY, QUERY, 0.02 * voice(6.0)])
    start = pb.SearchStreamStart(
        format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=16_000, model=DA, explain=pb.ExplainOptions()
    )
    data = audio.astype("<f4").tobytes()
    chunks = [pb.SearchStreamRequest(samples=data[at : at + 50_001]) for at in range(0, len(data), 50_001)]
    before = server.metrics()
    answers = list(server.stub.SearchStream(iter([pb.SearchStreamRequest(start=start), *chunks]), timeout=CALL_SECONDS))
    *windows, last = answers
    assert [each.WhichOneof("answer") for each in answers] == ["window"] * len(windows) + ["whole"]
    spoken = [each.window for each in windows if each.window.speech]
    assert [each.window.speech for each in windows] == [True] * len(spoken) + [False] * (len(windows) - len(spoken))
    for window in spoken:
        piece = audio[round(window.start_s * 16_000) : round(window.end_s * 16_000)]
        direct = search(server, piece).answer
        assert (window.answer.decision, window.answer.speaker) == (direct.decision, direct.speaker)
        np.testing.assert_allclose(
            [each.cosine for each in window.answer.candidates], [each.cosine for each in direct.candidates], atol=1e-4
        )
        assert window.answer.explanation.log_mel.times_s[0] >= window.start_s
        assert window.answer.HasField("difference")
        assert window.evidence.speech_s > 0.4
    assert not windows[-1].window.HasField("answer")
    whole = search(server, audio, explain=pb.ExplainOptions())
    assert last.whole.answer.candidates[0].cosine == pytest.approx(whole.answer.candidates[0].cosine, abs=1e-4)
    assert last.whole.audio.evidence.speech_s == pytest.approx(whole.audio.evidence.speech_s)
    np.testing.assert_allclose(
        plane(last.whole.answer.difference.saliency[0]), plane(whole.answer.difference.saliency[0]), atol=1e-3
    )
    counts = server.metrics()
    name = 'speakerlens_search_decisions_total{decision="%s",variant="da"}'
    grown = sum(counts[name % each] - before[name % each] for each in ("speaker", "unknown", "ambiguous", "unreliable"))
    assert grown == len(spoken) * 2 + 1  # the windows, their repetitions by hand, and the whole by hand
    assert counts['speakerlens_gallery_speakers{variant="da",version="1"}'] == 4


def test_stream_with_wrong_start_is_refused(server: ServerProcess) -> None:
    sound = pb.SearchStreamRequest(samples=b"\0" * 64)
    start = {"format": pb.SAMPLE_FORMAT_FLOAT32, "sample_rate": 16_000, "model": DA}
    for messages, sentence in (
        ([sound], "start: missing"),
        ([pb.SearchStreamRequest(start=pb.SearchStreamStart(**{**start, "sample_rate": 1}))], "start.sample_rate"),  # type: ignore[arg-type]
        ([pb.SearchStreamRequest(start=pb.SearchStreamStart(**start, speakers=["nora"]))], "speakers: not"),  # type: ignore[arg-type]
    ):
        with pytest.raises(grpc.RpcError) as caught:
            list(server.stub.SearchStream(iter(messages), timeout=CALL_SECONDS))
        assert str(caught.value.details()).startswith(sentence)


def test_empty_gallery_is_said_so(tmp_path: Path) -> None:
    with ServerProcess(write_bundles(tmp_path / "bundles"), f"--speakers={tmp_path / 'new.db'}") as server:
        answer = search(server, explain=pb.ExplainOptions()).answer
        assert (answer.decision, answer.gallery, codes(answer)) == (pb.DECISION_UNKNOWN, 0, ["EMPTY_GALLERY"])
        assert not answer.candidates
        assert not answer.HasField("explanation")


def test_server_without_a_store_refuses_search(toy_server: ServerProcess) -> None:
    stub = toy_server.stub
    for call, request in (
        (stub.Search, pb.SearchRequest(audio=raw(QUERY), model=DA)),
        (stub.SearchBatch, pb.SearchBatchRequest(requests=[pb.SearchRequest(audio=raw(QUERY), model=DA)])),
    ):
        code, text = refused(call, request)
        assert code == "FAILED_PRECONDITION"
        assert "--speakers" in text
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.SearchStream(iter([pb.SearchStreamRequest()]), timeout=CALL_SECONDS))
    assert caught.value.code().name == "FAILED_PRECONDITION"
