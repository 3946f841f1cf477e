"""The scorer in this process: its numbers are a server's, whatever the source."""

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.scoring import Row, Scorer, columns
from speakerlens.scoring.sources import GROUP_SOURCES, Source
from speakerlens.scoring.writing import arrow_table
from speakerlens.serving.bundle import BundleError
from tests.scoring.conftest import GOOD
from tests.serving import toy
from tests.serving.harness import ServerProcess, talk


def encoded(samples: NDArray[Any], rate: int = 16_000, **form: str) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, rate, **{"format": "WAV", **form})
    return content.getvalue()


def recordings(corpus: Path) -> dict[str, bytes]:
    """Real speech, of one window and of several, in several formats; and what is refused."""
    files = sorted(corpus.rglob("speech/**/*.flac"))[:12]
    assert len(files) == 12
    speech = [soundfile.read(file, dtype="float32")[0] for file in files]
    long = np.concatenate([*speech, np.zeros(40_000, np.float32), *speech])
    return {
        **{file.name: file.read_bytes() for file in files[:4]},
        "long.flac": encoded(long, format="FLAC"),
        "stereo.wav": encoded(np.stack([speech[0], speech[0] * 0.5], axis=1), subtype="FLOAT"),
        "telephone.wav": encoded(soxr.resample(speech[1], 16_000, 8_000), 8_000, subtype="ULAW"),
        "studio.ogg": encoded(soxr.resample(speech[2], 16_000, 44_100), 44_100, format="OGG"),
        "clipped.wav": encoded(np.clip(speech[3] * 20, -1, 1)),
        "pause.wav": encoded(np.random.default_rng(0).normal(0, 0.01, 20_000)),
        "short.wav": encoded(speech[0][:1000]),
        "silent.wav": encoded(np.zeros(16_000)),
        "text.wav": b"not audio at all, but long enough to be looked at" * 4,
    }


def compare(row: Row, answer: pb.ModelAnswer, audio: pb.AudioInfo) -> None:
    best = answer.speakers[0]
    assert (row.variant, row.version, row.speaker, row.known) == (
        answer.variant,
        answer.version,
        best.speaker,
        answer.known,
    )
    assert row.score == pytest.approx(best.probability, rel=1e-5, abs=1e-7)
    assert row.logit == pytest.approx(best.logit, rel=1e-5)
    assert row.embedding is not None
    np.testing.assert_allclose(row.embedding, answer.embedding, rtol=1e-5, atol=1e-5)
    assert row.speech == audio.speech
    assert row.seconds == pytest.approx(audio.seconds)
    assert row.evidence is not None
    evidence = {field.name: value for field, value in audio.evidence.ListFields()}
    for name, value in asdict(row.evidence).items():
        if value is None:
            assert name not in evidence, (row.path, name)
        else:
            assert value == pytest.approx(evidence.get(name, 0.0), rel=1e-5), (row.path, name)


def test_numbers_are_those_of_a_server(server: ServerProcess, bundles: Path, corpus: Path) -> None:
    audio = recordings(corpus)
    requests = [
        pb.IdentifyRequest(audio=pb.Audio(encoded=content), with_embedding=True, top_k=1) for content in audio.values()
    ]
    results = server.stub.IdentifyBatch(pb.IdentifyBatchRequest(requests=requests), timeout=60).results
    with Scorer(bundles, "cpu", 1, window_seconds=10) as scorer:
        found = list(scorer.score_each(audio.values(), audio))
    refused = []
    for (name, _), rows, result in zip(audio.items(), found, results, strict=True):
        assert {row.path for row in rows} == {name}
        if result.HasField("failure"):
            refused.append(name)
            assert [(row.code, row.error) for row in rows] == [("INVALID_ARGUMENT", result.failure.message)]
            continue
        for row, answer in zip(rows, result.response.answers, strict=True):
            compare(row, answer, result.response.audio)
    assert refused == ["short.wav", "silent.wav", "text.wav"]
    assert any(not row.speech for rows in found for row in rows if row.speaker)


