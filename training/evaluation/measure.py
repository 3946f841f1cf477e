"""What each variant does with the mixtures: the rank it gives the true speaker, and where its saliency lies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from speakerlens.training.data.audio import SAMPLE_RATE
from speakerlens.training.data.manifest import Clip, Corpus
from speakerlens.training.data.mixing import KINDS
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.conditions import Condition, MixtureBatch, batches, mixtures
from speakerlens.training.evaluation.workers import Advance, Networks, batch_size, common, for_each
from speakerlens.training.model.front_end import FRAME_LENGTH, FRAME_SHIFT, LogMel
from speakerlens.training.model.network import STAGES, SpeakerNetwork
from speakerlens.training.model.saliency import FUSED_STAGES, Saliency, deletion_index, dominated_bins, fused, layercam

FUSED = "fused"
MAPS = (*STAGES, FUSED)
DELETION_SNRS_DB = (5.0, 0.0)
EXAMPLE_SNR_DB = 0.0
"""The saliency figure shows the first of these kinds that the corpus can supply: noise looks least like speech, so
that one can see which is which."""


def accuracy_steps(networks: Networks, corpus: Corpus, conditions: Sequence[Condition]) -> int:
    """Count the batches of `true_ranks`."""
    return len(batches(corpus.utterances("test"), batch_size(common(networks)[0]))) * len(conditions)


def true_ranks(
    networks: Networks, corpus: Corpus, speakers: Sequence[str], conditions: Sequence[Condition], advance: Advance
) -> NDArray[np.int64]:
    """Let every network hear every test utterance in every condition; each mixture is made once.

    Args:
        networks: by name, all on one device, in evaluation mode, and with the same front end (which runs once for all).
        corpus: its test split is heard.
        speakers: the labels, in order.
        conditions: those to hear.
        advance: called after each of `accuracy_steps` batches.

    Returns:
        The rank of the true speaker among all, 1 is best, [network, condition, utterance]. A tie counts against it.

    Raises:
        UserError: a network's scores are NaN or infinite.
    """
    ranks = np.zeros((len(networks), len(conditions), len(corpus.utterances("test"))), dtype=np.int64)
    device, front_end = common(networks)
    column = {condition: index for index, condition in enumerate(conditions)}

    @torch.inference_mode()
    def rank(made: MixtureBatch) -> None:
        batch = made.to(device)
        features, frames = front_end(batch.mixture.audio, batch.lengths)
        for row, (name, network) in enumerate(networks.items()):
            logits = network.logits(network.encoder(features, frames, masked=True).embedding)
            if not torch.isfinite(logits).all():
                raise UserError(f"{name}: its scores are NaN or infinite under {batch.condition}; train it again")
            ranks[row, column[batch.condition], made.indices.numpy()] = ranks_of(logits, batch.labels)

    for_each(mixtures(corpus, "test", speakers, conditions, batch_size(device)), rank, device, advance)
    return ranks


def ranks_of(logits: torch.Tensor, labels: torch.Tensor) -> NDArray[np.int64]:
    """Rank of each row's true class among the scores [batch, classes], 1 is best; a tie counts against it, [batch]."""
    ranks: NDArray[np.int64] = (logits >= logits.gather(1, labels[:, None])).sum(dim=1).cpu().numpy()
    return ranks


def shown_map(saliency: Saliency, name: str) -> torch.Tensor:
    """Give the map of a stage ("s1" to "s4") or "fused", normalised and resized to [B, mel, frames]."""
    return fused(saliency, FUSED_STAGES if name == FUSED else (STAGES.index(name),))


@dataclass(frozen=True)
class Answer:
    """What one variant made of the example.

    Attributes:
        map: fused LayerCAM map of the true speaker, in [0, 1], [mel, frames].
        predicted: the speaker it named; probability: softmax of that speaker's score.
        correct: whether that is the true one.
        deletion_index: of `map`; NaN where it has none.
    """

    map: NDArray[np.float32]
    predicted: str
    probability: float
    correct: bool
    deletion_index: float


@dataclass(frozen=True)
class Example:
    """One corrupted utterance, and what every variant listened to in it.

    Attributes:
        utterance: its file's name; speaker: who talks; condition: what it is heard under.
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
    answers: Mapping[str, Answer]


def example(networks: Networks, corpus: Corpus, speakers: Sequence[str], kinds: Sequence[str]) -> Example:
    """Explain the first test utterance of the manifest at 0 dB, under the first of `KINDS` among `kinds`."""
    kind = next(kind for kind in KINDS if kind in kinds)
    return explain(networks, corpus, speakers, corpus.utterances("test")[0], Condition(kind, EXAMPLE_SNR_DB))


def explain(networks: Networks, corpus: Corpus, speakers: Sequence[str], clip: Clip, condition: Condition) -> Example:
    """Show what each network listened to in one test utterance under one condition."""
    device, front_end = common(networks)
    batch = next(mixtures(corpus, "test", speakers, [condition], 1, [clip])).to(device)
    dominated = dominated_bins(front_end, batch.mixture.speech, batch.mixture.interference)
    with torch.inference_mode():
        speech_db, mixture_db = (_decibels(front_end, audio) for audio in (batch.mixture.speech, batch.mixture.audio))
    answers = {name: _answer(network, batch, dominated, speakers) for name, network in networks.items()}
    frames = np.arange(mixture_db.shape[1])
    return Example(
        clip.path.name,
        str(clip.speaker),
        condition,
        batch.mixture.speech[0].cpu().numpy(),
        batch.mixture.audio[0].cpu().numpy(),
        speech_db,
        mixture_db,
        dominated[0].cpu().numpy(),
        np.array(front_end.centres_hz()),
        (frames * FRAME_SHIFT + FRAME_LENGTH / 2) / SAMPLE_RATE,
        answers,
    )


def _answer(network: SpeakerNetwork, batch: MixtureBatch, dominated: torch.Tensor, speakers: Sequence[str]) -> Answer:
    saliency = layercam(network, batch.mixture.audio, batch.lengths, batch.labels)
    shown = shown_map(saliency, FUSED)
    probabilities = saliency.logits[0].softmax(dim=0)
    best = int(probabilities.argmax())
    return Answer(
        shown[0].cpu().numpy(),
        speakers[best],
        float(probabilities[best]),
        best == int(batch.labels[0]),
        float(deletion_index(shown, dominated, saliency.frames)[0]),
    )


def _decibels(front_end: LogMel, audio: torch.Tensor) -> NDArray[np.float32]:
    power = front_end.mel_power(audio)[0].clamp_min(torch.finfo(torch.float32).tiny)
    decibels: NDArray[np.float32] = (10 * power.log10()).cpu().numpy()
    return decibels
