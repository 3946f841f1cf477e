"""One corrupted utterance with the saliency map of every variant, for the figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speakerlens.training.data.audio import SAMPLE_RATE
from speakerlens.training.data.manifest import Clip, Corpus
from speakerlens.training.data.mixing import KINDS
from speakerlens.training.evaluation.conditions import Condition, MixtureBatch, mixtures
from speakerlens.training.evaluation.workers import Networks, device_and_front_end
from speakerlens.training.model.front_end import FRAME_LENGTH, FRAME_SHIFT, LogMel
from speakerlens.training.model.network import SpeakerNetwork
from speakerlens.training.model.saliency import deletion_index, dominated_bins, fused, layercam

EXAMPLE_SNR_DB = 0.0


@dataclass(frozen=True)
class ExampleAnswer:
    """Answer of one variant to the example.

    Attributes:
        map: fused LayerCAM map of the true speaker, in [0, 1], float32 [mel, frames].
        predicted: the predicted speaker; probability: softmax of that speaker's logit.
        correct: whether that is the true one.
        deletion_index: of `map`; NaN where it is undefined.
    """

    map: NDArray[np.float32]
    predicted: str
    probability: float
    correct: bool
    deletion_index: float


@dataclass(frozen=True)
class Example:
    """One corrupted utterance and the answers of all variants.

    Attributes:
        utterance: its file's name; speaker: the true one; condition: the interference.
        speech: the target's part of the mixture, 16 kHz [samples]; mixture: the whole of it.
        speech_db: mel-filtered power of the speech alone, in decibels, [mel, frames]; mixture_db: of the mixture.
        dominated: where the interference is louder than the speech, bool [mel, frames].
        centres_hz: centre frequency of each mel bin; times: centre of each frame, in seconds.
        answers: by variant.
    """

    utterance: str
    speaker: str
    condition: Condition
    speech: NDArray[np.float32]
    mixture: NDArray[np.float32]
    speech_db: NDArray[np.float32]
    mixture_db: NDArray[np.float32]
    dominated: NDArray[np.bool_]
    centres_hz: NDArray[np.float64]
    times: NDArray[np.float64]
    answers: Mapping[str, ExampleAnswer]


def first_example(networks: Networks, corpus: Corpus, speakers: Sequence[str], kinds: Sequence[str]) -> Example:
    """Explain the first test utterance of the manifest at 0 dB, under the first of `KINDS` that is among `kinds`.

    `KINDS` begins with noise, which looks least like speech.
    """
    kind = next(kind for kind in KINDS if kind in kinds)
    return explain(networks, corpus, speakers, corpus.utterances("test")[0], Condition(kind, EXAMPLE_SNR_DB))


def explain(networks: Networks, corpus: Corpus, speakers: Sequence[str], clip: Clip, condition: Condition) -> Example:
    """Explain one test utterance under one condition with each network."""
    device, front_end = device_and_front_end(networks)
    batch = next(mixtures(corpus, "test", speakers, [condition], 1, [clip])).to(device)
    dominated = dominated_bins(front_end, batch.mixture.speech, batch.mixture.interference)
    with torch.inference_mode():
        speech_db, mixture_db = (_decibels(front_end, audio) for audio in (batch.mixture.speech, batch.mixture.audio))
    frames = np.arange(mixture_db.shape[1])
    return Example(
        utterance=clip.path.name,
        speaker=str(clip.speaker),
        condition=condition,
        speech=batch.mixture.speech[0].cpu().numpy(),
        mixture=batch.mixture.audio[0].cpu().numpy(),
        speech_db=speech_db,
        mixture_db=mixture_db,
        dominated=dominated[0].cpu().numpy(),
        centres_hz=np.array(front_end.centres_hz()),
        times=(frames * FRAME_SHIFT + FRAME_LENGTH / 2) / SAMPLE_RATE,
        answers={name: _answer(network, batch, dominated, speakers) for name, network in networks.items()},
    )


def _answer(network: SpeakerNetwork, batch: MixtureBatch, dominated: Tensor, speakers: Sequence[str]) -> ExampleAnswer:
    saliency = layercam(network, batch.mixture.audio, batch.lengths, batch.labels)
    shown = fused(saliency)
    probabilities = saliency.logits[0].softmax(dim=0)
    best = int(probabilities.argmax())
    return ExampleAnswer(
        shown[0].cpu().numpy(),
        speakers[best],
        float(probabilities[best]),
        best == int(batch.labels[0]),
        float(deletion_index(shown, dominated, saliency.frames)[0]),
    )


def _decibels(front_end: LogMel, audio: Tensor) -> NDArray[np.float32]:
    """Return the mel-filtered power of audio [1, samples] in decibels, float32 [mel, frames]."""
    power = front_end.mel_power(audio)[0].clamp_min(torch.finfo(torch.float32).tiny)
    decibels: NDArray[np.float32] = (10 * power.log10()).cpu().numpy()
    return decibels
