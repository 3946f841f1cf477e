"""Recordings of a split as queries: cut to several lengths, clean and under interference, embedded and measured.

Utterances of one speaker are joined until they last `LONGEST_S`. Each recording is cut to every length of `SECONDS`
that it has, and tested under each kind of interference that the split can supply, at the lengths and at the ratios of
`SNRS_DB` in turn; on request also in the band of a telephone. The measures are those that a server takes of a request.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from speakerlens.measures.sound import measure_sound
from speakerlens.training.data.audio import SAMPLE_RATE, read_sound
from speakerlens.training.data.interference import InterferenceSource
from speakerlens.training.data.manifest import Clip, Corpus, Split
from speakerlens.training.data.perturbation import limit_band
from speakerlens.training.evaluation.conditions import (
    CLEAN,
    Condition,
    draw_layer,
    mix_layers,
    parts,
    supplied_grid,
)
from speakerlens.training.evaluation.workers import batch_size
from speakerlens.training.model.network import SpeakerNetwork

SECONDS = (1.0, 2.0, 4.0)
LONGEST_S = max(SECONDS)
SNRS_DB = (20.0, 10.0, 0.0, 15.0, 5.0, -5.0)
TELEPHONE = Condition("telephone", None)
"""Speech without interference, in the band of a telephone line."""


@dataclass(frozen=True)
class Recording:
    """Utterances of one speaker, joined in this order."""

    speaker: str
    clips: tuple[Clip, ...]


@dataclass(frozen=True, eq=False)
class Queries:
    """Embedded and measured pieces of recordings, n of them.

    Attributes:
        directions: embeddings of length one, float64 [n, size].
        speakers: names, [n]; recordings: the number of each one's recording, int64 [n].
        seconds: length that it was cut to, float64 [n].
        kinds: "clean", "telephone" or the kind of interference, [n]; snr_db: the mixture's ratio, NaN without one,
            float64 [n].
        speech_s: measured net speech, float64 [n]; estimated_db: measured SNR, NaN in silence; bandwidth_hz: measured.
    """

    directions: NDArray[np.float64]
    speakers: NDArray[np.str_]
    recordings: NDArray[np.int64]
    seconds: NDArray[np.float64]
    kinds: NDArray[np.str_]
    snr_db: NDArray[np.float64]
    speech_s: NDArray[np.float64]
    estimated_db: NDArray[np.float64]
    bandwidth_hz: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of queries."""
        return len(self.speakers)

    def select(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Queries":
        """Return some of the queries."""
        return Queries(**{name: values[chosen] for name, values in vars(self).items()})


def join_clips(clips: Iterable[Clip], most: int) -> list[Recording]:
    """Return recordings of up to `LONGEST_S`, at most `most` of each speaker, in the order of the clips.

    They are shorter where a speaker has less than two of these.
    """
    by_speaker: dict[str, list[Clip]] = {}
    for clip in clips:
        by_speaker.setdefault(str(clip.speaker), []).extend(_split(clip))
    recordings = []
    for speaker, own in by_speaker.items():
        # Two recordings at least, where there are two clips: one is compared with the other.
        enough = min(LONGEST_S, sum(clip.duration for clip in own) / 2)
        joined: list[list[Clip]] = [[]]
        for clip in own:
            if sum(each.duration for each in joined[-1]) >= enough:
                joined.append([])
            joined[-1].append(clip)
        if len(joined) > 2 and sum(each.duration for each in joined[-1]) < enough:
            joined.pop()
        step = max(1.0, len(joined) / most)
        recordings += [Recording(speaker, tuple(joined[int(at * step)])) for at in range(min(most, len(joined)))]
    return recordings


def _split(clip: Clip) -> list[Clip]:
    """Return a clip in pieces of `LONGEST_S`, without a shorter rest."""
    if clip.duration <= LONGEST_S:
        return [clip]
    starts = np.arange(int(clip.duration / LONGEST_S)) * LONGEST_S
    return [replace(clip, start=clip.start + float(start), duration=LONGEST_S) for start in starts]


def embed_recordings(
    network: SpeakerNetwork,
    corpus: Corpus,
    split: Split,
    recordings: Sequence[Recording],
    conditions: Callable[[int], Sequence[Condition]] | None = None,
    telephone: bool = False,
) -> Queries:
    """Return the queries of some recordings.

    Args:
        network: in evaluation mode, on any device.
        corpus: where the interference comes from.
        split: of the interference.
        recordings: of any split.
        conditions: those of the recording with that number, each at every length; None for those of the module.
        telephone: whether each recording is tested in the band of a telephone, too.

    Raises:
        UserError: a file cannot be read.
    """
    made = _pieces(corpus, split, recordings, conditions or turns(corpus, split), conditions is None, telephone)
    device = next(network.parameters()).device
    rows: list[tuple[int, float, Condition, float, float, float]] = []
    directions: list[Tensor] = []
    waiting: dict[float, list[tuple[int, Condition, Tensor]]] = {length: [] for length in SECONDS}

    def embed(length: float) -> None:
        batch, waiting[length] = waiting[length], []
        audio = pad_sequence([samples for *_, samples in batch], batch_first=True).to(device)
        lengths = torch.tensor([len(samples) for *_, samples in batch], device=device)
        directions.append(F.normalize(network(audio, lengths)[1].cpu().double()))
        for number, condition, samples in batch:
            sound = measure_sound(samples.numpy())
            rows.append(
                (number, length, condition, sound.speech_share * sound.seconds, sound.snr_db, sound.bandwidth_hz)
            )

    with torch.inference_mode():
        for number, length, condition, samples in made:
            waiting[length].append((number, condition, samples))
            if len(waiting[length]) == batch_size(device):
                embed(length)
        for length in SECONDS:
            if waiting[length]:
                embed(length)
    numbers, cut, tested, speech_s, estimated_db, bandwidth_hz = zip(*rows, strict=True)
    return Queries(
        directions=torch.cat(directions).numpy(),
        speakers=np.array([recordings[number].speaker for number in numbers]),
        recordings=np.array(numbers),
        seconds=np.array(cut),
        kinds=np.array([each.kind for each in tested]),
        snr_db=np.array([np.nan if each.snr_db is None else each.snr_db for each in tested]),
        speech_s=np.array(speech_s),
        estimated_db=np.array(estimated_db),
        bandwidth_hz=np.array(bandwidth_hz),
    )


def turns(corpus: Corpus, split: Split) -> Callable[[int], Sequence[Condition]]:
    """Return the conditions of a recording by its number: clean, and each kind at a ratio in turn."""
    supplied, _ = supplied_grid(corpus, split)
    kinds = list(dict.fromkeys(condition.kind for condition in supplied if condition != CLEAN))

    def of(number: int) -> Sequence[Condition]:
        ratios = (SNRS_DB[(number + place) % len(SNRS_DB)] for place in range(len(kinds)))
        return (CLEAN, *(Condition(kind, ratio) for kind, ratio in zip(kinds, ratios, strict=True)))

    return of


def _pieces(
    corpus: Corpus,
    split: Split,
    recordings: Sequence[Recording],
    conditions: Callable[[int], Sequence[Condition]],
    in_turn: bool,
    telephone: bool,
) -> Iterator[tuple[int, float, Condition, Tensor]]:
    """Yield number, length, condition and samples [N] of each query; corrupted ones of one length if `in_turn`."""
    source = InterferenceSource(corpus, split)
    for number, recording in enumerate(recordings):
        speech = torch.from_numpy(
            np.concatenate([read_sound(each.path, each.start, each.duration) for each in recording.clips])
        )[: round(LONGEST_S * SAMPLE_RATE)]
        layers: dict[str, Tensor] = {}
        tested = (*conditions(number), TELEPHONE) if telephone else conditions(number)
        for place, condition in enumerate(tested):
            for part in () if condition == TELEPHONE else parts(condition.kind):
                if part not in layers:
                    layers[part] = draw_layer(corpus, source, part, recording.clips[0], speech)
            # A recording that is shorter than a length takes part as it is, once.
            whole = len(speech) / SAMPLE_RATE
            lengths = SECONDS[: 1 + next((at for at, each in enumerate(SECONDS) if each >= whole), len(SECONDS))]
            if in_turn and condition != CLEAN:
                lengths = (lengths[(number + place) % len(lengths)],)
            for length in lengths:
                stop = round(length * SAMPLE_RATE)
                if condition == TELEPHONE:
                    yield number, length, condition, torch.from_numpy(limit_band(speech[:stop].numpy(), "telephone"))
                    continue
                own = [layers[part][:stop] for part in parts(condition.kind)]
                yield number, length, condition, mix_layers(speech[:stop], own, condition.snr_db).audio
