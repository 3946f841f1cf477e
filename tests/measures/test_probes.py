"""Probe sets: what is read is what was written, mixed as in training, and refused where it does not hold."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from speakerlens.measures.probes import Condition, ProbeError, ProbeSet, conditions, files, mix
from speakerlens.training.data.mixing import mix as training_mix
from speakerlens.training.data.mixing import scale_to_snr

MEL, FRAME, SHIFT, MIN_SAMPLES = 8, 400, 160, 1600
SECONDS = (1.0, 5.0)
KEPT = (16_000, 48_000)  # samples: three seconds at most
ROUNDING = 1e-5  # sums of squares over three seconds, in float32 and in another order
KINDS, SNRS_DB = ("noise", "speaker"), (10.0, 0.0)


def sound(seed: int, samples: int, level: float = 0.1) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(0.0, level, samples)).astype(np.float32).clip(-1, 1)


def manifest(**changes: Any) -> dict[str, Any]:
    entry = {
        "utterances": [{"file": f"utterances/{n:02d}-x.flac", "speaker": name} for n, name in enumerate("ab")],
        "resampled_rate": 48_000,
        "interference": list(KINDS),
        "snrs_db": list(SNRS_DB),
        "folder": "probes",
    }
    front_end = {"mel_bins": MEL, "frame_length": FRAME, "frame_shift": SHIFT}
    return {"probes": entry, "speakers": ["a", "b"], "min_samples": MIN_SAMPLES, "front_end": front_end} | changes


def frames(samples: int) -> int:
    return 1 + (samples - FRAME) // SHIFT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The probe set of a bundle: a second of `a`, and five of `b`, of which three are kept."""
    for place in ("utterances", "probes/resampled", *(f"probes/{kind}" for kind in KINDS)):
        (tmp_path / place).mkdir(parents=True)
    for number, (seconds, kept) in enumerate(zip(SECONDS, KEPT, strict=True)):
        write(tmp_path / f"utterances/{number:02d}-x.flac", sound(number, int(seconds * 16_000)) + 0.05)
        write(tmp_path / f"probes/resampled/{number:02d}.flac", sound(9, 3 * kept), 48_000)
        for kind in KINDS:
            write(tmp_path / f"probes/{kind}/{number:02d}.flac", sound(number + len(kind), kept, 0.02))
            levels = np.random.default_rng(len(kind)).integers(-60, 61, (MEL, frames(kept))).astype(np.int8)
            np.save(tmp_path / f"probes/{kind}/{number:02d}.npy", levels)
    return tmp_path


def write(path: Path, samples: NDArray[np.float32], rate: int = 16_000) -> None:
    soundfile.write(path, samples, rate, format="FLAC", subtype="PCM_16")


def read(folder: Path, entries: dict[str, Any] | None = None) -> ProbeSet:
    found = ProbeSet.read(folder, entries or manifest())
    assert found is not None
    return found


def test_conditions_cover_every_interference_and_snr(folder: Path) -> None:
    found = read(folder).conditions
    assert found == conditions(KINDS, SNRS_DB)
    assert [str(each) for each in found] == [
        "clean", "resampled", "noise 10 dB", "noise 0 dB", "speaker 10 dB", "speaker 0 dB",
    ]  # fmt: skip
    assert [each.snr for each in found] == ["", "", "10", "0", "10", "0"]
    assert [utterance.speaker for utterance in read(folder).utterances] == ["a", "b"]


def test_a_bundle_without_probes_has_none(tmp_path: Path) -> None:
    assert ProbeSet.read(tmp_path, manifest(probes=None)) is None


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("snr_db", [10.0, 0.0, -5.0])
def test_mixtures_are_those_of_training(folder: Path, number: int, snr_db: float) -> None:
    """From the very files: the beginning of the utterance without its offset, and the interference beside it."""
    probes = read(folder, manifest(probes=manifest()["probes"] | {"snrs_db": [snr_db]}))
    speech = soundfile.read(folder / f"utterances/{number:02d}-x.flac", dtype="float32")[0][: KEPT[number]]
    speech = torch.from_numpy(speech - speech.mean(dtype=np.float64).astype(np.float32))[None]
    alone = torch.from_numpy(soundfile.read(folder / f"probes/noise/{number:02d}.flac", dtype="float32")[0])[None]
    reference = training_mix(speech, scale_to_snr(speech, alone, torch.tensor([snr_db]))).audio[0].numpy()
    mixture = probes.mixture(number, Condition("noise", snr_db))
    assert mixture.dtype == np.float32
    assert np.abs(mixture - reference).max() <= ROUNDING * np.abs(reference).max()
    clean = probes.mixture(number, Condition("clean", None))
    np.testing.assert_array_equal(clean, speech[0].numpy())


@pytest.mark.parametrize(
    ("speech", "interference"), [(0.9, 0.9), (0.5, 0.0), (0.0, 0.5), (1e-6, 1.0)], ids=["loud", "quiet", "mute", "soft"]
)
def test_the_formula_of_training_at_its_edges(speech: float, interference: float) -> None:
    voice, layer = sound(1, 4000, speech), sound(2, 4000, interference)
    for snr_db in (10.0, 0.0, -20.0):
        scaled = scale_to_snr(torch.from_numpy(voice)[None], torch.from_numpy(layer)[None], torch.tensor([snr_db]))
        reference = training_mix(torch.from_numpy(voice)[None], scaled).audio[0].numpy()
        found = mix(voice, layer, snr_db)
        assert np.abs(found - reference).max() <= ROUNDING * np.abs(reference).max()
        assert np.abs(found).max() <= 1.0


