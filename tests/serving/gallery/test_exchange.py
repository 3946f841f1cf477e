"""Galleries as files, and moved to new versions of a model, on real servers; the journal, and what is forgotten."""

import base64
import hashlib
import json
import math
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from speakerlens.client import SpeakerClient
from speakerlens.errors import ClientError
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.errors import InvalidArgumentError
from speakerlens.serving.gallery.exemplar import KeptRecording
from speakerlens.serving.gallery.file import GalleryReader, written
from speakerlens.serving.gallery.sqlite import SqliteStore
from speakerlens.serving.journal import Journal
from tests.serving import toy
from tests.serving.gallery.test_store import exemplar
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, talk

NOW = "2026-01-01T00:00:00+00:00"
VOICE = talk(2.0)
LABELS = f'code_revision="toy",training_data_digest="{"0" * 64}",variant="da",version="2"'
VERSION_2 = f"speakerlens_model_info{{{LABELS}}}"


def call(server: ServerProcess) -> SpeakerClient:
    return SpeakerClient(server.ready["grpc"])


def enroll(server: ServerProcess, name: str) -> pb.EnrolledSpeaker:
    request = pb.EnrollRequest(speaker=name, utterances=[raw(VOICE), raw(talk(2.0, seed=1))])
    return server.stub.Enroll(request, timeout=CALL_SECONDS).speaker


def read(content: bytes, size: int = 7) -> list[tuple[object, ...]]:
    reader = GalleryReader()
    for start in range(0, len(content), size):
        reader.feed(content[start : start + size])
    return [(e.speaker, e.bundle, e.quality, *e.embedding) for e in reader.finish()]


def test_file_holds_what_was_written() -> None:
    stored = [exemplar("Zoë", seed=1), exemplar("anna", seed=2)]
    content = b"".join(written(stored, NOW))
    assert read(content) == [(e.speaker, e.bundle, e.quality, *e.embedding) for e in stored]
    first, *lines, last = map(json.loads, content.splitlines())
    assert (first["format"], first["version"]) == ("speakerlens-gallery", 1)
    assert np.frombuffer(base64.b64decode(lines[0]["embedding"]), "<f4").tolist() == stored[0].embedding.tolist()
    assert last == {"exemplars": 2, "sha256": hashlib.sha256(b"".join(content.splitlines(True)[:-1])).hexdigest()}


def _altered(old: bytes, new: bytes) -> bytes:
    content = b"".join(written([exemplar("anna")], NOW))
    assert old in content
    return content.replace(old, new, 1)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "empty"),
        (b"\x80\x04\x95pickle\n", "line 1: no gallery"),
        (b'{"format":"speakerlens-gallery","version":2}\n', "line 1: version '2'; this server reads 1"),
        (b"".join(written([exemplar()], NOW))[:-30], "ends after line 2, without the line that closes"),
        (b"".join(written([exemplar()], NOW)) + b"{}\n", "line 4: after the line that closes"),
        (_altered(b'"anna"', b'"bela"'), "line 3: the digest of the lines before is another one"),
        (_altered(b'"utterances":1', b'"utterances":true'), "line 2: version and utterances must be numbers"),
        (_altered(b'"embedding":"', b'"embedding":"AAAA'), "line 2: embedding must be base64"),
        (_altered(b'"bundle":"d', b'"bundle":"/'), "line 2: bundle must be a SHA-256"),
        (_altered(b'"variant":"da"', b'"variant":"\\ud800"'), "line 2: variant must be the name of one"),
        (_altered(b'"enrolled":"2026', b'"enrolled":"never'), "line 2: enrolled must be a time with a time zone"),
        (_altered(b'00+00:00","emb', b'00","emb'), "line 2: enrolled must be a time with a time zone"),
        (_altered(b'"quality":null', b'"quality":{"speech_s":NaN}'), "line 2: quality must be null"),
        (_altered(b'"speaker":"anna"', b'"speaker":7'), "line 2: speaker, variant"),
        (_altered(b'"anna"', b'"' + b"a" * 300_000 + b'"'), "above 262144 bytes"),
        (b"[" * 100_000 + b"\n", "line 1: no gallery"),
    ],
)
def test_file_that_is_no_gallery_is_refused(content: bytes, sentence: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^content: ") as caught:
        read(content, 4096)
    assert sentence in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_any_altered_byte_is_refused(place: float, byte: int) -> None:
    content = bytearray(b"".join(written([exemplar("anna"), exemplar("bob")], NOW)))
    index = int(place * len(content))
    assume(content[index] != byte)
    content[index] = byte
    with pytest.raises(InvalidArgumentError, match=r"^content: "):
        read(bytes(content), 1024)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Path]]:
    """Yield a server that keeps recordings and a journal, and its folder."""
    folder = tmp_path_factory.mktemp("exchange")
    toy.write_bundle(folder / "bundles", "da", 1, seed=2)
    flags = (f"--speakers={folder / 'speakers.db'}", "--keep-audio", f"--journal={folder / 'journal'}", "--watch=0.1")
    with ServerProcess(folder / "bundles", *flags) as server:
        yield server, folder


