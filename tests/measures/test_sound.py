"""Measures of sound against sounds whose figures are known by construction."""

import math
from dataclasses import astuple

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from speakerlens.measures.sound import SILENT_DBFS, Sound, clipped_share, join, measure_sound
from tests.measures.sounds import RATE, Samples, mixed, noise, reference_sounds, sine, voice


@pytest.mark.parametrize("offset", [0.0, -0.085])
@pytest.mark.parametrize("height", [0.5, 0.01])
def test_the_level_is_the_rms_without_the_offset(height: float, offset: float) -> None:
    sound = measure_sound(sine(height) + np.float32(offset))
    assert sound.level_dbfs == pytest.approx(20 * math.log10(height / math.sqrt(2)), abs=0.01)
    assert sound.seconds == 3.0


@pytest.mark.parametrize("seed", range(4))
def test_the_level_from_frames_is_close_to_that_of_all_samples(seed: int) -> None:
    for samples in (noise(3.0, seed), voice(6.0, seed)[0]):
        assert measure_sound(np.float32(0.1) * samples).level_dbfs == pytest.approx(-20, abs=0.5)


@pytest.mark.parametrize("samples", [np.zeros(48_000), np.full(48_000, 0.25), np.zeros(400)])
def test_silence_has_no_snr(samples: NDArray[np.float64]) -> None:
    sound = measure_sound(samples.astype(np.float32))
    assert math.isnan(sound.snr_db)
    assert (sound.level_dbfs, sound.speech_share, sound.clipped_share, sound.bandwidth_hz) == (SILENT_DBFS, 0, 0, 0)


@pytest.mark.parametrize("samples", [400, 401, 513, 1000, 16_000])
def test_any_long_enough_audio_can_be_measured(samples: int) -> None:
    sound = measure_sound(np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32))
    assert sound.seconds == samples / RATE
    assert not math.isnan(sound.snr_db)


@pytest.mark.parametrize("offset", [0.0, -0.085])
@pytest.mark.parametrize("ceiling", [0.9, 0.3])
def test_the_clipped_share_of_a_sine(ceiling: float, offset: float) -> None:
    drive = 1.25
    expected = 1 - 2 / math.pi * math.asin(1 / drive)
    clipped = np.clip(sine(ceiling * drive, 441.7), -ceiling, ceiling)
    assert measure_sound(in_16_bits(clipped + np.float32(offset))).clipped_share == pytest.approx(expected, abs=0.01)


def test_one_sided_clipping_counts_one_side() -> None:
    speech = 0.2 * voice(3.0, 1)[0]
    ceiling = np.float32(0.25)
    cut = in_16_bits(np.minimum(speech, ceiling))
    assert measure_sound(cut).clipped_share == pytest.approx(float((speech >= ceiling).mean()), rel=0.1)
    assert measure_sound(cut).clipped_share > 0.001


@pytest.mark.parametrize("seed", range(4))
def test_the_clipped_share_of_speech_at_full_scale(seed: int) -> None:
    speech = voice(3.0, seed)[0]
    speech = speech * np.float32(2 / np.abs(speech).max())
    lost = float((np.abs(speech) >= 1).mean())
    assert measure_sound(in_16_bits(speech)).clipped_share == pytest.approx(lost, rel=0.02)


@pytest.mark.parametrize("hertz", [50.0, 100.0, 441.7, 3000.0])
@pytest.mark.parametrize("height", [0.001, 0.2, 1.0])
def test_a_round_top_is_not_clipping(hertz: float, height: float) -> None:
    assert measure_sound(in_16_bits(sine(height, hertz))).clipped_share == 0


def test_unclipped_speech_and_noise_are_not_clipped() -> None:
    for seed in range(5):
        speech = voice(3.0, seed)[0]
        for sound in (speech, mixed(speech, noise(3.0, seed), 5)):
            assert measure_sound(in_16_bits(sound / np.abs(sound).max())).clipped_share == 0


def in_16_bits(samples: NDArray[np.floating]) -> Samples:
    return (np.clip(np.round(samples * 32768), -32768, 32767) / 32768).astype(np.float32)


@pytest.mark.parametrize("edge", [1000, 2000, 3400, 4000, 6000, 7900])
@pytest.mark.parametrize("level", [0.2, 0.002])
def test_the_bandwidth_of_low_passed_noise_is_its_edge(edge: float, level: float) -> None:
    assert measure_sound(in_16_bits(np.float32(level) * noise(3.0, 1, (0, edge)))).bandwidth_hz == pytest.approx(
        edge, abs=550
    )


def test_telephone_and_wideband_speech_differ_in_bandwidth() -> None:
    for seed in range(5):
        speech = 0.1 * voice(3.0, seed)[0]
        telephone = soxr.resample(soxr.resample(speech, RATE, 8000), 8000, RATE).astype(np.float32)
        for gain in (1.0, 0.03):
            assert 3000 <= measure_sound(in_16_bits(gain * telephone)).bandwidth_hz <= 4250
            assert measure_sound(in_16_bits(gain * speech)).bandwidth_hz >= 6000


def test_silence_and_offset_do_not_change_the_bandwidth() -> None:
    telephone = 0.1 * noise(1.0, 2, (300, 3400))
    silence = np.zeros(RATE, np.float32)
    around = np.concatenate([silence, telephone, silence]) - np.float32(0.085)
    assert measure_sound(in_16_bits(around)).bandwidth_hz == measure_sound(in_16_bits(telephone)).bandwidth_hz


