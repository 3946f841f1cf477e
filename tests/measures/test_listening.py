"""The sound that maps keep, and its measures, beside formulas and transforms written another way."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import signal

from speakerlens.measures.listening import Confidences, kept, listened

CENTRES = np.linspace(40, 7800, 80)


def tones(seconds: float, *hertz: float) -> NDArray[np.float32]:
    time = np.arange(round(16_000 * seconds)) / 16_000
    total: NDArray[np.float64] = np.sum([0.2 * np.sin(2 * np.pi * each * time) for each in hertz], axis=0)
    return total.astype(np.float32)


def frames(samples: NDArray[np.float32]) -> int:
    return 1 + (len(samples) - 400) // 160


def test_maps_of_ones_and_zeros_keep_all_and_nothing() -> None:
    samples = np.random.default_rng(0).normal(size=20_011).astype(np.float32)
    ones = np.ones((80, frames(samples)), np.float32)
    np.testing.assert_allclose(kept(samples, ones, CENTRES, 400, 160), samples, atol=1e-5)
    np.testing.assert_allclose(kept(samples, 0.25 * ones, CENTRES, 400, 160), 0.25 * samples, atol=1e-5)
    assert not kept(samples, 0 * ones, CENTRES, 400, 160).any()


def test_kept_sound_lies_where_the_map_is() -> None:
    samples = tones(2.0, 500, 4000)
    saliency = np.zeros((80, frames(samples)), np.float32)
    saliency[CENTRES < 1500, : frames(samples) // 2] = 1
    found = kept(samples, saliency, CENTRES, 400, 160)
    np.testing.assert_allclose(found[1000:15_000], tones(2.0, 500)[1000:15_000], atol=5e-3)
    assert np.abs(found[17_000:31_000]).max() < 1e-3


def test_kept_sound_is_that_of_a_plain_transform() -> None:
    rng = np.random.default_rng(1)
    samples = rng.normal(size=16_000).astype(np.float32)
    saliency = rng.uniform(size=(80, frames(samples))).astype(np.float32)
    window = signal.get_window("hann", 512)
    hertz = np.arange(257) * 16_000 / 512
    padded = np.concatenate([np.zeros(512), samples, np.zeros(512)])
    spectrum = np.stack(
        [np.fft.rfft(padded[start : start + 512] * window) for start in range(0, len(padded) - 511, 128)]
    )
    for number in range(len(spectrum)):
        frame = int(np.clip(np.round((number * 128 - 256 - 200) / 160), 0, saliency.shape[1] - 1))
        spectrum[number] *= np.interp(hertz, CENTRES, saliency[:, frame])
    total, weight = np.zeros(len(padded)), np.zeros(len(padded))
    for number, column in enumerate(spectrum):
        place = slice(number * 128, number * 128 + 512)
        total[place] += np.fft.irfft(column) * window
        weight[place] += window**2
    expected = total[512:-512] / weight[512:-512]
    np.testing.assert_allclose(kept(samples, saliency, CENTRES, 400, 160), expected, atol=1e-5)


def test_measures_are_those_of_the_papers() -> None:
    rng = np.random.default_rng(2)
    whole, part, rest = rng.uniform(size=(3, 50))
    same = rng.uniform(size=50) < 0.7
    found = listened(Confidences(whole, part, rest, same))
    pairs = list(zip(whole, part, rest, strict=True))
    assert found.average_increase == pytest.approx(sum(y > x for x, y, _ in pairs) / 50)
    assert found.average_drop == pytest.approx(sum(max(0, x - y) / x for x, y, _ in pairs) / 50)
    assert found.average_gain == pytest.approx(sum(max(0, y - x) / (1 - x) for x, y, _ in pairs) / 50)
    assert found.faithfulness == pytest.approx(sum(x - z for x, _, z in pairs) / 50)
    assert found.input_fidelity == pytest.approx(sum(same) / 50)


def test_certain_and_impossible_classes_have_measures() -> None:
    values = np.array([0.0, 1.0])
    found = listened(Confidences(values, values, values, np.array([True, True])))
    assert (found.average_increase, found.average_drop, found.average_gain) == (0, 0, 0)