def test_time_of_an_enrolment_is_read_in_utc() -> None:
    stored = exemplar("anna")
    reader = GalleryReader()
    reader.feed(b"".join(written([replace(stored, enrolled="2026-01-01T01:00:00+01:00")], NOW)))
    assert [each.enrolled for each in reader.finish()] == [NOW]


def test_gallery_moves_to_another_server(world: tuple[ServerProcess, Path], tmp_path: Path) -> None:
    server, folder = world
    for name in ("anna", "Bob"):
        enroll(server, name)
    parts = list(call(server).export_gallery())
    assert [name for name, *_ in read(b"".join(parts), 1000)] == ["Bob", "Bob", "anna", "anna"]
    twice = b"".join(call(server).export_gallery(["anna", "anna"]))
    assert [name for name, *_ in read(twice, 1000)] == ["anna", "anna"]
    with pytest.raises(ClientError, match="no enrolled speaker"):
        list(call(server).export_gallery(["nobody"]))
    with ServerProcess(folder / "bundles", f"--speakers={tmp_path / 'other.db'}") as other:
        done = call(other).import_gallery(parts)
        assert (done.speakers, done.exemplars) == (2, 4)
        assert call(other).import_gallery(parts) == done, "the same again"
        request = pb.VerifyRequest(audio=raw(VOICE), enrolled_speaker="anna")
        scores = [each.stub.Verify(request, timeout=CALL_SECONDS).score for each in (server, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-6)
        with pytest.raises(ClientError, match="line 1: no gallery"):
            call(other).import_gallery([b"no gallery\n"])


def test_gallery_of_a_model_that_is_not_loaded_is_refused(world: tuple[ServerProcess, Path]) -> None:
    server, _ = world
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.ImportGallery(iter([pb.GalleryPart(content=b"".join(written([exemplar()], NOW)))]))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert str(caught.value.details()).startswith(
        "content: embeddings of da/1 (dddddddddddd…), none of which is loaded"
    )


def test_new_version_embeds_kept_recordings(world: tuple[ServerProcess, Path]) -> None:
    """The speakers of the old version are told until then; both versions can be used afterwards."""
    server, folder = world
    enroll(server, "carla")
    store = SqliteStore(folder / "speakers.db")
    [first, *_] = store.find("carla")
    assert {each.id for each in store.recordings("carla")} >= {first.recording}
    store.enroll([replace(first, speaker="dora", recording=None, bundle="0" * 64)], replace=True)
    store.enroll([replace(first, speaker="emil", recording=None)], replace=True)
    unreadable = KeptRecording("unreadable", "carl", NOW, b"no audio")
    store.enroll([replace(first, speaker="carl", recording=unreadable.id)], [unreadable], replace=True)
    toy.write_bundle(folder / "bundles", "da", 2, seed=5)
    server.wait_for_metric(VERSION_2, 1)
    request = pb.VerifyRequest(audio=raw(VOICE), enrolled_speaker="carla")
    with pytest.raises(grpc.RpcError, match="is enrolled with another bundle"):
        server.stub.Verify(request, timeout=CALL_SECONDS)
    old = pb.VerifyRequest(audio=raw(VOICE), enrolled_speaker="carla", model=pb.ModelSelector(variant="da", version=1))
    assert server.stub.Verify(old, timeout=CALL_SECONDS).same
    done = call(server).migrate_gallery()
    assert done.must_enroll_again == ("carl", "dora", "emil")
    assert done.migrated >= 1
    assert call(server).migrate_gallery().migrated == 0
    assert server.stub.Verify(request, timeout=CALL_SECONDS).same
    dora = next(each for each in call(server).speakers() if each.speaker == "dora")
    assert dora.models[0].must_enroll_again
    server.wait_for_metric('speakerlens_outdated_speakers{audio="none"}', 2)


def test_journal_has_a_line_for_each_decision(world: tuple[ServerProcess, Path]) -> None:
    server, folder = world
    enroll(server, "erik")
    model = pb.ModelSelector(variant="da")
    before = (folder / "journal").read_text().splitlines()
    metadata = (("x-request-id", "req-7"),)
    server.stub.Identify(pb.IdentifyRequest(audio=raw(VOICE), models=[model]), metadata=metadata)
    server.stub.Verify(pb.VerifyRequest(audio=raw(VOICE), enrolled_speaker="erik", model=model), metadata=metadata)
    server.stub.Search(pb.SearchRequest(audio=raw(VOICE), model=model), metadata=metadata)
    server.wait_for_metric('speakerlens_journal_lines_total{outcome="written"}', len(before) + 3)
    lines = [json.loads(line) for line in (folder / "journal").read_text().splitlines()[len(before) :]]
    assert [each["kind"] for each in lines] == ["identify", "verify", "search"]
    assert {each["request"] for each in lines} == {"req-7"}
    identify, verify, search = lines
    assert set(identify) >= {"time", "caller", "model", "known", "speakers"}
    assert (verify["speaker"], verify["same"]) == ("erik", True)
    assert search["decision"].startswith("DECISION_")
    assert search["candidates"]
    assert stat.S_IMODE((folder / "journal").stat().st_mode) == 0o600
    assert max(len(line) for line in (folder / "journal").read_text().splitlines()) < 4000, "no audio, no embedding"


def test_journal_has_a_line_for_each_window_of_a_stream(world: tuple[ServerProcess, Path]) -> None:
    server, folder = world
    enroll(server, "frida")
    path, model = folder / "journal", pb.ModelSelector(variant="da")
    before = len(path.read_text().splitlines())
    samples = np.concatenate([VOICE, np.zeros(13 * 16_000)]).astype("<f4").tobytes()
    form = pb.SAMPLE_FORMAT_FLOAT32
    search = [pb.SearchStreamRequest(start=pb.SearchStreamStart(format=form, sample_rate=16_000, model=model))]
    identify = [pb.IdentifyStreamRequest(start=pb.StreamStart(format=form, sample_rate=16_000, models=[model]))]
    searched = list(server.stub.SearchStream(iter([*search, pb.SearchStreamRequest(samples=samples)])))
    identified = list(server.stub.IdentifyStream(iter([*identify, pb.IdentifyStreamRequest(samples=samples)])))
    expected = [
        (kind, each.window.start_s, each.window.end_s) if each.HasField("window") else (kind, None, None)
        for kind, answers in (("search", searched), ("identify", identified))
        for each in answers
        if not each.HasField("window") or each.window.speech
    ]
    assert any(each.HasField("window") and not each.window.speech for each in searched), "a window without a decision"
    server.wait_for_metric('speakerlens_journal_lines_total{outcome="written"}', before + len(expected))
    lines = [json.loads(line) for line in path.read_text().splitlines()[before:]]
    assert [(each["kind"], each.get("start_s"), each.get("end_s")) for each in lines] == expected
    assert all(line.get("decision", "").startswith("DECISION_") for line in lines if line["kind"] == "search")


def test_journal_of_a_model_without_a_threshold_is_json(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal", lambda written: None)
    journal.verified(pb.VerifyResponse(variant="da", version=1, score=0.5, threshold=math.inf), "anna")
    journal.close()
    [line] = (tmp_path / "journal").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["threshold"] is None


def test_old_enrolments_are_forgotten(tmp_path: Path) -> None:
    toy.write_bundle(tmp_path / "bundles", "da", 1, seed=2)
    store = SqliteStore(tmp_path / "speakers.db")
    store.enroll([exemplar("old")], replace=True)
    store.close()
    flags = (f"--speakers={tmp_path / 'speakers.db'}", "--forget-after=30")
    with ServerProcess(tmp_path / "bundles", *flags) as server:
        enroll(server, "new")
        server.wait_for_metric("speakerlens_forgotten_exemplars_total", 1)
        assert [each.speaker for each in call(server).speakers()] == ["new"]
