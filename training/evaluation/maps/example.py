"""One corrupted utterance with the saliency map of every variant, for the figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speakerlens.measures.scorer import Scorer
from speakerlens.training.data.audio import SAMPLE_RATE
from speakerlens.training.data.manifest import Clip, Corpus
from speakerlens.training.data.mixing import KINDS, Mixture
from speakerlens.training.evaluation.conditions import Condition, MixtureBatch, mixtures
from speakerlens.training.evaluation.workers import Networks, device_and_front_end
from speakerlens.training.model.front_end import FRAME_LENGTH, FRAME_SHIFT, LogMel
from speakerlens.training.model.network import SpeakerNetwork
from speakerlens.training.model.saliency import deletion_index, dominated_bins, fused, layercam

EXAMPLE_SNR_DB = 0.0
EXAMPLE_SECONDS = 3.0
"""The server's default window: up to this length its logits and maps are those of the network for the whole audio."""


@dataclass(frozen=True)
class Calibrated:
    """The part of a calibration that answers need, as the bundle has it.

    Attributes:
        temperature: probabilities are softmax(logits / temperature).
        threshold: on the score of the best speaker; below it the speaker is unknown.
        utterances: of the dev split that both rest on; 0 where there are none, and both have no effect.
        scorer: makes the score, with the logit; None: the score is the logit over the head's scale.
    """

    temperature: float = 1.0
    threshold: float = -math.inf
    utterances: int = 0
    scorer: Scorer | None = None


@dataclass(frozen=True)
class Why:
    """Explanation of one speaker's score.

    Attributes:
        speaker: whose score; probability: calibrated, of that speaker.
        map: fused LayerCAM map of the score, in [0, 1], float32 [mel, frames].
        deletion_index: of `map`; NaN where it is undefined.
        clean_index: the same bins, but the map of the same speaker's score without the interference.
    """

    speaker: str
    probability: float
    map: NDArray[np.float32]
    deletion_index: float
    clean_index: float


@dataclass(frozen=True)
class ExampleAnswer:
    """Answer of one variant to the example.

    Attributes:
        named: why it names the speaker that it names, as the server explains it.
        true: why the true speaker; equal to `named` where that is the true one.
        known: whether the best score reaches the threshold.
    """

    named: Why
    true: Why
    known: bool

    @property
    def correct(self) -> bool:
        """Return whether the named speaker is the true one."""
        return self.named.speaker == self.true.speaker


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


def first_example(
    networks: Networks,
    calibrated: Mapping[str, Calibrated],
    corpus: Corpus,
    speakers: Sequence[str],
    kinds: Sequence[str],
) -> Example:
    """Explain the first test utterance of the manifest at 0 dB, under the first of `KINDS` that is among `kinds`.

    `KINDS` begins with noise, which looks least like speech. The utterance is cut to `EXAMPLE_SECONDS`.
    """
    kind = next(kind for kind in KINDS if kind in kinds)
    first = corpus.utterances("test")[0]
    clip = replace(first, duration=min(first.duration, EXAMPLE_SECONDS))
    return explain(networks, calibrated, corpus, speakers, clip, Condition(kind, EXAMPLE_SNR_DB))


def explain(
    networks: Networks,
    calibrated: Mapping[str, Calibrated],
    corpus: Corpus,
    speakers: Sequence[str],
    clip: Clip,
    condition: Condition,
) -> Example:
    """Explain one test utterance under one condition with each network."""
    device, front_end = device_and_front_end(networks)
    made = next(mixtures(corpus, "test", speakers, [condition], 1, [clip]))
    # The files that are written beside the report hold no more than full scale.
    peak = max(1.0, float(made.mixture.speech.abs().max()), float(made.mixture.audio.abs().max()))
    batch = replace(made, mixture=Mixture(*(part / peak for part in made.mixture))).to(device)
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
        answers={
            name: _answer(network, calibrated[name], batch, dominated, speakers) for name, network in networks.items()
        },
    )


def _answer(
    network: SpeakerNetwork, calibrated: Calibrated, batch: MixtureBatch, dominated: Tensor, speakers: Sequence[str]
) -> ExampleAnswer:
    def why(target: Tensor) -> Why:
        saliency = layercam(network, batch.mixture.audio, batch.lengths, target)
        clean = layercam(network, batch.mixture.speech, batch.lengths, target)
        shown, label = fused(saliency), int(target[0])
        probabilities = (saliency.logits[0].double() / calibrated.temperature).softmax(dim=0)
        return Why(
            speakers[label],
            float(probabilities[label]),
            shown[0].cpu().numpy(),
            *(float(deletion_index(of, dominated, saliency.frames)[0]) for of in (shown, fused(clean))),
        )

    with torch.inference_mode():
        logits, embedding = (each.cpu() for each in network(batch.mixture.audio, batch.lengths)[:2])
    best = logits.argmax(dim=1).to(batch.labels.device)
    scorer = calibrated.scorer
    if scorer is None:
        scores = logits.double() / network.head.scale
    else:
        scores = logits.double() + torch.from_numpy(scorer.scores(embedding.numpy()))
    known = float(scores[0, int(best[0])]) >= calibrated.threshold
    named = why(best)
    return ExampleAnswer(named, named if best == batch.labels else why(batch.labels), known)


def _decibels(front_end: LogMel, audio: Tensor) -> NDArray[np.float32]:
    """Return the mel-filtered power of audio [1, samples] in decibels, float32 [mel, frames]."""
    power = front_end.mel_power(audio)[0].clamp_min(torch.finfo(torch.float32).tiny)
    decibels: NDArray[np.float32] = (10 * power.log10()).cpu().numpy()
    return decibels
