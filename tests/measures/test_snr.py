"""The blind estimate of the signal-to-noise ratio, on mixtures whose ratio is known."""

import math

import numpy as np
import pytest

from speakerlens.measures.snr import FITTED, HIGHEST_DB, LOWEST_DB, STRIDE, Frames, analyse, features, snr_db
from tests.measures.sounds import RATE, Samples, mixed, noise, reference_sounds, sine, voice

LEVEL = np.float32(0.05)


def estimate(samples: Samples) -> float:
    return snr_db(analyse(samples))


@pytest.mark.parametrize("seconds", [3.0, 6.0])
@pytest.mark.parametrize("band", [(0, 8000), (0, 1000)], ids=["white", "low"])
def test_the_mean_error_is_below_3_db_in_steady_noise(band: tuple[float, float], seconds: float) -> None:
    errors = [
        estimate(LEVEL * mixed(voice(seconds, seed)[0], noise(seconds, seed, band), snr)) - snr
        for snr in (-5, 0, 5, 10, 15, 20)
        for seed in range(6)
    ]
    assert abs(np.mean(errors)) < 3
    assert np.abs(errors).mean() < 3


def test_more_noise_is_a_lower_ratio() -> None:
    speech, hiss = voice(3.0, 1)[0], noise(3.0, 2)
    estimates = [estimate(LEVEL * mixed(speech, hiss, snr)) for snr in (-5, 0, 5, 10, 15, 20)]
    assert estimates == sorted(estimates)


@pytest.mark.parametrize("gain", [0.01, 0.3, 4.0])
def test_neither_level_nor_offset_matters(gain: float) -> None:
    samples = LEVEL * mixed(voice(3.0, 3)[0], noise(3.0, 4), 8)
    assert estimate(np.float32(gain) * samples) == pytest.approx(estimate(samples), abs=0.05)
    assert estimate(samples - np.float32(0.085)) == pytest.approx(estimate(samples), abs=0.05)


@pytest.mark.parametrize("samples", [400, 767, 768, 1600])
def test_very_short_audio_has_an_estimate_within_range(samples: int) -> None:
    for seed in range(5):
        assert LOWEST_DB <= estimate(noise(samples / RATE, seed)) <= HIGHEST_DB


def test_outlying_features_are_clipped() -> None:
    for far in (-1e9, 1e9):
        assert math.isfinite(FITTED.value(np.full(8, far)))
        assert FITTED.value(np.full(8, far)) == FITTED.value(np.full(8, 2 * far))


def test_silence_has_no_estimate() -> None:
    assert math.isnan(estimate(np.zeros(RATE, np.float32)))
    assert math.isnan(estimate(np.full(RATE, 0.25, np.float32)))


def test_energies_are_those_of_the_samples() -> None:
    samples = LEVEL * noise(30.0, 5)
    count = len(samples) // STRIDE
    assert analyse(samples).energy.mean() == pytest.approx(0.05**2, rel=0.05)
    steps = samples * np.repeat(10 ** np.linspace(-1, 1, 10), len(samples) // 10).astype(np.float32)
    direct = (steps[: count * STRIDE].reshape(count, -1)[:, :512] ** 2).mean(axis=1)
    assert np.corrcoef(np.log(direct), np.log(analyse(steps).energy))[0, 1] > 0.98


@pytest.mark.parametrize("hertz", [85.0, 120.0, 200.0, 310.0])
def test_a_voice_is_periodic_and_noise_is_not(hertz: float) -> None:
    pulses = np.zeros(3 * RATE, np.float32)
    pulses[np.arange(0, 3 * RATE - 1, RATE / hertz).astype(int)] = 1
    low = np.convolve(pulses, np.hanning(24), "same").astype(np.float32)
    assert analyse(low).voiced.mean() > 0.8
    assert analyse(noise(3.0, 6)).voiced.mean() < 0.45
    assert analyse(noise(3.0, 6)).periodic.mean() < 0.3


def test_the_periodic_share_is_that_of_the_harmonics() -> None:
    tone = sum((sine(1.0, 150.0 * harmonic) for harmonic in range(1, 6)), np.zeros(3 * RATE, np.float32))
    for snr in (10, 0):
        found = analyse(LEVEL * mixed(tone / tone.std(), noise(3.0, 7), snr))
        share = 10 ** (snr / 10) / (1 + 10 ** (snr / 10))
        assert float(found.energy @ found.periodic / found.energy.sum()) == pytest.approx(share, abs=0.12)


def test_batches_of_frames_do_not_change_the_result() -> None:
    samples = LEVEL * mixed(voice(12.0, 8)[0], noise(12.0, 9), 8)
    whole, first = analyse(samples), analyse(samples[: 50 * STRIDE])
    assert len(whole.energy) == len(samples) // STRIDE
    for all_of_it, part in zip(whole, first, strict=True):
        np.testing.assert_allclose(all_of_it[:50], part, rtol=1e-4, atol=1e-6)


def test_the_features_are_eight() -> None:
    assert features(analyse(noise(1.0, 1))).shape == FITTED.mean.shape == (8,)


PINNED = {
    "speech": [-11.0445, -9.37716, -7.13459, -0.635688, 2.52723, 8.88656, 10.0916, -0.0215801],
    "long": [-4.44456, -3.11084, -2.33447, -0.425558, 2.89114, 2.15265, 2.30743, -0.735075],
    "short": [0.0, 0.0, 0.0, 0.0, 0.0, -4.58019, -2.604, -6.90776],
    "pauses": [-60.0, -60.0, -60.0, -60.0, 0.291743, 8.47895, 9.1726, 0.798233],
    "clipped": [-0.0856807, -0.0171904, 0.0151548, 0.0270369, 0.0843563, 29.9984, 29.9989, -4.20509],
}


@pytest.mark.parametrize("name", PINNED)
def test_the_features_of_reference_sounds_are_pinned(name: str) -> None:
    assert features(analyse(reference_sounds()[name])) == pytest.approx(PINNED[name], abs=1e-3)


@pytest.mark.parametrize(
    ("energy", "periodic", "voiced", "expected"),
    [
        ([0.0] * 9 + [1.0], 0.0, 1.0, [-60.0, -60.0, -60.0, -60.0, -60.0, -40.0, 30.0, 0.939784]),
        ([1.0, 2.0, 3.0, 4.0], 0.5, 0.25, [-3.9794, -0.9691, 0.791812, 0.791812, 2.0412, 0.0, -4.77121, -0.769816]),
        ([0.001], 0.5, 0.25, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -4.77121, -6.90776]),
    ],
)
def test_features_of_given_frames(energy: list[float], periodic: float, voiced: float, expected: list[float]) -> None:
    shares = (np.full(len(energy), share, np.float32) for share in (periodic, voiced))
    assert features(Frames(np.array(energy, np.float32), *shares)) == pytest.approx(expected, abs=1e-4)


def test_estimates_stay_within_the_range() -> None:
    assert estimate(reference_sounds()["clipped"]) == -10.0
    energy = np.where(np.arange(50) % 5 > 1, 0.1, 1e-8).astype(np.float32)
    assert snr_db(Frames(energy, *(np.full(50, 0.99, np.float32),) * 2)) == 30.0


def test_audio_is_silent_up_to_minus_100_dbfs() -> None:
    shares = (np.full(4, 0.5, np.float32),) * 2
    assert math.isnan(snr_db(Frames(np.full(4, 0.9e-10, np.float32), *shares)))
    assert math.isfinite(snr_db(Frames(np.full(4, 1.1e-10, np.float32), *shares)))
