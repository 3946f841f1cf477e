"""Both clients against a stand-in for the server."""

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import grpc
import numpy as np
import pytest

from speakerlens import (
    AsyncSpeakerClient,
    ClientError,
    Explain,
    Identification,
    InvalidRequestError,
    Plane,
    ServerFailureError,
    SpeakerClient,
    StreamOptions,
)
from speakerlens.balancing import is_loopback
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb

from .stand_in import SPEAKERS, VARIANTS, StandIn, log_mel, mel_centres, saliency, serving

TOKEN = "x" * 20


def test_path_string_and_bytes_send_the_same_file(
    client: SpeakerClient, stand_in: StandIn, flac_file: Path, flac: bytes
) -> None:
    for audio in (flac_file, str(flac_file), flac):
        client.identify(audio)
        assert stand_in.last is not None
        assert stand_in.last.audio.encoded == flac


@pytest.mark.parametrize(
    ("samples", "sample_format", "channels"),
    [
        (np.array([0.5, -0.25, 1.0]), pb.SAMPLE_FORMAT_FLOAT32, 1),
        (np.array([[0.5, -0.5], [0.25, 0.75]], dtype=">f4"), pb.SAMPLE_FORMAT_FLOAT32, 2),
        (np.arange(12, dtype=np.int16).reshape(6, 2)[::2], pb.SAMPLE_FORMAT_INT16, 2),
    ],
    ids=["float64 mono", "big-endian stereo", "strided int16"],
)
def test_samples_are_sent_interleaved_little_endian(
    client: SpeakerClient, stand_in: StandIn, samples: np.ndarray, sample_format: int, channels: int
) -> None:
    client.identify(samples, rate=8000)
    assert stand_in.last is not None
    raw = stand_in.last.audio.raw
    assert (raw.sample_rate, raw.format, raw.channels) == (8000, sample_format, channels)
    kind = "<i2" if sample_format == pb.SAMPLE_FORMAT_INT16 else "<f4"
    assert np.frombuffer(raw.samples, kind).tolist() == samples.ravel().tolist()


def test_options_reach_the_server(client: SpeakerClient, stand_in: StandIn, flac: bytes) -> None:
    client.identify(
        flac,
        variants="act-da@3, clean",
        top_k=2,
        explain=Explain(stages=("s4", "fused"), resolution="native", encoding="uint8", target="carl"),
        with_embedding=True,
    )
    assert stand_in.last is not None
    stand_in.last.ClearField("audio")
    assert stand_in.last == pb.IdentifyRequest(
        models=[pb.ModelSelector(variant="act-da", version=3), pb.ModelSelector(variant="clean")],
        top_k=2,
        explain=pb.ExplainOptions(
            stages=[pb.STAGE_S4, pb.STAGE_FUSED],
            resolution=pb.RESOLUTION_NATIVE,
            encoding=pb.ENCODING_UINT8,
            target_speaker="carl",
        ),
        with_embedding=True,
    )


def test_defaults_send_the_audio_only(client: SpeakerClient, stand_in: StandIn, flac: bytes) -> None:
    result = client.identify(flac)
    assert stand_in.last == pb.IdentifyRequest(audio=pb.Audio(encoded=flac))
    assert [answer.name for answer in result.answers] == [f"{variant}@3" for variant in VARIANTS]
    assert all(answer.explanation is None and answer.embedding is None for answer in result.answers)


def _plane_is(plane: Plane, values: np.ndarray, tolerance: float) -> None:
    assert plane.values.dtype == np.float32
    np.testing.assert_allclose(plane.values, values, atol=tolerance)
    np.testing.assert_allclose(plane.frequencies_hz, mel_centres(80), rtol=1e-6)
    np.testing.assert_allclose(plane.times_s, 0.0125 + 0.01 * np.arange(198), rtol=1e-5)


@pytest.mark.parametrize(("encoding", "steps"), [("float32", 0.0), ("uint8", 0.502)])
def test_every_field_of_an_answer_is_read(client: SpeakerClient, flac: bytes, encoding: str, steps: float) -> None:
    result = client.identify(flac, explain=Explain(encoding=encoding), with_embedding=True)  # type: ignore[arg-type]
    answer = result["act-da"]
    assert answer is result["act-da@3"]
    assert (answer.best.speaker, answer.known, result["clean"].known) == ("anna", True, False)
    assert answer.best.probability == pytest.approx(0.9)
    assert [score.speaker for score in answer.speakers] == list(SPEAKERS)
    assert answer.embedding is not None
    assert answer.embedding.tolist() == [0.5, -0.25]
    assert (result.audio.seconds, result.audio.sample_rate, result.timings.inference_s) == (2.0, 16000, 0.003)
    assert answer.explanation is not None
    assert answer.explanation.target_speaker == "anna"
    # uint8 has 255 steps; the error is at most half a step.
    _plane_is(answer.explanation.maps["fused"], saliency("act-da"), steps / 255)
    assert answer.explanation.log_mel is not None
    _plane_is(answer.explanation.log_mel, log_mel(), steps / 255 * float(np.ptp(log_mel())))
    answer.explanation.maps["fused"].values[0, 0] = 2.0  # arrays of results are writable
    with pytest.raises(KeyError, match="no result of 'da-pair'; results: clean@3, da@3, act-da@3"):
        result["da-pair"]


