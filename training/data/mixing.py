"""Mix speech with interference at a given signal-to-noise ratio: batched, on the device of the speech."""

from typing import NamedTuple

import torch
from torch import Tensor

from speakerlens.training.data.audio import SAMPLE_RATE

KINDS = ("noise", "music", "babble", "speaker", "reverb")

DIRECT_SAMPLES = SAMPLE_RATE * 25 // 10_000
"""2.5 ms: sound up to this long after the largest sample counts as direct (Zahorik, "Direct-to-reverberant energy ratio
sensitivity", J. Acoust. Soc. Am. 112, 2002)."""

SILENT_NORM = 1e-10
"""L2 norm up to which a signal counts as silent; the squares of much smaller samples underflow in float32."""


class Mixture(NamedTuple):
    """A batch of mixtures, all [B, N]; `audio` = `speech` + `interference`."""

    audio: Tensor
    speech: Tensor
    interference: Tensor


def scale_to_snr(speech: Tensor, interference: Tensor, snr_db: Tensor) -> Tensor:
    """Scale interference to an SNR, 10 log10 of the ratio of the energies.

    Args:
        speech: float32 [B, N].
        interference: float32 [B, N], at any level.
        snr_db: [B], in dB.

    Returns:
        float32 [B, N]; zeros where speech or interference is silent, as no gain gives the SNR then.
    """
    loudness, unwanted = torch.linalg.vector_norm(speech, dim=1), torch.linalg.vector_norm(interference, dim=1)
    audible = (loudness > SILENT_NORM) & (unwanted > SILENT_NORM)
    gain = torch.where(audible, loudness / unwanted * 10.0 ** (-snr_db.to(loudness) / 20.0), 0.0)
    return interference * gain[:, None]


def mix(speech: Tensor, interference: Tensor) -> Mixture:
    """Add interference [B, N] to speech [B, N].

    Rows that exceed [-1, 1] are scaled down, speech and interference alike, which keeps the SNR.
    """
    audio = speech + interference
    peak = torch.linalg.vector_norm(audio, ord=torch.inf, dim=1, keepdim=True)
    scale = torch.where(peak > 1.0, (1.0 - 1e-6) / peak, 1.0)  # keeps the scaled peak below 1 despite rounding
    return Mixture(audio.mul_(scale), speech * scale, interference * scale)


def late_reverberation(speech: Tensor, response: Tensor) -> Tensor:
    """Compute the late reverberation of dry speech.

    The direct sound is the largest sample of the impulse response; it is moved to sample 0, so that the speech keeps
    its place in time. What comes more than 2.5 ms after it is late. Mixed with the speech at an SNR of R dB, the result
    has a direct-to-reverberant ratio of R dB.

    Args:
        speech: [B, N], zero where it is not valid.
        response: room impulse responses [B, L].

    Returns:
        The late part [B, N]: speech convolved with the response's tail, cut to the speech's length.
    """
    tail = late_tail(response)
    samples = speech.shape[1]
    size = _fast_length(samples + tail.shape[1] - 1)
    spectrum = torch.fft.rfft(speech, n=size) * torch.fft.rfft(tail, n=size)
    late: Tensor = torch.fft.irfft(spectrum, n=size)[:, :samples]
    return late


def late_tail(response: Tensor) -> Tensor:
    """Return the late part [B, L] of impulse responses [B, L], after scaling the direct sound to 1 at sample 0."""
    taps = response.shape[1]
    direct = response.abs().argmax(dim=1, keepdim=True)
    delay = torch.arange(taps, device=response.device)
    aligned = response.gather(1, (direct + delay).clamp_max(taps - 1))
    late = (delay > DIRECT_SAMPLES) & (direct + delay < taps)
    height = response.gather(1, direct)
    return torch.where(late, aligned, 0.0) / torch.where(height == 0, 1.0, height)


def _fast_length(at_least: int) -> int:
    """Return the smallest size of at least `at_least` without prime factors above 5, for a fast Fourier transform."""
    size = at_least
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1
