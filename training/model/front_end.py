"""Kaldi-compatible log-mel features as a convolution and a matrix product.

The front end is part of the network, so an exported graph computes the features of training. All steps before the power
spectrum (scaling, DC removal, pre-emphasis, window, Fourier transform) are linear in the frame and are folded into the
kernel of one `Conv1d`; no STFT operator is needed. The settings are those of Kaldi's `compute-fbank-feats` in
WeSpeaker's ResNet recipes.
"""

import math
from typing import Final

import torch
from torch import Tensor, nn

from speakerlens.training.data.audio import SAMPLE_RATE

FRAME_LENGTH = 400  # samples, 25 ms
FRAME_SHIFT = 160  # samples, 10 ms
LOW_HZ = 20.0
HIGH_HZ = 8000.0

_FFT_SIZE = 512
_PRE_EMPHASIS = 0.97
_FULL_SCALE = 32768.0


class LogMel(nn.Module):
    """Log-mel energies with the utterance's mean over time subtracted.

    Args:
        mel_bins: number of triangular filters between 20 Hz and 8 kHz.
    """

    kernel: Tensor
    filters: Tensor
    # TorchScript, in which this module is exported too, sees constants only as attributes.
    frame_shift: Final[int] = FRAME_SHIFT
    log_floor: Final[float] = torch.finfo(torch.float32).eps

    def __init__(self, mel_bins: int = 80) -> None:
        super().__init__()
        self.mel_bins = mel_bins
        self.register_buffer("kernel", _frame_kernel().float().unsqueeze(1), persistent=False)
        self.register_buffer("filters", mel_filters(mel_bins).float(), persistent=False)

    def mel_power(self, audio: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the mel-filtered power of 16 kHz audio in [-1, 1], [batch, samples] -> [batch, mel, frames].

        Only the first `lengths` [batch] samples of each row are valid (None: all); frames beyond them are meaningless.
        """
        # The kernel removes each frame's mean, but in float32 a large constant offset would leave rounding errors in
        # quiet bins (0.01 in the log for an offset of -0.08, as found in recordings).
        if lengths is None:
            offset = audio.mean(dim=1, keepdim=True)
        else:
            offset = (audio * time_mask(lengths, audio.shape[1])).sum(dim=1, keepdim=True) / lengths.unsqueeze(1)
        spectrum = nn.functional.conv1d((audio - offset).unsqueeze(1), self.kernel, stride=self.frame_shift)
        real, imaginary = spectrum.chunk(2, dim=1)
        return torch.matmul(self.filters, real * real + imaginary * imaginary)

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the log-mel features of a batch, with the mean over time subtracted.

        Args:
            audio: 16 kHz samples in [-1, 1], [batch, samples], at least 400 samples.
            lengths: valid samples of each row, [batch]; all of them where it is None.

        Returns:
            Features, float32 [batch, mel, frames], zero beyond the valid frames, and those, int64 [batch].
        """
        log_mel = self.mel_power(audio, lengths).clamp_min(self.log_floor).log()
        if lengths is None:
            frames = torch.full((audio.shape[0],), log_mel.shape[2], dtype=torch.int64, device=audio.device)
            return log_mel - log_mel.mean(dim=2, keepdim=True), frames
        frames = frame_count(lengths)
        mask = time_mask(frames, log_mel.shape[2]).unsqueeze(1)
        mean = (log_mel * mask).sum(dim=2, keepdim=True) / frames.to(log_mel.dtype)[:, None, None]
        return (log_mel - mean) * mask, frames

    def centres_hz(self) -> list[float]:
        """Return the centre frequency of each filter in Hz, [mel]."""
        low, high = _mel(torch.tensor(LOW_HZ)).item(), _mel(torch.tensor(HIGH_HZ)).item()
        step = (high - low) / (self.mel_bins + 1)
        return [700.0 * (math.exp((low + step * (i + 1)) / 1127.0) - 1.0) for i in range(self.mel_bins)]


# TorchScript reads no global variable, only a default.
def frame_count(lengths: Tensor, frame_length: int = FRAME_LENGTH, frame_shift: int = FRAME_SHIFT) -> Tensor:
    """Return the number of complete frames in `lengths` samples [batch] (Kaldi's `snip_edges`), at least 1."""
    # Of what is not negative, truncation is the floor, and one operator in a graph.
    return torch.div((lengths - frame_length).clamp_min(0), frame_shift, rounding_mode="trunc") + 1


def time_mask(frames: Tensor, columns: int) -> Tensor:
    """Return 1 for the first `frames` [batch] columns of each row and 0 beyond them, float32 [batch, columns]."""
    return (torch.arange(columns, device=frames.device) < frames.unsqueeze(1)).to(torch.float32)


def mel_filters(mel_bins: int) -> Tensor:
    """Return Kaldi's triangular filters, linear in mel, over FFT bins 1 to 255, float64 [mel, 255].

    Bin 0 is below 20 Hz and Kaldi excludes the Nyquist bin; neither has weight in any filter.
    """
    frequencies = torch.arange(1, _FFT_SIZE // 2, dtype=torch.float64) * (SAMPLE_RATE / _FFT_SIZE)
    edges = torch.linspace(
        _mel(torch.tensor(LOW_HZ, dtype=torch.float64)).item(),
        _mel(torch.tensor(HIGH_HZ, dtype=torch.float64)).item(),
        mel_bins + 2,
        dtype=torch.float64,
    )
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    mel = _mel(frequencies)
    rising, falling = (mel - left) / (centre - left), (right - mel) / (right - centre)
    return torch.minimum(rising, falling).clamp_min(0.0)


def _mel(hz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hz / 700.0)


def _frame_kernel() -> Tensor:
    """Return the matrix from a frame's samples to its spectrum (real parts, then imaginary), float64 [2 x 255, 400]."""
    size = FRAME_LENGTH
    identity = torch.eye(size, dtype=torch.float64)
    remove_mean = identity - 1.0 / size
    previous = torch.cat([identity[:1], identity[:-1]])  # in Kaldi the first sample is its own predecessor
    pre_emphasis = identity - _PRE_EMPHASIS * previous
    time = torch.arange(size, dtype=torch.float64)
    window = 0.54 - 0.46 * torch.cos(2 * math.pi * time / (size - 1))
    bins = torch.arange(1, _FFT_SIZE // 2, dtype=torch.float64)
    # Reduced modulo the period first, so that the angles are exact.
    angle = 2 * math.pi / _FFT_SIZE * torch.remainder(torch.outer(bins, time), _FFT_SIZE)
    transform = torch.cat([torch.cos(angle), -torch.sin(angle)])
    return _FULL_SCALE * (transform * window) @ pre_emphasis @ remove_mean
