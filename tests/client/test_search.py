"""Searches by the client and by the command line, against a real server with enrolled speakers."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from speakerlens import (
    AsyncSpeakerClient,
    Decision,
    NotFoundError,
    NotPossibleError,
    SearchResult,
    SearchStreamOptions,
    SearchWindow,
    SpeakerClient,
)
from speakerlens.cli import table
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.search_responses import search_result
from tests.serving.enrolled import QUERY, SECTION, search_server
from tests.serving.harness import ServerProcess, voice

from .conftest import Command

RATE = 16_000


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with search_server(tmp_path_factory.mktemp("search")) as (server, _):
        yield str(server.ready["grpc"])


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "call.flac"
    sf.write(path, np.concatenate([QUERY, QUERY, 0.02 * voice(6.0)]), RATE)
    return path


@pytest.fixture(scope="module")
def query(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audio") / "query.flac"
    sf.write(path, QUERY, RATE)
    return path


def pieces(path: Path) -> Iterator[np.ndarray]:
    samples = sf.read(path, dtype="float32")[0]
    yield from np.array_split(samples, 20)


def test_search_names_the_speaker_and_says_why_not(address: str, query: Path) -> None:
    with SpeakerClient(address) as client:
        found = client.search(query, variant="da", explain="s2")
        assert (found.decision, found.speaker, found.name) == (Decision.SPEAKER, "anna", "da@1")
        assert [each.speaker for each in found.candidates] == ["anna", "bo", "cleo", "zo\u00eb"]
        assert found.candidates[0].exemplars == 3
        assert found.candidates[0].mismatch is not None
        assert found.false_alarm == pytest.approx(SECTION["false_alarm"])
        assert found.explanation is not None
        assert found.difference is not None
        assert list(found.difference.maps) == ["s2"]
        assert found.audio.evidence is not None
        assert found.audio.evidence.speech_s == pytest.approx(1.5, abs=0.2)
        assert "anna" in repr(found)
        other = client.search(QUERY, rate=RATE, variant="da", speakers=["cleo"], top_k=1)
        assert (other.decision, other.speaker, other.gallery) == (Decision.UNKNOWN, None, 1)
        [reason] = other.reasons
        assert (reason.code, reason.limit) == ("BELOW_THRESHOLD", other.threshold)
        assert [each.condition for each in other.outlook] == [each["condition"] for each in SECTION["outlook"]]
        plain = client.search(query, variant="clean")
        assert (plain.threshold, plain.false_alarm, plain.reasons[0].code) == (None, None, "UNCALIBRATED")
        with pytest.raises(NotFoundError, match="nora"):
            client.search(query, variant="da", speakers=["nora"])
        for wrong in ({"top_k": 0}, {"speakers": "bo"}, {"variant": "da@x"}):
            with pytest.raises(ValueError, match=next(iter(wrong))):
                client.search(query, **wrong)
        first, second = client.search_many([query, b"no audio"], variant="da")
        assert isinstance(first, SearchResult)
        assert first.speaker == "anna"
        assert "audio" in str(second)
        models = {each.variant: each for each in client.models().models}
        calibrated = models["da"].search
        assert calibrated is not None
        assert (calibrated.speakers, calibrated.least_snr_db) == (SECTION["speakers"], SECTION["limits"]["snr_db"])
        assert [each.miss for each in calibrated.outlook] == [each["miss"] for each in SECTION["outlook"]]
        assert models["clean"].search is None
        compared = client.verify(query, speaker="anna", variant="da")
        assert compared.mismatch is not None
        assert compared.mismatch.bandwidth_hz == 0


def test_live_audio_names_enrolled_speakers(address: str, recording: Path) -> None:
    options = SearchStreamOptions(RATE, variant="da", explain=True)
    with SpeakerClient(address) as client:
        *windows, whole = client.search_stream(pieces(recording), options)
        assert all(isinstance(each, SearchWindow) for each in windows)
        assert isinstance(whole, SearchResult)
        first, last = windows[0], windows[-1]
        assert isinstance(first, SearchWindow)
        assert isinstance(last, SearchWindow)
        assert first.answer is not None
        assert first.answer.difference is not None
        assert first.evidence.speech_s > 1
        assert last.answer is None
        with pytest.raises(ZeroDivisionError):  # of the caller's own iterator
            list(client.search_stream((np.zeros(1, np.float32) / 0 for _ in [1 / 0]), options))


async def test_asyncio_client_answers_the_same(address: str, query: Path, recording: Path) -> None:
    async def chunks() -> AsyncIterator[np.ndarray]:
        for piece in pieces(recording):
            yield piece

    async with AsyncSpeakerClient(address) as client:
        assert (await client.search(query, variant="da")).speaker == "anna"
        [result] = await client.search_many([query], variant="da")
        assert isinstance(result, SearchResult)
        found = [each async for each in client.search_stream(chunks(), SearchStreamOptions(RATE, variant="da"))]
        assert isinstance(found[-1], SearchResult)


def test_server_without_a_store_is_not_possible(query: Path, tmp_path: Path) -> None:
    from tests.serving import toy  # noqa: PLC0415

    toy.write_bundle(tmp_path, "da", 1)
    with (
        ServerProcess(tmp_path) as server,
        SpeakerClient(server.ready["grpc"]) as client,
        pytest.raises(NotPossibleError, match="--speakers"),
    ):
        client.search(query)


def test_search_command_prints_tables_and_json(command: Command, address: str, query: Path, tmp_path: Path) -> None:
    at = ("--server", address, "--variant", "da")
    done = command("search", query, *at)
    assert done.returncode == 0, done.stderr
    assert "da@1, 4 speakers searched, 5.0% false alarms promised: anna" in done.stdout
    done = command("search", query, "--speakers", "cleo", *at)
    assert done.returncode == 0
    assert "BELOW_THRESHOLD: the best candidate's log-likelihood ratio" in done.stdout
    assert "enrolled speakers are missed in 38% (30% to 47%): SNR 0 to 10 dB" in done.stdout
    png, npz = tmp_path / "why.png", tmp_path / "why.npz"
    done = command("search", query, "--json", "--plot", png, "--save", npz, *at)
    document = json.loads(done.stdout)
    assert (document["speaker"], document["decision"], document["gallery"]) == ("anna", "speaker", 4)
    assert (document["plot"], document["arrays"]) == (str(png), str(npz))
    assert set(document["audio"]["evidence"]) == {"speech_s", "snr_db", "bandwidth_hz", "clipping", "level_db"}
    assert 0 < document["difference"]["maps"]["fused"]["peak"]["value"] <= 1
    assert document["candidates"][0]["mismatch"]["snr_db"] > 0
    assert png.read_bytes().startswith(b"\x89PNG")
    assert {"da@1/fused", "da@1/difference/fused"} <= set(np.load(npz))


def test_search_command_reads_standard_input(command: Command, address: str, query: Path) -> None:
    done = command("search", "-", "--json", "--variant", "da", "--server", address, stdin=query.read_bytes())
    assert json.loads(done.stdout)["speaker"] == "anna"
    raw = (QUERY * 32767).astype("<i2").tobytes()
    options = ("--format", "s16le", "--json", "--variant", "da", "--server", address)
    assert json.loads(command("search", "-", *options, stdin=raw).stdout)["speaker"] == "anna"


def test_search_command_has_an_exit_code_for_each_error(
    command: Command, address: str, query: Path, tmp_path: Path
) -> None:
    at = ("--server", address)
    text = tmp_path / "text.wav"
    text.write_text("hello")
    for arguments, code, sentence in (
        ((query,), 3, "--variant: several variants are loaded"),
        ((query, "--variant", "x"), 4, "no variant 'x'"),
        ((query, "--variant", "da", "--speakers", "nora"), 4, "--speakers: not enrolled with da/1: 'nora'"),
        ((text, "--variant", "da"), 3, "text.wav"),
        ((tmp_path / "none.wav", "--variant", "da"), 3, "none.wav"),
        ((query, "--top-k", "0"), 2, "--top-k"),
        ((query, "--variant", "da@x"), 2, "da@x"),
        ((query, "--variant", "da", "--top-k", "101"), 3, "--top-k: 101"),
    ):
        done = command("search", *arguments, *at)
        assert (done.returncode, sentence in done.stderr) == (code, True), (arguments, done.stderr)
    done = command("search", text, query, "--variant", "da", "--json", *at)
    refused, found = (json.loads(line) for line in done.stdout.splitlines())
    assert (done.returncode, refused["error"]["code"], found["speaker"]) == (3, "INVALID_ARGUMENT", "anna")


def test_listen_names_enrolled_speakers_live(command: Command, address: str, recording: Path) -> None:
    done = command("listen", recording, "--search", "--variant", "da", "--server", address)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("    0.00 to     3.00 s  ")
    assert any(line.endswith("no speech") for line in lines)
    assert "4 speakers searched" in done.stdout
    done = command(
        "listen", recording, "--search", "--variant", "da", "--speakers", "bo", "--json", "--server", address
    )
    *windows, whole = (json.loads(line) for line in done.stdout.splitlines())
    assert {"window", "evidence", "decision", "candidates"} <= set(windows[0])
    assert windows[-1]["window"]["speech"] is False
    assert whole["gallery"] == 1
    for wrong in (("--speakers", "bo"), ("--search", "--variants", "da")):
        assert command("listen", recording, *wrong, "--server", address).returncode == 2


def test_misses_are_not_listed_for_an_empty_gallery(capsys: pytest.CaptureFixture[str]) -> None:
    answer = pb.SearchAnswer(
        variant="da",
        version=1,
        decision=pb.DECISION_UNKNOWN,
        basis=pb.CALIBRATION_BASIS_OUT_OF_SET_SPEAKERS,
        outlook=[pb.Outlook(condition="2 s of speech or more", miss=0.1, high=0.2)],
    )
    for gallery, listed in ((0, False), (3, True)):
        answer.gallery = gallery
        table.print_search("call.flac", search_result(pb.SearchResponse(answer=answer)))
        assert ("are missed in" in capsys.readouterr().out) is listed
