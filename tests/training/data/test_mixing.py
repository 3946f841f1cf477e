import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from torch import Tensor

from speakerlens.training.data.mixing import DIRECT_SAMPLES, Mixture, late_reverberation, mix, scale_to_snr


def decibels(speech: ArrayLike, interference: ArrayLike) -> float:
    """Signal-to-noise ratio, measured apart from the code under test: numpy, float64."""
    speech, interference = np.asarray(speech, np.float64), np.asarray(interference, np.float64)
    return float(10 * np.log10(np.sum(speech**2) / np.sum(interference**2)))


def mix_at_snr(speech: Tensor, interference: Tensor, snr_db: Tensor) -> Mixture:
    return mix(speech, scale_to_snr(speech, interference, snr_db))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    samples=st.integers(1, 3000),
    low=st.floats(-20, 40),
    spread=st.floats(0, 20),
    loudness=st.floats(-100, 0),
    other=st.floats(-100, 60),
    seed=st.integers(0, 2**31),
)
def test_mixture_has_the_requested_snr(
    rows: int, samples: int, low: float, spread: float, loudness: float, other: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    speech = (rng.uniform(-1, 1, (rows, samples)) + 1e-3) * 10 ** (loudness / 20)
    interference = (rng.standard_normal((rows, samples)) + 1e-3) * 10 ** (other / 20)
    snr = low + spread * rng.random(rows)
    mixture = mix_at_snr(
        torch.tensor(np.clip(speech, -1, 1), dtype=torch.float32),
        torch.tensor(interference, dtype=torch.float32),
        torch.tensor(snr, dtype=torch.float32),
    )
    for row in range(rows):
        assert decibels(mixture.speech[row], mixture.interference[row]) == pytest.approx(snr[row], abs=0.1)
    assert mixture.audio.abs().max() <= 1.0
    torch.testing.assert_close(mixture.audio, mixture.speech + mixture.interference)


def test_mixture_without_clipping_keeps_the_speech() -> None:
    speech, noise = 0.1 * torch.rand(2, 1000), torch.rand(2, 1000)
    mixture = mix_at_snr(speech, noise, torch.tensor([10.0, 20.0]))
    torch.testing.assert_close(mixture.speech, speech)
    gain = mixture.interference / noise
    torch.testing.assert_close(gain, gain[:, :1].expand_as(gain))


def test_clipping_mixture_is_scaled_with_its_parts() -> None:
    speech = 0.9 * torch.sin(torch.arange(1600) / 5.0)[None]
    mixture = mix_at_snr(speech, torch.randn(1, 1600), torch.tensor([-10.0]))
    assert float(mixture.audio.abs().max()) == pytest.approx(1.0, abs=1e-5)
    scale = mixture.speech[0, 1:] / speech[0, 1:]
    assert float(scale.max()) < 0.9
    torch.testing.assert_close(scale, scale[:1].expand_as(scale))
    assert decibels(mixture.speech, mixture.interference) == pytest.approx(-10, abs=0.01)


@pytest.mark.parametrize("silent", ["speech", "interference", "both"])
def test_silent_interference_keeps_the_speech_without_nan(silent: str) -> None:
    speech, noise = 0.1 * torch.randn(2, 500), torch.randn(2, 500)
    if silent != "interference":
        speech[0] = 0
    if silent != "speech":
        noise[0] = 0
    mixture = mix_at_snr(speech, noise, torch.tensor([5.0, 5.0]))
    assert all(torch.isfinite(part).all() for part in mixture)
    torch.testing.assert_close(mixture.audio[0], speech[0])
    assert decibels(mixture.speech[1], mixture.interference[1]) == pytest.approx(5, abs=0.1)


def test_late_reverberation_is_the_convolution_with_the_tail() -> None:
    rng = np.random.default_rng(0)
    speech = rng.standard_normal((3, 2000))
    responses = 0.1 * rng.standard_normal((3, 900)) * np.exp(-np.arange(900) / 200)
    direct = [0, 16, 300]
    heights = [1.0, -0.8, 0.6]
    expected = []
    for row in range(3):
        responses[row, direct[row]] = heights[row]
        tail = responses[row].copy()
        tail[: direct[row] + DIRECT_SAMPLES + 1] = 0
        full = np.convolve(speech[row], tail / heights[row])
        expected.append(full[direct[row] :][:2000])  # so that the direct sound comes at once
    late = late_reverberation(
        torch.tensor(speech, dtype=torch.float32), torch.tensor(responses, dtype=torch.float32)
    ).numpy()
    np.testing.assert_allclose(late, expected, atol=1e-4)


def test_reverberation_at_the_own_ratio_is_plain_convolution() -> None:
    """At the natural ratio, a room that answers after 2.5 ms or later gives what numpy's convolution does."""
    rng = np.random.default_rng(1)
    response = np.zeros(2000)
    response[7] = 0.9
    response[7 + DIRECT_SAMPLES + 1 :] = 0.02 * rng.standard_normal(2000 - 8 - DIRECT_SAMPLES)
    speech = 0.1 * rng.standard_normal(4000)
    wet = np.convolve(speech, response / 0.9)[7:][:4000]
    ratio = decibels(speech, wet - speech)
    dry = torch.tensor(speech[None], dtype=torch.float32)
    late = late_reverberation(dry, torch.tensor(response[None], dtype=torch.float32))
    mixture = mix_at_snr(dry, late, torch.tensor([ratio]))
    np.testing.assert_allclose(mixture.audio[0].numpy(), wet, atol=1e-4)


def test_response_of_zeros_gives_silence() -> None:
    late = late_reverberation(torch.randn(1, 100), torch.zeros(1, 50))
    assert torch.all(late == 0)
