"""What is stored of an enrolled speaker, as values, and as rows of a table."""

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.evidence import Evidence

log = logging.getLogger(__name__)

# The wire contract's largest number (int32).
MAX_NUMBER: Final = 2**31 - 1
# Of the length of a stored embedding, which is one.
LENGTH_TOLERANCE: Final = 1e-3
COLUMNS: Final = (
    "speaker, variant, version, bundle, utterances, enrolled, embedding, "
    "speech_s, snr_db, bandwidth_hz, clipping, level_db, recording"
)


@dataclass(frozen=True, eq=False)
class Exemplar:
    """A speaker's reference for one bundle, from one utterance.

    Attributes:
        speaker: canonical name.
        variant: of the bundle.
        version: of the bundle.
        bundle: SHA-256 of its bundle.json.
        utterances: 1; more where the embedding is a mean, as in files of older servers.
        enrolled: time in UTC, ISO 8601.
        embedding: float32 [size], of length one; [0] where it is damaged.
        quality: of the utterance; None where it is unknown.
        recording: id of the kept recording; None where none is kept.
    """

    speaker: str
    variant: str
    version: int
    bundle: str
    utterances: int
    enrolled: str
    embedding: NDArray[np.float32]
    quality: Evidence | None = None
    recording: str | None = None


@dataclass(frozen=True)
class KeptRecording:
    """The audio of an enrolled utterance.

    Attributes:
        id: unique, random.
        speaker: canonical name.
        enrolled: time in UTC, ISO 8601.
        audio: a FLAC file, mono at 16 kHz.
    """

    id: str
    speaker: str
    enrolled: str
    audio: bytes


@dataclass(frozen=True)
class Enrolment:
    """The exemplars of a speaker for one bundle, summed up.

    Attributes:
        speaker: canonical name.
        variant: of the bundle.
        version: of the bundle.
        bundle: SHA-256 of its bundle.json.
        exemplars: how many there are.
        utterances: that they rest on.
        enrolled: time of the newest, in UTC, ISO 8601.
        size: of the embeddings; 0 where one is damaged.
        recorded: whether a recording of one is kept.
    """

    speaker: str
    variant: str
    version: int
    bundle: str
    exemplars: int
    utterances: int
    enrolled: str
    size: int
    recorded: bool


def enrolments_of(exemplars: Iterable[Exemplar]) -> list[Enrolment]:
    """Return the sums of exemplars that are ordered by speaker, variant, version and bundle."""
    found: list[Enrolment] = []
    for each in exemplars:
        key, size = (each.speaker, each.variant, each.version, each.bundle), len(each.embedding)
        last = found[-1] if found else None
        if last is None or (last.speaker, last.variant, last.version, last.bundle) != key:
            found.append(Enrolment(*key, 1, each.utterances, each.enrolled, size, each.recording is not None))
        else:
            found[-1] = Enrolment(
                *key,
                last.exemplars + 1,
                last.utterances + each.utterances,
                max(last.enrolled, each.enrolled),
                size if size == last.size else 0,
                last.recorded or each.recording is not None,
            )
    return found


def mean_embedding(exemplars: Sequence[Exemplar]) -> NDArray[np.float32]:
    """Return the direction, float32 [size], of the mean of embeddings, each weighted by its utterances."""
    total = sum(each.utterances * each.embedding.astype(np.float64) for each in exemplars)
    return unit(np.asarray(total))


def unit(embedding: NDArray[Any]) -> NDArray[np.float32]:
    """Return an embedding [size] at length one as it is stored, float32; zero stays zero."""
    return direction(embedding).astype(np.float32)


def direction(embedding: NDArray[Any]) -> NDArray[np.float64]:
    """Return an embedding [size] at length one, float64; zero stays zero."""
    values = embedding.astype(np.float64)
    result: NDArray[np.float64] = values / max(float(np.linalg.norm(values)), 1e-12)
    return result


def row_of(exemplar: Exemplar) -> tuple[Any, ...]:
    """Return the values of COLUMNS."""
    quality = (None,) * 5 if exemplar.quality is None else astuple(exemplar.quality)
    return (
        exemplar.speaker,
        exemplar.variant,
        exemplar.version,
        exemplar.bundle,
        exemplar.utterances,
        exemplar.enrolled,
        exemplar.embedding.astype("<f4").tobytes(),
        *quality,
        exemplar.recording,
    )


def exemplar_of(row: Sequence[Any]) -> Exemplar | None:
    """Return the value of a row of COLUMNS; None where its columns are not of their kinds, as in a file of others."""
    speaker, variant, version, bundle, utterances, enrolled, embedding, *quality, recording = row
    texts = all(isinstance(each, str) for each in (speaker, variant, bundle, enrolled))
    numbers = all(isinstance(each, int) and 0 < each <= MAX_NUMBER for each in (version, utterances))
    if not texts or not numbers or not isinstance(recording, str | None):
        log.error("the speakers' store has a row that no server wrote, it is left out")
        return None
    return Exemplar(
        speaker,
        variant,
        version,
        bundle,
        utterances,
        enrolled,
        embedding_of(embedding),
        _quality(quality),
        recording,
    )


def embedding_of(content: object) -> NDArray[np.float32]:
    """Return a stored embedding, little-endian float32; an empty one where it is damaged."""
    if isinstance(content, bytes) and len(content) % 4 == 0:
        values = np.frombuffer(content, "<f4")
        with np.errstate(all="ignore"):
            if abs(float(np.linalg.norm(values)) - 1) < LENGTH_TOLERANCE:  # not so for NaN and infinity
                return values
    return np.zeros(0, np.float32)


def _quality(values: Sequence[Any]) -> Evidence | None:
    numbers = [float(each) if isinstance(each, int | float) and math.isfinite(each) else None for each in values]
    speech, snr, bandwidth, clipping, level = numbers
    if speech is None or bandwidth is None or clipping is None:
        return None
    return Evidence(speech, snr, bandwidth, clipping, level)
