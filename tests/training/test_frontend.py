"""The front end against kaldi-native-fbank, and the promises about padding."""

from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.audio import read_audio
from training.frontend import LogMel, frame_count


def kaldi_log_mel(audio: NDArray[np.float32], mel_bins: int) -> NDArray[np.float64]:
    """Features of WeSpeaker's recipes, without dither, [mel, frames]."""
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.samp_freq = 16000
    options.frame_opts.window_type = "hamming"
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = mel_bins
    options.mel_opts.low_freq = 20.0
    options.energy_floor = 0.0
    options.use_energy = False
    bank = knf.OnlineFbank(options)
    bank.accept_waveform(16000, (audio * 32768.0).tolist())
    bank.input_finished()
    features = np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)]).astype(np.float64)
    normalised: NDArray[np.float64] = (features - features.mean(axis=0)).T
    return normalised


@pytest.mark.parametrize("mel_bins", [80, 40])
def test_matches_kaldi_on_speech(corpus: Path, mel_bins: int) -> None:
    files = sorted((corpus / "audio").rglob("*.flac"))[:12]
    assert len(files) == 12
    for file in files:
        audio = read_audio(file)
        ours, frames = LogMel(mel_bins)(torch.from_numpy(audio)[None])
        reference = kaldi_log_mel(audio, mel_bins)
        assert ours.shape[1:] == reference.shape
        assert frames.item() == reference.shape[1]
        np.testing.assert_allclose(ours[0].numpy(), reference, atol=1e-3)


def test_silence_is_flat_and_finite() -> None:
    features, _ = LogMel()(torch.zeros(1, 4000))
    assert torch.equal(features, torch.zeros_like(features))


@settings(deadline=None, max_examples=25)
@given(samples=st.integers(400, 6000), padding=st.integers(0, 3000), seed=st.integers(0, 10))
def test_padding_changes_nothing(samples: int, padding: int, seed: int) -> None:
    front_end = LogMel()
    audio = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))
    garbage = torch.cat([audio, torch.full((1, padding), 0.5)], dim=1)
    alone, frames = front_end(audio)
    padded, padded_frames = front_end(garbage, torch.tensor([samples]))
    assert frames.item() == padded_frames.item() == frame_count(torch.tensor(samples)).item()
    torch.testing.assert_close(padded[:, :, : frames.item()], alone, atol=2e-4, rtol=0)
    assert not padded[:, :, frames.item() :].any()


def test_centres_rise_within_the_band() -> None:
    centres = LogMel(80).centres_hz()
    assert len(centres) == 80
    assert centres == sorted(centres)
    assert 20 < centres[0] < 60
    assert 7000 < centres[-1] < 8000
    # A tone at a filter's centre is loudest in that filter.
    for bin_ in (30, 50, 70):
        tone = 0.5 * torch.sin(2 * torch.pi * centres[bin_] / 16000 * torch.arange(16000))
        assert LogMel(80).mel_power(tone[None]).mean(dim=2).argmax().item() == bin_
