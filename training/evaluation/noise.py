"""Network outputs for recordings without a speaker: noise and music of a split, and made noises.

A network names a speaker for anything. The made noises are those that servers meet where nothing is said: hiss, rumble,
hum, tones and clicks; they stand in where a corpus has none.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speakerlens.training.data.audio import SAMPLE_RATE, read_audio
from speakerlens.training.data.manifest import SHORTEST_UTTERANCE, Corpus, Kind, Split, spread
from speakerlens.training.model.network import SpeakerNetwork

_SECONDS = 3.0
_MOST_CLIPS = 100  # of noise and of music each
_LEVEL = 0.05
_KINDS: tuple[Kind, ...] = ("noise", "music")


def predict_noise(network: SpeakerNetwork, corpus: Corpus, split: Split) -> tuple[Tensor, Tensor]:
    """Return logits [n, speakers] and embeddings [n, size] for pieces of up to 3 s without a speaker."""
    device = next(network.parameters()).device
    logits, embeddings = [], []
    with torch.inference_mode():
        for samples in (*_recorded(corpus, split), *made_noises()):
            audio = torch.from_numpy(samples)[None].to(device)
            outputs = network(audio, torch.tensor([audio.shape[1]], device=device))
            logits.append(outputs[0].cpu())
            embeddings.append(outputs[1].cpu())
    return torch.cat(logits), torch.cat(embeddings)


def made_noises() -> list[NDArray[np.float32]]:
    """Return noises of 3 s, the same every time, each float32 [samples]."""
    rng = np.random.default_rng(0)
    count = round(_SECONDS * SAMPLE_RATE)
    time_s = np.arange(count) / SAMPLE_RATE
    frequency = np.arange(count // 2 + 1) + 1.0
    noises = [np.fft.irfft(np.fft.rfft(rng.normal(size=count)) / frequency**slope, count) for slope in (0, 0.5, 1, 1.5)]
    noises += [
        np.sum([np.sin(2 * np.pi * hertz * order * time_s) / order for order in range(1, 12)], axis=0)
        for hertz in (50.0, 60.0, 100.0, 120.0)
    ]
    noises += [np.sin(2 * np.pi * hertz * time_s) for hertz in (200.0, 440.0, 1000.0)]
    noises.append(np.sin(2 * np.pi * (200 + 300 * time_s) * time_s))
    noises += [np.exp(-np.mod(time_s, period) / 0.005) * rng.normal(size=count) for period in (0.5, 0.1)]
    return [(_LEVEL * noise / np.sqrt(np.mean(noise**2))).astype(np.float32) for noise in noises]


def _recorded(corpus: Corpus, split: Split) -> list[NDArray[np.float32]]:
    pieces = []
    for kind in _KINDS:
        clips = [clip for clip in corpus.interference(kind, split) if clip.duration >= SHORTEST_UTTERANCE]
        for clip in spread(clips, _MOST_CLIPS):
            for offset in np.arange(0.0, max(clip.duration - _SECONDS, 0.0) + 1e-6, _SECONDS)[:2]:
                samples = read_audio(clip.path, clip.start + float(offset), min(clip.duration - offset, _SECONDS))
                if np.any(samples):
                    pieces.append(samples)
    return pieces
