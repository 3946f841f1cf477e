import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch
from numpy.typing import ArrayLike

from speakerlens.training.cli import main
from speakerlens.training.data.audio import SAMPLE_RATE, read_audio, write_audio
from speakerlens.training.data.interference import InterferenceSource
from speakerlens.training.data.manifest import load_corpus
from speakerlens.training.data.mixing import DIRECT_SAMPLES, late_reverberation
from speakerlens.training.data.prepare.rooms import RT60_RANGE, Room, draw_room, make_room, simulate

pyroomacoustics = pytest.importorskip("pyroomacoustics")


def decay_time(response: ArrayLike, low: float, high: float) -> float:
    """Schroeder's backward integration and ISO 3382's fit, in decibels per sample, apart from the code under test."""
    after = np.asarray(response, dtype=np.float64)[DIRECT_SAMPLES + 1 :]
    level = 10 * np.log10(np.flip(np.cumsum(np.flip(after**2))) / np.sum(after**2) + 1e-15)
    first, last = int(np.argmax(level < low)), int(np.argmax(level < high))
    matrix = np.stack([np.arange(first, last), np.ones(last - first)], axis=1)
    slope = float(np.linalg.lstsq(matrix, level[first:last], rcond=None)[0][0])
    return -60 / (slope * SAMPLE_RATE)


@dataclass
class Shape:
    width: float
    depth: float
    height: float

    def room(self, rt60: float, distance: float = 1.2) -> Room:
        talker = np.array([0.4 * self.width, 0.35 * self.depth, 1.3])
        return Room(
            np.array([self.width, self.depth, self.height]),
            talker,
            talker + distance * np.array([0.8, 0.6, 0.0]),
            rt60,
        )