@pytest.mark.parametrize("snr", [60, 15])
def test_the_share_of_speech_is_that_of_the_time_with_a_voice(snr: float) -> None:
    spoken = [voice(6.0, seed, pauses) for seed, pauses in enumerate((0.1, 0.3, 0.5, 0.7))]
    found = [measure_sound(np.float32(0.05) * mixed(speech, noise(6.0, 9), snr)).speech_share for speech, _ in spoken]
    shares = [share for _, share in spoken]
    assert np.abs(np.array(found) - shares).mean() < 0.2
    assert np.corrcoef(found, shares)[0, 1] > 0.9


def test_noise_has_no_speech() -> None:
    for band in ((0, 8000), (0, 1000), (300, 3400)):
        assert measure_sound(np.float32(0.05) * noise(3.0, 3, band)).speech_share < 0.05


def test_joined_windows_equal_the_whole() -> None:
    loud, quiet = measure_sound(sine(0.5, seconds=1.0)), measure_sound(sine(0.05, seconds=3.0))
    whole = measure_sound(np.concatenate([sine(0.5, seconds=1.0), sine(0.05, seconds=3.0)]))
    both = join([loud, quiet])
    assert both.seconds == 4.0
    assert both.level_dbfs == pytest.approx(whole.level_dbfs, abs=0.1)


def test_joined_noisy_windows_equal_the_whole() -> None:
    whole = np.float32(0.05) * mixed(voice(12.0, 4)[0], noise(12.0, 5), 8)
    both = join([measure_sound(window) for window in np.split(whole, 4)])
    at_once = measure_sound(whole)
    assert both.snr_db == pytest.approx(at_once.snr_db, abs=1.5)
    assert both.speech_share == pytest.approx(at_once.speech_share, abs=0.1)
    assert both.level_dbfs == pytest.approx(at_once.level_dbfs, abs=0.2)
    assert both.bandwidth_hz == at_once.bandwidth_hz


def test_energies_add_up_over_windows() -> None:
    clean = Sound(seconds=1.0, snr_db=20.0, speech_share=1.0, clipped_share=0.0, level_dbfs=-20.0, bandwidth_hz=8000.0)
    noisy = Sound(seconds=3.0, snr_db=0.0, speech_share=0.0, clipped_share=0.4, level_dbfs=-20.0, bandwidth_hz=4000.0)
    both = join([clean, noisy])
    speech, noise = 100 / 101 + 3 / 2, 1 / 101 + 3 / 2
    assert both.snr_db == pytest.approx(10 * math.log10(speech / noise))
    assert (both.speech_share, both.bandwidth_hz) == (0.25, 8000.0)
    assert both.clipped_share == pytest.approx(0.3)
    assert both.level_dbfs == pytest.approx(-20.0)


def test_silent_windows_do_not_change_the_snr() -> None:
    silence, tone = measure_sound(np.zeros(48_000, np.float32)), measure_sound(sine(0.1))
    assert join([silence, tone]).snr_db == pytest.approx(tone.snr_db)
    assert math.isnan(join([silence, silence]).snr_db)
    with pytest.raises(ValueError, match="no window"):
        join([])


@pytest.mark.parametrize(("ceiling", "clipped"), [(0.025, True), (0.019, False)])
def test_clipping_counts_from_an_amplitude_of_0_02(ceiling: float, clipped: bool) -> None:
    samples = np.clip(sine(0.05), -ceiling, ceiling).astype(np.float32)
    assert (measure_sound(samples).clipped_share > 0) is clipped


PINNED = {
    "speech": Sound(3.0, 6.56806, 0.532258, 0.0, -26.0838, 8000.0),
    "long": Sound(6.0, -0.845729, 0.304, 0.0, -26.0851, 8000.0),
    "short": Sound(0.04375, -8.35045, 0.0, 0.0, -25.541, 8000.0),
    "pauses": Sound(2.0, 23.1335, 0.121951, 0.0, -29.0026, 8000.0),
    "clipped": Sound(1.0, -10.0, 0.0, 0.313, -6.04565, 8000.0),
}


@pytest.mark.parametrize("name", PINNED)
def test_the_measures_of_reference_sounds_are_pinned(name: str) -> None:
    assert astuple(measure_sound(reference_sounds()[name])) == pytest.approx(astuple(PINNED[name]), abs=2e-3)


STEP = 2.0**-15
PLATEAUS = {
    "three in a row": ([0.0], [0.5, 0.5, 0.5], [0.0], 3),
    "two in a row": ([0.0], [0.5, 0.5], [0.0], 0),
    "within 1.5 steps": ([0.0], [0.5, 0.5, 0.5 - 1.4 * STEP], [0.0], 3),
    "beyond 1.5 steps": ([0.0], [0.5, 0.5, 0.5 - 2.0 * STEP], [0.0], 0),
    "a fall of 7 steps": ([0.5 - 7 * STEP], [0.5, 0.5, 0.5], [0.5 - 7 * STEP], 3),
    "a fall of 5 steps": ([0.5 - 5 * STEP], [0.5, 0.5, 0.5], [0.5 - 5 * STEP], 0),
    "abrupt on the left only": ([0.0], [0.5, 0.5, 0.5], [0.5 - 4 * STEP], 3),
    "at the start, round on the right": ([], [0.5, 0.5, 0.5], [0.5 - 4 * STEP], 0),
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", PLATEAUS)
def test_which_plateaus_are_clipped(name: str, sign: int) -> None:
    before, plateau, after, count = PLATEAUS[name]
    samples = np.linspace(0, -0.3, 1000, dtype=np.float32)  # not flat at its lower end
    found = [*before, *plateau, *after]
    samples[: len(found)] = found
    assert clipped_share(sign * samples) == count / 1000