def test_bins_are_dominated_below_the_ratio(folder: Path) -> None:
    probes = read(folder)
    levels = np.load(folder / "probes/speaker/01.npy").astype(int)
    for snr_db in SNRS_DB:
        dominated = probes.dominated(1, Condition("speaker", snr_db))
        np.testing.assert_array_equal(dominated, levels + snr_db < 0)
    assert probes.dominated(1, Condition("clean", None)) is None
    assert probes.dominated(1, Condition("resampled", None)) is None


def test_the_resampled_utterance_is_the_file(folder: Path) -> None:
    assert read(folder).encoded(1) == (folder / "probes/resampled/01.flac").read_bytes()


def test_probes_do_not_change_once_read(folder: Path) -> None:
    """A server's model outlives the files it came from."""
    probes = read(folder)
    before = [probes.mixture(1, each) for each in probes.conditions if each.interference != "resampled"]
    for name in files(manifest()["probes"]):
        (folder / name).unlink()
    after = [probes.mixture(1, each) for each in probes.conditions if each.interference != "resampled"]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_files_are_all_that_is_read(folder: Path) -> None:
    named = files(manifest()["probes"])
    assert len(named) == len(set(named)) == 2 * (2 + 2 * len(KINDS))
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == set(named)


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


def array(values: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def flac(samples: NDArray[Any], rate: int = 16_000, subtype: str = "PCM_16", container: str = "FLAC") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


PLANE, NOISE, AGAIN, CLEAN = (
    "probes/noise/00.npy",
    "probes/noise/00.flac",
    "probes/resampled/00.flac",
    "utterances/00-x.flac",
)
SHAPE = (MEL, frames(KEPT[0]))
DAMAGE: list[tuple[str, str, bytes | None, str]] = [
    ("no utterance", CLEAN, None, "utterances/00-x.flac cannot be read: No such file"),
    ("no interference", NOISE, None, "probes/noise/00.flac cannot be read: No such file"),
    ("no plane", PLANE, None, "probes/noise/00.npy cannot be read: No such file"),
    ("not audio", NOISE, b"fLaC" + bytes(40), "probes/noise/00.flac cannot be read as audio"),
    ("another rate", NOISE, flac(sound(0, 16_000), 8_000), "1 channels at 8000 Hz, not one at 16000 Hz"),
    ("stereo", CLEAN, flac(np.zeros((16_000, 2))), "2 channels at 16000 Hz"),
    ("not resampled", AGAIN, flac(sound(0, 16_000)), "at 16000 Hz, not one at 48000 Hz"),
    ("too short", NOISE, flac(sound(0, 15_999)), "does not hold the 16000 samples of its utterance"),
    ("too long", NOISE, flac(sound(0, 16_001)), "does not hold the 16000 samples of its utterance"),
    ("cut off", NOISE, flac(sound(0, 16_000))[:9000], "probes/noise/00.flac"),
    ("nothing to answer", CLEAN, flac(sound(0, 1599)), "has 1599 samples, fewer than the minimum of 1600"),
    ("not finite", NOISE, flac(np.full(16_000, np.nan), subtype="FLOAT", container="WAV"), "NaN or infinite"),
    ("pickled", PLANE, pickled(), "is not an array of 8 x 98 bytes"),
    ("not an array", PLANE, b"PK\x03\x04" + bytes(900), "cannot be read as an array"),
    ("a header of nonsense", PLANE, array(np.zeros(SHAPE, np.int8)).replace(b"descr", b"desc("), "as an array"),
    ("floats", PLANE, array(np.zeros(SHAPE, np.float32)), "is not an array of 8 x 98 bytes"),
    ("another shape", PLANE, array(np.zeros((SHAPE[0], SHAPE[1] + 1), np.int8)), "is not an array of 8 x 98 bytes"),
    ("turned", PLANE, array(np.zeros(SHAPE, np.int8, order="F")), "is not an array of 8 x 98 bytes"),
    ("fewer bytes than it says", PLANE, array(np.zeros(SHAPE, np.int8))[:-1], "is not an array of 8 x 98 bytes"),
    ("more bytes than it says", PLANE, array(np.zeros(SHAPE, np.int8)) + b"x", "is not an array of 8 x 98 bytes"),
]


@pytest.mark.parametrize(("name", "content", "reason"), [case[1:] for case in DAMAGE], ids=[case[0] for case in DAMAGE])
def test_damaged_files_are_refused_with_the_reason(folder: Path, name: str, content: bytes | None, reason: str) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(ProbeError) as caught:
        read(folder)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda entry: entry["utterances"][1].update(speaker="c"), "'c', who is not among the speakers"),
        (lambda entry: entry["interference"].append("clean"), "'clean' is not a kind of interference"),
        (lambda entry: entry["interference"].append("resampled"), "'resampled' is not a kind of interference"),
        (lambda entry: entry["interference"].append("../noise"), "'../noise' is not a kind of interference"),
    ],
)
def test_an_invalid_manifest_is_refused(folder: Path, change: Callable[[dict[str, Any]], object], reason: str) -> None:
    entries: dict[str, Any] = json.loads(json.dumps(manifest()))
    change(entries["probes"])
    with pytest.raises(ProbeError) as caught:
        read(folder, entries)
    assert reason in str(caught.value)