@pytest.mark.parametrize("rt60", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("shape", [Shape(4.1, 3.3, 2.6), Shape(9.6, 7.7, 2.4)], ids=["small", "flat"])
def test_rooms_have_the_requested_reverberation_time(rt60: float, shape: Shape) -> None:
    """Also the flat one, which by Sabine's formula alone would take a fifth more or less."""
    response = simulate(shape.room(rt60), 1.3 * rt60, np.random.default_rng(0))
    assert decay_time(response, -5, -25) == pytest.approx(rt60, rel=0.1)
    assert decay_time(response, -5, -35) == pytest.approx(rt60, rel=0.3)


def test_direct_sound_is_the_largest_and_first() -> None:
    for seed in range(6):
        _, response = make_room(0.5, np.random.default_rng(seed))
        assert response.shape == (8000,)
        assert abs(int(np.abs(response).argmax()) - DIRECT_SAMPLES) <= 1
        assert np.abs(response).max() == pytest.approx(0.7, abs=1e-3)
        assert np.sum(response[: DIRECT_SAMPLES // 2] ** 2) < 1e-2 * np.sum(response[: 2 * DIRECT_SAMPLES] ** 2)


def test_first_reflection_arrives_at_its_time() -> None:
    """In a wide, absorbing room with the floor near by, the second sound to arrive is that of the mirrored talker."""
    talker, microphone = np.array([4.0, 4.0, 1.0]), np.array([6.0, 4.0, 1.0])
    response = simulate(Room(np.array([10.0, 8.0, 4.0]), talker, microphone, 0.3), 0.1, np.random.default_rng(0))
    direct, floor = 2.0, float(np.hypot(2.0, 2.0))
    later = round((floor - direct) / 343.0 * SAMPLE_RATE)
    echo = DIRECT_SAMPLES + later
    window = np.abs(response[DIRECT_SAMPLES + later // 2 : DIRECT_SAMPLES + 2 * later])
    assert abs(DIRECT_SAMPLES + later // 2 + int(window.argmax()) - echo) <= 2
    assert window.max() < response[DIRECT_SAMPLES] * direct / floor  # what spreading leaves, less what the floor takes


def test_direct_sound_decreases_with_distance() -> None:
    ratios = []
    for distance in (0.5, 1.5, 4.5):
        response = simulate(Shape(9, 8, 3).room(0.5, distance), 0.5, np.random.default_rng(0)).astype(np.float64)
        early, late = response[: 2 * DIRECT_SAMPLES], response[2 * DIRECT_SAMPLES :]
        ratios.append(10 * np.log10(np.sum(early**2) / np.sum(late**2)))
    # 6 dB for twice the distance while reverberation stays: 9.5 dB for three times it.
    assert -np.diff(ratios) == pytest.approx([9.5, 9.5], abs=3)


def test_rooms_are_within_the_drawn_ranges() -> None:
    rng = np.random.default_rng(0)
    rooms = [draw_room(rng) for _ in range(300)]
    for room in rooms:
        for place in (room.talker, room.microphone):
            assert np.all(place >= 0.5)
            assert np.all(place <= room.size - 0.5)
        assert 0.5 <= room.distance <= 0.6 * min(room.size[:2])
    times = np.array([room.rt60 for room in rooms])
    assert times.min() >= RT60_RANGE[0]
    assert times.max() <= RT60_RANGE[1]
    assert np.ptp(times) > 0.9 * (RT60_RANGE[1] - RT60_RANGE[0])


def test_room_depends_only_on_its_generator() -> None:
    _, first = make_room(0.5, np.random.default_rng(3))
    pyroomacoustics.random.seed(99)
    pyroomacoustics.constants.set("num_threads", 2)
    _, second = make_room(0.5, np.random.default_rng(3))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, make_room(0.5, np.random.default_rng(4))[1])


def prepare(out: Path, count: int, *arguments: str) -> int:
    return main(["prepare", "rooms", "--out", str(out), "--count", str(count), *arguments])


def write_speech(folder: Path) -> None:
    for index, speaker in enumerate("ab"):
        for number in range(3):
            noise = 0.1 * np.random.default_rng([index, number]).standard_normal(8000)
            write_audio(folder / speaker / f"{number}.flac", noise.astype(np.float32))


def test_folder_of_rooms_is_used_in_a_corpus(tmp_path: Path) -> None:
    assert prepare(tmp_path / "rooms", 3) == 0
    rows = list(csv.DictReader((tmp_path / "rooms" / "rooms.csv").read_text().splitlines()))
    assert [row["file"] for row in rows] == [f"room-{number:05d}.flac" for number in range(3)]
    for row in rows:
        response = read_audio(tmp_path / "rooms" / row["file"])
        assert len(response) / SAMPLE_RATE == pytest.approx(float(row["rt60_seconds"]), abs=0.006)
        assert decay_time(response, -5, -25) == pytest.approx(float(row["rt60_seconds"]), rel=0.12)
    write_speech(tmp_path / "speech")
    words = ["prepare", "folder", "--speech", tmp_path / "speech", "--rir", tmp_path / "rooms", "--out", tmp_path / "c"]
    assert main([str(word) for word in words]) == 0
    source = InterferenceSource(load_corpus(tmp_path / "c"), "train")
    assert "reverb" in source.kinds
    assert int(np.abs(source.draw("reverb", 100, np.random.default_rng(0))).argmax()) == DIRECT_SAMPLES


def test_multichannel_48_khz_responses_keep_the_alignment(tmp_path: Path) -> None:
    """As loaded from the corpus, a room is its first microphone's: the convolution with it, but for the way there."""
    rng = np.random.default_rng(0)
    rate, begin = 48_000, 1440
    channels = np.zeros((rate // 2, 2))
    tail = rng.standard_normal(rate // 4) * np.exp(-np.arange(rate // 4) / 3000)
    channels[begin, 0], channels[3 * begin, 1] = 1.0, -1.0
    channels[begin + 300 :, 0][: len(tail)] = 0.05 * tail
    channels[3 * begin + 300 :, 1][: len(tail)] = 0.3 * tail[::-1]
    (tmp_path / "measured").mkdir()
    for number in range(3):
        soundfile.write(tmp_path / "measured" / f"{number}.wav", (1 - 0.1 * number) * channels, rate, subtype="FLOAT")
    write_speech(tmp_path / "speech")
    words = ["--speech", tmp_path / "speech", "--rir", tmp_path / "measured", "--out", tmp_path / "c"]
    assert main(["prepare", "folder", *map(str, words)]) == 0
    response = InterferenceSource(load_corpus(tmp_path / "c"), "train").draw("reverb", 100, rng)
    dry = rng.standard_normal(16_000).astype(np.float32)
    late = late_reverberation(torch.from_numpy(dry)[None], torch.from_numpy(response)[None])[0].numpy()
    room = soxr.resample(channels[:, 0], rate, SAMPLE_RATE)
    arrival = begin * SAMPLE_RATE // rate
    expected = np.convolve(dry, room / room[arrival])[arrival:][: len(dry)]
    assert np.corrcoef(dry + late, expected)[0, 1] > 0.99


def test_larger_count_begins_with_the_same_rooms(tmp_path: Path) -> None:
    for count in (1, 2):
        assert prepare(tmp_path / str(count), count, "--seed", "7") == 0
    first, more = (tmp_path / count / "room-00000.flac" for count in "12")
    assert first.read_bytes() == more.read_bytes()
    assert (tmp_path / "2" / "room-00001.flac").read_bytes() != first.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [((0,), "--count must be at least 1, not 0"), ((1, "--seed", "-1"), "--seed must be at least 0, not -1")],
)
def test_wrong_numbers_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[int, str, str], complaint: str
) -> None:
    assert prepare(tmp_path / "out", *arguments) == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [("rooms", "--count", "1"), ("demo",)])
def test_missing_simulator_names_the_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    assert main(["prepare", *command, "--out", str(tmp_path / "out")]) == 2
    assert "install the extra `demo`" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