def test_answer_larger_than_4_mib_is_received(client: SpeakerClient, stand_in: StandIn, flac: bytes) -> None:
    stand_in.reply = pb.IdentifyResponse(
        answers=[pb.ModelAnswer(variant="da", version=1, speakers=[pb.SpeakerScore(speaker="x" * (5 * 2**20))])]
    )
    assert len(client.identify(flac)["da"].best.speaker) == 5 * 2**20


def test_models_are_listed_with_their_limits(client: SpeakerClient) -> None:
    catalogue = client.models()
    assert [model.variant for model in catalogue.models] == list(VARIANTS)
    assert catalogue.models[0].speakers == SPEAKERS
    assert [(stage.stage, stage.stride) for stage in catalogue.models[0].stages] == [("s2", 2), ("fused", 0)]
    assert (catalogue.provider, catalogue.limits.max_seconds) == ("CPUExecutionProvider", 60)


@pytest.mark.parametrize("healthy", [True, False])
def test_is_serving_reports_health(stand_in: StandIn, healthy: bool) -> None:
    with serving(stand_in, healthy=healthy) as address, SpeakerClient(address) as client:
        assert client.is_serving() is healthy


def test_proxy_is_not_used_for_loopback(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)
    with SpeakerClient(address) as client:
        assert client.is_serving()


def test_async_calls_run_concurrently(address: str, flac: bytes, flac_file: Path) -> None:
    async def run() -> None:
        async with AsyncSpeakerClient(address, timeout=10) as client:
            assert await client.is_serving()
            assert (await client.models()).provider == "CPUExecutionProvider"
            wanted = [{"variants": name, "explain": True} for name in VARIANTS]
            results = await asyncio.gather(*(client.identify(flac_file, **one) for one in wanted))  # type: ignore[arg-type]
        assert [result.answers[0].variant for result in results] == list(VARIANTS)
        explanation = results[1].answers[0].explanation
        assert explanation is not None
        _plane_is(explanation.maps["fused"], saliency("da"), 0.0)

    asyncio.run(run())


def _awaited(annotation: object) -> object:
    """Return the asynchronous counterpart of an iterable or iterator type; other types unchanged."""
    kinds: dict[object, Any] = {Iterable: AsyncIterable, Iterator: AsyncIterator}
    kind = kinds.get(get_origin(annotation))
    return annotation if kind is None else kind[get_args(annotation)]


def test_batch_returns_a_result_or_an_error_for_each(
    client: SpeakerClient, address: str, stand_in: StandIn, flac: bytes, flac_file: Path
) -> None:
    stand_in.refuse, stand_in.refuse_content = (grpc.StatusCode.INVALID_ARGUMENT, "audio: not audio"), b"x"

    async def run() -> tuple[Identification | ClientError, ...]:
        async with AsyncSpeakerClient(address, timeout=10) as asynchronous:
            return await asynchronous.identify_batch([flac_file, b"x", flac], variants="da", top_k=2)

    for results in (client.identify_batch([flac_file, b"x", flac], variants="da", top_k=2), asyncio.run(run())):
        first, refused, last = results
        for each in (first, last):
            assert isinstance(each, Identification)
            assert [score.speaker for score in each["da"].speakers] == list(SPEAKERS[:2])
        assert type(refused) is InvalidRequestError
        assert str(refused) == "audio: not audio"
    assert stand_in.batches == [3, 3]
    with pytest.raises(FileNotFoundError):
        client.identify_batch([flac, "none.wav"])
    with pytest.raises(ValueError, match="need their rate"):
        client.identify_batch([flac, np.zeros(9)])
    assert stand_in.batches == [3, 3]


def test_speakers_are_listed_over_all_pages(stand_in: StandIn, client: SpeakerClient, address: str) -> None:
    names = ["a", "b", "c", "d", "e"]
    for name in names:
        client.enroll(name, [b"x"])

    async def run() -> list[str]:
        async with AsyncSpeakerClient(address, timeout=10) as asynchronous:
            return [each.speaker for each in await asynchronous.speakers()]

    assert [each.speaker for each in client.speakers()] == asyncio.run(run()) == names
    assert stand_in.pages == 6


