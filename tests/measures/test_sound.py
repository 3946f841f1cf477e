"""Measures of sound against sounds whose figures are known by construction."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from measures.sound import SILENT_DBFS, Sound, hear, together

RATE = 16_000
Samples = NDArray[np.float32]


def sine(height: float, hertz: float = 440.0, seconds: float = 3.0) -> Samples:
    time = np.arange(int(seconds * RATE)) / RATE
    return (height * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


@pytest.mark.parametrize("offset", [0.0, -0.085])
@pytest.mark.parametrize("height", [0.5, 0.01])
def test_the_level_is_that_of_the_root_mean_square_without_the_offset(height: float, offset: float) -> None:
    sound = hear(sine(height) + np.float32(offset))
    assert sound.level_dbfs == pytest.approx(20 * math.log10(height / math.sqrt(2)), abs=0.01)
    assert sound.seconds == 3.0


@pytest.mark.parametrize("samples", [np.zeros(48_000), np.full(48_000, 0.25), np.zeros(400)])
def test_silence_has_no_ratio(samples: NDArray[np.float64]) -> None:
    sound = hear(samples.astype(np.float32))
    assert math.isnan(sound.snr_db)
    assert (sound.level_dbfs, sound.speech_share, sound.clipped_share, sound.bandwidth_hz) == (SILENT_DBFS, 0, 0, 0)


@pytest.mark.parametrize("samples", [400, 401, 513, 1000, 16_000])
def test_anything_that_is_long_enough_can_be_heard(samples: int) -> None:
    sound = hear(np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32))
    assert sound.seconds == samples / RATE
    assert not math.isnan(sound.snr_db)


@pytest.mark.parametrize("ceiling", [1.0, 0.3])
def test_a_clipped_sine_says_how_much_of_it_was_cut_off(ceiling: float) -> None:
    drive = 1.25
    expected = 1 - 2 / math.pi * math.asin(1 / drive)
    clipped = np.clip(sine(ceiling * drive, 441.7), -ceiling, ceiling)
    assert hear(clipped).clipped_share == pytest.approx(expected, abs=0.02)
    assert hear(sine(ceiling * 0.9, 441.7)).clipped_share == 0


def test_windows_together_say_what_the_whole_says() -> None:
    loud, quiet = hear(sine(0.5, seconds=1.0)), hear(sine(0.05, seconds=3.0))
    whole = hear(np.concatenate([sine(0.5, seconds=1.0), sine(0.05, seconds=3.0)]))
    both = together([loud, quiet])
    assert both.seconds == 4.0
    assert both.level_dbfs == pytest.approx(whole.level_dbfs, abs=0.01)


def test_energies_add_up_over_windows() -> None:
    clean = Sound(seconds=1.0, snr_db=20.0, speech_share=1.0, clipped_share=0.0, level_dbfs=-20.0, bandwidth_hz=8000.0)
    noisy = Sound(seconds=3.0, snr_db=0.0, speech_share=0.0, clipped_share=0.4, level_dbfs=-20.0, bandwidth_hz=4000.0)
    both = together([clean, noisy])
    speech, noise = 100 / 101 + 3 / 2, 1 / 101 + 3 / 2
    assert both.snr_db == pytest.approx(10 * math.log10(speech / noise))
    assert (both.speech_share, both.bandwidth_hz) == (0.25, 8000.0)
    assert both.clipped_share == pytest.approx(0.3)
    assert both.level_dbfs == pytest.approx(-20.0)


def test_silent_windows_say_nothing_of_the_ratio() -> None:
    silence, tone = hear(np.zeros(48_000, np.float32)), hear(sine(0.1))
    assert together([silence, tone]).snr_db == pytest.approx(tone.snr_db)
    assert math.isnan(together([silence, silence]).snr_db)
    with pytest.raises(ValueError, match="no window"):
        together([])
