"""The front end against kaldi-native-fbank, and the promises about padding."""

from pathlib import Path

import kaldi_native_fbank as knf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speakerlens.training.data.audio import read_audio
from speakerlens.training.data.manifest import load_corpus
from speakerlens.training.model.front_end import LogMel, frame_count


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


def exact_log_mel(audio: NDArray[np.float32], mel_bins: int) -> NDArray[np.float64]:
    """The same step by step in float64, from Kaldi's documentation, [mel, frames]."""
    frames = np.lib.stride_tricks.sliding_window_view(audio.astype(np.float64) * 32768.0, 400)[::160]
    frames = frames - frames.mean(axis=1, keepdims=True)
    frames = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    power = np.abs(np.fft.rfft(frames * np.hamming(400), 512)) ** 2
    mel = 1127.0 * np.log(1.0 + np.arange(257) * 16000 / 512 / 700.0)
    edges = np.linspace(1127.0 * np.log(1.0 + 20.0 / 700.0), 1127.0 * np.log(1.0 + 8000.0 / 700.0), mel_bins + 2)
    filters = np.stack([np.interp(mel, edges[i : i + 3], [0.0, 1.0, 0.0]) for i in range(mel_bins)])
    features = np.log(np.maximum(power @ filters.T, np.finfo(np.float32).eps))
    normalised: NDArray[np.float64] = (features - features.mean(axis=0)).T
    return normalised


@pytest.mark.parametrize("mel_bins", [80, 40])
def test_matches_kaldi_on_speech(demo_corpus: Path, mel_bins: int) -> None:
    corpus = load_corpus(demo_corpus)
    clips = [*corpus.utterances("train"), *corpus.utterances("test")]
    assert len(clips) == 12
    for clip in clips:
        audio = read_audio(clip.path, clip.start, clip.duration)
        ours, frames = LogMel(mel_bins)(torch.from_numpy(audio)[None])
        reference = kaldi_log_mel(audio, mel_bins)
        assert ours.shape[1:] == reference.shape
        assert frames.item() == reference.shape[1]
        exact = exact_log_mel(audio, mel_bins)
        np.testing.assert_allclose(ours[0].numpy(), exact, atol=1e-3, rtol=0)
        # In about one bin of 40,000 (quiet, low) Kaldi's own float32 is further than that from the exact value.
        trusted = np.abs(reference - exact) < 5e-4
        assert trusted.mean() > 0.999
        np.testing.assert_allclose(ours[0].numpy()[trusted], reference[trusted], atol=1e-3, rtol=0)


def test_offset_does_not_change_the_features(demo_corpus: Path) -> None:
    clip = load_corpus(demo_corpus).utterances("test")[0]
    audio = torch.from_numpy(read_audio(clip.path, clip.start, clip.duration))[None]
    # An utterance with digital silence in it has frames at the floor, where an offset leaves rounding errors.
    audio = audio + 1e-3 * torch.randn(audio.shape, generator=torch.Generator().manual_seed(0))
    plain, _ = LogMel()(audio)
    shifted, _ = LogMel()(audio - 0.08)
    torch.testing.assert_close(shifted, plain, atol=1e-3, rtol=0)


def test_silence_is_flat_and_finite() -> None:
    features, _ = LogMel()(torch.zeros(1, 4000))
    torch.testing.assert_close(features, torch.zeros_like(features), atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=25)
@given(samples=st.integers(400, 6000), padding=st.integers(0, 3000), seed=st.integers(0, 10))
def test_padding_does_not_change_the_features(samples: int, padding: int, seed: int) -> None:
    front_end = LogMel()
    audio = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(seed))
    garbage = torch.cat([audio, torch.full((1, padding), 0.5)], dim=1)
    alone, frames = front_end(audio)
    padded, padded_frames = front_end(garbage, torch.tensor([samples]))
    assert frames.item() == padded_frames.item() == frame_count(torch.tensor(samples)).item()
    torch.testing.assert_close(padded[:, :, : frames.item()], alone, atol=2e-4, rtol=0)
    assert not padded[:, :, frames.item() :].any()


def test_filter_centres_rise_within_the_band() -> None:
    centres = LogMel(80).centres_hz()
    assert len(centres) == 80
    assert centres == sorted(centres)
    assert 20 < centres[0] < 60
    assert 7000 < centres[-1] < 8000
    # A tone at a filter's centre is loudest in that filter.
    for bin_ in (30, 50, 70):
        tone = 0.5 * torch.sin(2 * torch.pi * centres[bin_] / 16000 * torch.arange(16000))
        assert LogMel(80).mel_power(tone[None]).mean(dim=2).argmax().item() == bin_