def test_batch_answer_against_the_contract_is_an_error(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    failure = pb.IdentifyBatchResult(failure=pb.Failure(code="OF_A_LATER_TIME", message="what"))
    answer = pb.IdentifyBatchResponse(results=[failure])
    monkeypatch.setattr(stand_in, "IdentifyBatch", lambda request, context: answer)
    with serving(stand_in) as address, SpeakerClient(address) as client:
        [result] = client.identify_batch([b"x"])
        assert type(result) is ServerFailureError
        assert str(result).endswith("failed (UNKNOWN): what")
        with pytest.raises(ServerFailureError, match="sent 1 results for 2 utterances"):
            client.identify_batch([b"x", b"y"])
        answer.results[0].Clear()
        with pytest.raises(ServerFailureError, match="of a kind that this client does not know"):
            client.identify_batch([b"x"])


def test_both_clients_have_the_same_methods() -> None:
    def calls(client: type, translated: Callable[[object], object]) -> dict[str, inspect.Signature]:
        found = {}
        for name, member in vars(client).items():
            if inspect.isfunction(member) and not name.startswith("_"):
                signature = inspect.signature(member)
                found[name] = signature.replace(
                    parameters=[
                        each.replace(annotation=translated(each.annotation)) for each in signature.parameters.values()
                    ],
                    return_annotation=translated(signature.return_annotation),
                )
        return found

    # An `async def` is annotated with what it returns when awaited, so that only iteration differs.
    assert calls(SpeakerClient, _awaited) == calls(AsyncSpeakerClient, lambda annotation: annotation)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"audio": np.zeros(9)}, "samples need their rate in Hz"),
        ({"audio": b"x", "rate": 16000}, "rate: only for samples"),
        ({"audio": np.zeros((2, 2, 2)), "rate": 1}, r"not \[2, 2, 2\]"),
        ({"audio": np.zeros(9, np.int64), "rate": 1}, "floats in .* or uint8, not int64"),
        ({"audio": b"x", "variants": "clean,all"}, "'all' is not a variant"),
        ({"audio": b"x", "variants": "clean,"}, "'' is not a variant"),
        ({"audio": b"x", "variants": []}, "name at least one"),
        ({"audio": b"x", "variants": ["da@0"]}, "'da@0' needs a whole number of 1 or more after @"),
        ({"audio": b"x", "variants": "da@"}, "after @"),
        ({"audio": b"x", "variants": "da@99999999999"}, "after @"),
        ({"audio": b"x", "top_k": 0}, "top_k: 0 is not a number of speakers"),
        ({"audio": b"x", "explain": Explain(stages=("s5",))}, "stage: 's5' is not one of s1, s2, s3, s4, fused"),  # type: ignore[arg-type]
        ({"audio": b"x", "explain": Explain(resolution="raw")}, "resolution: 'raw'"),  # type: ignore[arg-type]
    ],
)
def test_invalid_arguments_are_refused_before_sending(
    client: SpeakerClient, stand_in: StandIn, arguments: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        client.identify(**arguments)  # type: ignore[arg-type]
    assert stand_in.last is None


def test_missing_file_is_an_os_error(client: SpeakerClient, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.identify(tmp_path / "none.wav")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.8.8:50051", "localhost:1", "LOCALHOST:1", "[::1]:1"])
def test_loopback_is_known_by_its_address(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address",
    ["127.evil.example.org:443", "127.0.0.1.example.org:443", "localhost.example.org:443", "localhost:1.example.org",
     "127.0.0.1@example.org:443", "10.0.0.1:1", "[::2]:1", "[::1].example.org:1", "127.0.0.1,10.0.0.1:1", "127.:1",
     "example.org:1", "127.0.0.1", "", ":1"],
)  # fmt: skip
def test_name_that_looks_like_loopback_is_none(address: str) -> None:
    assert not is_loopback(address)
    with pytest.raises(ValueError, match="in plain text; use TLS"):
        SpeakerClient(address, token=TOKEN)


def test_token_is_sent_in_plain_text_to_loopback_only(stand_in: StandIn, address: str) -> None:
    async def run() -> None:
        async with AsyncSpeakerClient(address, token=TOKEN) as client:
            await client.identify(b"x")
            assert stand_in.metadata.pop("authorization") == f"Bearer {TOKEN}"

    with SpeakerClient(address, token=TOKEN) as client:
        for call in (
            lambda: client.identify(b"x"),
            lambda: list(client.identify_stream([bytes(9)], StreamOptions(8000))),
        ):
            call()
            assert stand_in.metadata.pop("authorization") == f"Bearer {TOKEN}"
    asyncio.run(run())
    with pytest.raises(ValueError, match=r"token: it would be sent to example\.org:1 in plain text; use TLS"):
        SpeakerClient("example.org:1", token=TOKEN)