def test_every_source_gives_the_same_row(toys: Path, tmp_path: Path) -> None:
    samples = (talk(1.0, seed=3) * 32767).astype(np.int16)
    path = tmp_path / "one.wav"
    soundfile.write(path, samples, 16_000)
    floats: NDArray[np.float32] = samples.astype(np.float32) / np.float32(32768)
    sources: list[Source] = [
        path,
        str(path),
        path.read_bytes(),
        samples,
        floats,
        floats[None],
        (floats.astype(np.float64), 16_000),
    ]
    with Scorer(toys / "clean/1", "cpu", 1) as scorer:
        rows = list(scorer.score(sources))
        assert scorer.models == {"clean/1": scorer.models["clean/1"]}
        assert scorer.provider == "CPUExecutionProvider"
    assert [row.path for row in rows] == [str(path), str(path), "2", "3", "4", "5", "6"]
    expected = toy.expected(toy.weights(0), floats)
    for row in rows:
        assert row.speaker == toy.speakers()[int(expected["logits"].argmax())]
        assert row.logit == pytest.approx(expected["logits"].max(), abs=1e-5)


def test_order_is_kept_over_many_groups(toys: Path, archive: Path) -> None:
    good, missing = sorted(archive.rglob("*.wav"), reverse=True), [archive / "missing.wav"]
    paths = [*good[:9], *missing * GROUP_SOURCES, *good[9:], *missing * 2 * GROUP_SOURCES, *good[:2]]
    with Scorer(toys, "cpu", 1, variants=("da", "clean"), embeddings=False) as scorer:
        rows = list(scorer.score_each(iter(paths)))
        abandoned = scorer.score(paths)
        next(abandoned)
        abandoned.close()
    assert [each[0].path for each in rows] == list(map(str, paths))
    assert {tuple(row.variant for row in each) for each in rows} == {("da", "clean"), (None,)}
    assert all(row.embedding is None for each in rows for row in each)


def test_unreadable_files_have_a_row_each(toys: Path, tmp_path: Path) -> None:
    with Scorer(toys / "clean/1", "cpu", 1) as scorer:
        rows = list(scorer.score([tmp_path / "missing.wav", tmp_path, np.zeros((9, 9, 9)), talk(1.0)]))
    assert [row.code for row in rows] == ["UNREADABLE", "UNREADABLE", "INVALID_ARGUMENT", None]
    assert rows[0].error == "No such file or directory"


def test_maps_are_arrays_on_disk(toys: Path, tmp_path: Path) -> None:
    samples = talk(1.0, seed=5)
    with Scorer(toys / "clean/1", "cpu", 1, maps=tmp_path / "maps", stages=("s1", "fused")) as scorer:
        [row] = scorer.score([samples], ["one"])
        [again] = scorer.score([samples], ["one"])
    assert row.maps == again.maps
    assert row.maps is not None
    assert [file for file in (tmp_path / "maps").rglob("*") if file.is_file()] == [Path(row.maps)]
    with np.load(row.maps) as arrays:
        assert set(arrays) == {"target", "log_mel", "frequencies_hz", "times_s", "s1", "fused"}
        assert str(arrays["target"]) == row.speaker
        expected = toy.expected(toy.weights(0), samples)["saliency_s1"]
        np.testing.assert_allclose(arrays["s1"], expected / expected.max(), atol=1e-4)
        assert arrays["fused"].shape == (len(arrays["frequencies_hz"]), len(arrays["times_s"]))


def test_table_has_the_rows(toys: Path, archive: Path, tmp_path: Path) -> None:
    paths = sorted(file for file in archive.rglob("*") if file.suffix in (".wav", ".flac"))
    with Scorer(toys / "clean/1", "cpu", 1) as scorer:
        rows = list(scorer.score(paths))
    table = arrow_table(rows)
    assert table.num_rows == len(paths) == GOOD + 4
    assert table.column("code").null_count == GOOD
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    read = pyarrow.parquet.read_table(tmp_path / "x.parquet").to_pylist()
    assert [each["speaker"] for each in read] == columns(rows)["speaker"]
    assert read[0]["evidence"]["snr_db"] == rows[0].evidence.snr_db  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("folder", "options", "error", "words"),
    [
        ("", {"variants": ("act-da",)}, BundleError, "no variant act-da; there are clean, da"),
        ("clean", {}, BundleError, "no bundle there"),
        ("nothing", {}, BundleError, "No such file"),
        ("clean/1", {"stages": ("s5",)}, ValueError, "stages: s5"),
        ("clean/1", {"device": "tpu"}, ValueError, "device"),
    ],
)
def test_wrong_options_are_refused(
    toys: Path, folder: str, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Scorer(toys / folder, **options)
