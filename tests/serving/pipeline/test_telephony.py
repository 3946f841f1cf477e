"""Telephone audio: one channel of a call, mu-law and A-law without a header, and the band of the sound."""

import io

import numpy as np
import pytest
import soundfile as sf

from speakerlens.measures.sound import measure_sound
from speakerlens.measures.windows import Windowing
from speakerlens.serving.errors import InvalidArgumentError, Reason
from speakerlens.serving.pipeline.aggregate import SoundMeasures
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio, decode
from speakerlens.serving.pipeline.samples import LAWS, DurationLimit
from speakerlens.serving.pipeline.windows import WindowReader
from tests.serving.harness import voice

MINUTE = DurationLimit(60)
SUBTYPES = {"mulaw": "ULAW", "alaw": "ALAW"}


def call() -> np.ndarray:
    """Two sides that cancel each other in the mean but for a whisper."""
    return np.stack([voice(2.0, seed=1), 1e-3 * voice(2.0, seed=2) - voice(2.0, seed=1)], axis=1)


def encoded(samples: np.ndarray, channel: int | None = None, rate: int = 16_000) -> EncodedAudio:
    buffer = io.BytesIO()
    sf.write(buffer, samples, rate, format="WAV", subtype="FLOAT")
    return EncodedAudio(buffer.getvalue(), channel)


@pytest.mark.parametrize("law", LAWS)
def test_all_256_codes_are_those_of_g711(law: str) -> None:
    """Against libsndfile."""
    codes = bytes(range(256))
    expected, _ = sf.read(
        io.BytesIO(codes), dtype="float32", format="RAW", subtype=SUBTYPES[law], samplerate=8_000, channels=1
    )
    np.testing.assert_array_equal(LAWS[law], expected)


@pytest.mark.parametrize("law", LAWS)
def test_raw_telephone_bytes_equal_the_file_of_them(law: str) -> None:
    file, raw = io.BytesIO(), io.BytesIO()
    speech = np.stack([0.5 * voice(2.0, seed=seed)[::2] for seed in (1, 2)], axis=1)
    sf.write(file, speech, 8_000, format="AU", subtype=SUBTYPES[law])
    sf.write(raw, speech, 8_000, format="RAW", subtype=SUBTYPES[law])
    for channel in (None, 1):
        expected = decode(EncodedAudio(file.getvalue(), channel), MINUTE)
        received = decode(RawAudio(raw.getvalue(), law, 8_000, 2, channel), MINUTE)
        np.testing.assert_array_equal(received.samples, expected.samples)
        assert received.info == expected.info


@pytest.mark.parametrize("law", LAWS)
def test_silence_of_a_telephone_line_is_silent(law: str) -> None:
    quietest = int(np.abs(LAWS[law]).argmin())
    with pytest.raises(InvalidArgumentError, match="silent"):
        decode(RawAudio(bytes([quietest]) * 16_000, law, 8_000, 1), MINUTE)


def test_chosen_channel_is_used_alone() -> None:
    both = call().astype(np.float32)
    for channel in (0, 1):
        for audio in (encoded(both, channel), RawAudio(both.tobytes(), "float32", 16_000, 2, channel)):
            waveform = decode(audio, MINUTE)
            np.testing.assert_array_equal(waveform.samples, both[:, channel])
            assert (waveform.info.channels, waveform.info.channel) == (2, channel)


def test_missing_channel_and_silent_channel_are_named() -> None:
    with pytest.raises(InvalidArgumentError, match="channel 3 is asked for, and it has 2 channels") as refused:
        decode(encoded(call(), 2), MINUTE)
    assert refused.value.reason is Reason.CHANNELS
    with pytest.raises(InvalidArgumentError, match="channel 2 is asked for, and it has one channel"):
        decode(encoded(voice(1.0), 1), MINUTE)
    one_sided = np.stack([voice(1.0), np.zeros(16_000)], axis=1)
    with pytest.raises(InvalidArgumentError, match="silent in channel 2"):
        decode(encoded(one_sided, 1), MINUTE)


@pytest.mark.parametrize(("stored", "reach"), [(16_000, 8_000), (8_000, 4_000), (12_000, 6_000)])
def test_band_of_the_sound_is_reported(stored: int, reach: int) -> None:
    """Whatever the rate that it was stored at later."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(4 * stored)
    reader = WindowReader(encoded(noise, rate=stored), MINUTE, Windowing(48_000, 24_000, 160), 8_000)
    sounds = SoundMeasures()
    while (window := reader.next()) is not None:
        sounds.add(measure_sound(window.samples), speech=False)
    assert sounds.whole is not None
    assert sounds.whole.bandwidth_hz == pytest.approx(reach, abs=260)
