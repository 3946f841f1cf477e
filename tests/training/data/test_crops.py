from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from speakerlens.training.data.audio import SAMPLE_RATE, read_audio, without_offset
from speakerlens.training.data.crops import CropReader
from speakerlens.training.data.manifest import Clip, Corpus
from speakerlens.training.errors import UserError
from tests.training.toy import noting

CACHED = pytest.mark.parametrize("megabytes", [0, 1], ids=["seeking", "cached"])


@pytest.fixture(scope="module")
def clip(corpus: Corpus) -> Clip:
    return corpus.utterances("train")[0]


@CACHED
def test_crop_starts_at_every_possible_sample(clip: Clip, megabytes: int) -> None:
    whole = read_audio(clip.path)
    reader = CropReader([clip], len(whole) - 2, megabytes)
    for place, first in [(0.0, 0), (0.33, 0), (0.34, 1), (0.67, 2), (0.999999, 2)]:
        audio, start = reader.read(clip, place)
        assert start == first / SAMPLE_RATE
        np.testing.assert_array_equal(audio, without_offset(whole[first:][: len(whole) - 2]))


@CACHED
def test_short_utterance_is_repeated_from_its_place(clip: Clip, megabytes: int) -> None:
    whole = read_audio(clip.path)
    audio, start = CropReader([clip], 40_000, megabytes).read(clip, 0.7)
    place = round(start * SAMPLE_RATE)
    assert place == int(0.7 * len(whole))
    turned = without_offset(np.concatenate([whole[place:], whole[:place]]))
    np.testing.assert_array_equal(audio, np.tile(turned, 3)[:40_000])


@CACHED
def test_crop_stays_within_its_clip(clip: Clip, megabytes: int) -> None:
    part = replace(clip, start=0.25, duration=0.5)
    whole = read_audio(clip.path)[4000:12_000]
    reader = CropReader([part], 4800, megabytes)
    for place, first in [(0.0, 0), (0.5, 1600), (0.999999, 3200)]:
        np.testing.assert_array_equal(reader.read(part, place)[0], without_offset(whole[first : first + 4800]))


@CACHED
def test_file_shorter_than_its_clip_is_refused(clip: Clip, megabytes: int) -> None:
    beyond = replace(clip, start=1.0)  # the file ends there
    with pytest.raises(UserError, match="has no audio at 1"):
        CropReader([beyond], 4800, megabytes).read(beyond, 0.0)


def test_clips_are_cached_only_if_all_fit(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    monkeypatch.setattr("speakerlens.training.data.crops.read_audio", noting(reads))
    kibibytes = 2 * SAMPLE_RATE / 1024  # of one second
    for factor, times in [(2.0, 1), (1.99, 5)]:
        reads.clear()
        reader = CropReader([clip, clip], 4800, factor * kibibytes / 1024)
        for _ in range(5):
            reader.read(clip, 0.5)
        assert len(reads) == times
