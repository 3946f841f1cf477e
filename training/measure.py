"""What each variant does with the mixtures: the rank it gives the true speaker, and where its saliency lies."""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from training.audio import SAMPLE_RATE
from training.conditions import Condition, MixtureBatch, batches, mixtures
from training.errors import UserError
from training.frontend import FRAME_LENGTH, FRAME_SHIFT, LogMel
from training.manifest import Clip, Corpus
from training.network import STAGES, SpeakerNetwork
from training.results import Deletion, average_deletion
from training.saliency import FUSED_STAGES, Saliency, deletion_index, dominated_bins, fused, layercam

FUSED = "fused"
MAPS = (*STAGES, FUSED)
DELETION_SNRS_DB = (5.0, 0.0)
EXAMPLE_SNR_DB = 0.0
EXAMPLE_KINDS = ("noise", "music", "babble", "speaker", "reverb")
"""The saliency figure shows the first of these kinds that the corpus can supply: noise looks least like speech, so
that one can see which is which."""

_BATCH_CPU = 4  # utterances; more do not fit a core's cache
_BATCH_CUDA = 64
_PROBES = 60  # speakers whose maps are measured, at most

Networks = Mapping[str, SpeakerNetwork]
Advance = Callable[[], None]


def accuracy_steps(networks: Networks, corpus: Corpus, conditions: Sequence[Condition]) -> int:
    """Count the batches of `true_ranks`."""
    return len(batches(corpus.utterances("test"), _batch_size(_common(networks)[0]))) * len(conditions)


def deletion_steps(networks: Networks, corpus: Corpus, conditions: Sequence[Condition]) -> int:
    """Count the batches of `deletion_indices`."""
    return len(batches(probe_utterances(corpus), _batch_size(_common(networks)[0]))) * len(conditions)


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
    device, front_end = _common(networks)
    column = {condition: index for index, condition in enumerate(conditions)}

    @torch.inference_mode()
    def rank(made: MixtureBatch) -> None:
        batch = made.to(device)
        features, frames = front_end(batch.mixture.audio, batch.lengths)
        for row, (name, network) in enumerate(networks.items()):
            logits = network.logits(network.encoder(features, frames, masked=True).embedding)
            if not torch.isfinite(logits).all():
                raise UserError(f"{name}: its scores are NaN or infinite under {batch.condition}; train it again")
            own = logits.gather(1, batch.labels[:, None])
            ranks[row, column[batch.condition], made.indices.numpy()] = (logits >= own).sum(dim=1).cpu().numpy()

    _for_each(mixtures(corpus, "test", speakers, conditions, _batch_size(device)), rank, device, advance)
    return ranks


def probe_utterances(corpus: Corpus) -> tuple[Clip, ...]:
    """Choose the utterances whose maps are measured: each speaker's first in the manifest, of the first 60 speakers."""
    first: dict[str | None, Clip] = {}
    for clip in corpus.utterances("test"):
        first.setdefault(clip.speaker, clip)
    return tuple(first.values())[:_PROBES]


def deletion_indices(
    networks: Networks, corpus: Corpus, speakers: Sequence[str], conditions: Sequence[Condition], advance: Advance
) -> tuple[Deletion, ...]:
    """Measure the deletion index of each network's maps of the true speaker, on `probe_utterances`.

    Args:
        networks: as for `true_ranks`.
        corpus: its test split is heard.
        speakers: the labels, in order.
        conditions: with interference.
        advance: called after each of `deletion_steps` batches.
    """
    probes = probe_utterances(corpus)
    keys = [(name, condition, map_name) for name in networks for condition in conditions for map_name in MAPS]
    indices = {key: np.full(len(probes), np.nan) for key in keys}
    device, front_end = _common(networks)

    def measure(made: MixtureBatch) -> None:
        batch = made.to(device)
        dominated = dominated_bins(front_end, batch.mixture.speech, batch.mixture.interference)
        for name, network in networks.items():
            saliency = layercam(network, batch.mixture.audio, batch.lengths, batch.labels)
            for map_name in MAPS:
                index = deletion_index(shown_map(saliency, map_name), dominated, saliency.frames)
                indices[name, batch.condition, map_name][made.indices.numpy()] = index.cpu().numpy()

    _for_each(mixtures(corpus, "test", speakers, conditions, _batch_size(device), probes), measure, device, advance)
    return tuple(average_deletion(*key, indices[key]) for key in keys)


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
    """Explain the first test utterance of the manifest at 0 dB, under the first of `EXAMPLE_KINDS` among `kinds`."""
    kind = next(kind for kind in EXAMPLE_KINDS if kind in kinds)
    clip = corpus.utterances("test")[0]
    condition = Condition(kind, EXAMPLE_SNR_DB)
    device, front_end = _common(networks)
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


def _common(networks: Networks) -> tuple[torch.device, LogMel]:
    """Give the device and the front end that all networks share."""
    network = next(iter(networks.values()))
    return next(network.parameters()).device, network.front_end


def _batch_size(device: torch.device) -> int:
    return _BATCH_CUDA if device.type == "cuda" else _BATCH_CPU


def _for_each(
    made: Iterable[MixtureBatch], work: Callable[[MixtureBatch], None], device: torch.device, advance: Advance
) -> None:
    """Do the work on every batch while the next ones are made.

    On a CPU each core works at a batch of its own: the small networks here lose half of their time if all cores share
    one batch, and far more on a busy machine, because they wait for each other at every operator.
    """
    threads = torch.get_num_threads()
    workers = 1 if device.type == "cuda" else threads
    if workers > 1:
        torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            running: deque[Future[None]] = deque()
            for batch in made:
                running.append(pool.submit(work, batch))
                while len(running) > 2 * workers:
                    running.popleft().result()
                    advance()
            for future in running:
                future.result()
                advance()
    finally:
        torch.set_num_threads(threads)
