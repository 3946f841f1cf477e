"""Speech under interference at an asked signal-to-noise ratio: batched, on the device the speech is on."""

from typing import NamedTuple

import torch
from torch import Tensor

from speakerlens.training.data.audio import SAMPLE_RATE

KINDS = ("noise", "music", "babble", "speaker", "reverb")

DIRECT_SAMPLES = SAMPLE_RATE * 25 // 10_000
"""2.5 ms: what arrives up to this long after the direct sound counts as direct (Zahorik, "Direct-to-reverberant energy
ratio sensitivity", J. Acoust. Soc. Am. 112, 2002)."""

SILENT_NORM = 1e-10
"""Root of the energy up to which a signal counts as silent: squares much smaller than its square vanish in float32."""


class Mixture(NamedTuple):
    """A batch of mixtures, all [B, N]; `audio` = `speech` + `interference`."""

    audio: Tensor
    speech: Tensor
    interference: Tensor


def scale_to_snr(speech: Tensor, interference: Tensor, snr_db: Tensor) -> Tensor:
    """Scale interference to a signal-to-noise ratio, which is 10 log10 of the ratio of the energies.

    Args:
        speech: [B, N].
        interference: [B, N], at any level.
        snr_db: [B], in decibels.

    Returns:
        [B, N]; zeros where either of the two is silent, as no gain gives the ratio then.
    """
    loudness, unwanted = torch.linalg.vector_norm(speech, dim=1), torch.linalg.vector_norm(interference, dim=1)
    audible = (loudness > SILENT_NORM) & (unwanted > SILENT_NORM)
    gain = torch.where(audible, loudness / unwanted * 10.0 ** (-snr_db.to(loudness) / 20.0), 0.0)
    return interference * gain[:, None]


def mix(speech: Tensor, interference: Tensor) -> Mixture:
    """Add interference [B, N] to speech [B, N] in [-1, 1].

    A sum that would leave [-1, 1] is scaled down whole, speech and interference alike, which keeps their ratio.
    """
    audio = speech + interference
    peak = torch.linalg.vector_norm(audio, ord=torch.inf, dim=1, keepdim=True)
    scale = torch.where(peak > 1.0, (1.0 - 1e-6) / peak, 1.0)  # rounding must not lead out of the range again
    return Mixture(audio.mul_(scale), speech * scale, interference * scale)


def late_reverberation(speech: Tensor, response: Tensor) -> Tensor:
    """Compute what a room adds to dry speech after the direct sound.

    The direct sound is the largest sample of the impulse response; it is taken to arrive at once and unchanged, so that
    the speech stays where it is in time, and all that comes more than 2.5 ms after it is late. Mixing the
    result with the speech at a ratio of R dB gives a direct-to-reverberant ratio of R dB.

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
    """Cut out the late part [B, L] of impulse responses [B, L], with the direct sound at sample 0 and of height 1."""
    taps = response.shape[1]
    direct = response.abs().argmax(dim=1, keepdim=True)
    delay = torch.arange(taps, device=response.device)
    aligned = response.gather(1, (direct + delay).clamp_max(taps - 1))
    late = (delay > DIRECT_SAMPLES) & (direct + delay < taps)
    height = response.gather(1, direct)
    return torch.where(late, aligned, 0.0) / torch.where(height == 0, 1.0, height)


def _fast_length(at_least: int) -> int:
    """Find the smallest size from `at_least` on with no prime factor above 5: Fourier transforms of these are fast."""
    size = at_least
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1
