"""The exemplars of one bundle in memory: a matrix, and the speakers that its rows belong to.

A query costs one product of the matrix with its embedding, and the maximum over each speaker's rows. A speaker's score
is that of its best exemplar: a mean of exemplars from different rooms or microphones lies near none of them.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.evidence import Evidence
from speakerlens.serving.gallery.exemplar import Exemplar

Vector = NDArray[np.float32]
Indices = NDArray[np.intp]

# Rows that are copied together while a gallery is read.
BLOCK: Final = 4096
QUALITIES: Final = 5


@dataclass(frozen=True, eq=False)
class Matches:
    """The scores of the speakers that were compared with a query.

    Attributes:
        speakers: indices in `Gallery.names`, ascending, [n].
        cosines: with each one's best exemplar, float32 [n].
        exemplars: of each, [n].
    """

    speakers: Indices
    cosines: Vector
    exemplars: Indices


@dataclass(frozen=True, eq=False)
class Gallery:
    """All exemplars of a bundle; immutable, so that threads share it.

    Attributes:
        names: of the speakers, in the order of their code points.
        embeddings: of length one, float32 [exemplars, size]; the rows of a speaker are adjacent.
        starts: first row of each speaker, and the number of rows, [speakers + 1].
        qualities: fields of `Evidence`, NaN where unknown, float32 [exemplars, 5].
    """

    names: tuple[str, ...]
    embeddings: NDArray[np.float32]
    starts: Indices
    qualities: NDArray[np.float32]

    @classmethod
    def of(cls, exemplars: Iterable[Exemplar], size: int) -> Self:
        """Return the gallery of exemplars that are ordered by speaker; those of another size are damaged and left out.

        Args:
            exemplars: of one bundle.
            size: of its embeddings.
        """
        names: list[str] = []
        starts: list[int] = []
        blocks: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = []
        pending: list[Exemplar] = []
        rows = 0

        def flush() -> None:
            if pending:
                blocks.append((np.stack([each.embedding for each in pending]), _qualities(pending)))
                pending.clear()

        intact = (each for each in exemplars if len(each.embedding) == size)
        for name, group in groupby(intact, key=lambda each: each.speaker):
            names.append(name)
            starts.append(rows)
            for exemplar in group:
                pending.append(exemplar)
                rows += 1
            if len(pending) >= BLOCK:
                flush()
        flush()
        embeddings, qualities = (
            tuple(np.concatenate(each) for each in zip(*blocks, strict=True))
            if blocks
            else (np.zeros((0, size), np.float32), np.zeros((0, QUALITIES), np.float32))
        )
        return cls(tuple(names), embeddings, np.array([*starts, rows], np.intp), qualities)

    def updated(self, changed: Collection[str], exemplars: Iterable[Exemplar]) -> Self:
        """Return a gallery in which the exemplars of the changed speakers, in any order, replace those before."""
        new = self.of(sorted(exemplars, key=lambda each: each.speaker), self.embeddings.shape[1])
        added = {name: index for index, name in enumerate(new.names)}
        # Stretches of speakers, from the one gallery or the other, in the order of their names.
        pieces: list[tuple[Gallery, int, int]] = []
        first = 0
        for name in sorted({*changed, *added}):
            place = bisect_left(self.names, name)
            pieces.append((self, first, place))
            first = place + (self.names[place : place + 1] == (name,))
            if name in added:
                pieces.append((new, added[name], added[name] + 1))
        pieces.append((self, first, len(self)))
        counts = np.concatenate([np.diff(each.starts[start : stop + 1]) for each, start, stop in pieces])
        return type(self)(
            tuple(chain.from_iterable(each.names[start:stop] for each, start, stop in pieces)),
            np.concatenate([each.embeddings[each.starts[start] : each.starts[stop]] for each, start, stop in pieces]),
            np.concatenate(([0], np.cumsum(counts))).astype(np.intp),
            np.concatenate([each.qualities[each.starts[start] : each.starts[stop]] for each, start, stop in pieces]),
        )

    def __len__(self) -> int:
        """Return the number of speakers."""
        return len(self.names)

    def rows(self, speaker: int) -> slice:
        """Return the rows of a speaker, by its index."""
        return slice(int(self.starts[speaker]), int(self.starts[speaker + 1]))

    def find(self, names: Iterable[str]) -> tuple[Indices, list[str]]:
        """Return the indices of speakers, ascending and each once, and the names that are not in the gallery."""
        found, missing = [], []
        for name in sorted(set(names)):
            place = bisect_left(self.names, name)
            if self.names[place : place + 1] == (name,):
                found.append(place)
            else:
                missing.append(name)
        return np.array(found, np.intp), missing

    def compare(self, direction: NDArray[np.floating], speakers: Indices | None = None) -> Matches:
        """Return the scores of all speakers, or of those with these indices, which ascend.

        Args:
            direction: an embedding of length one, [size].
            speakers: indices in `names`; None for all.
        """
        query = direction.astype(np.float32)
        every_speaker, all_counts = self._speakers
        if speakers is None:
            chosen, counts, offsets = every_speaker, all_counts, self.starts[:-1]
            cosines = self.embeddings @ query
        else:
            chosen, counts = speakers, all_counts[speakers]
            offsets = np.cumsum(counts) - counts
            rows = np.repeat(self.starts[chosen] - offsets, counts) + np.arange(counts.sum())
            cosines = self.embeddings[rows] @ query
        if len(cosines) > len(chosen):
            cosines = np.maximum.reduceat(cosines, offsets)
        return Matches(chosen, np.clip(cosines, -1.0, 1.0, out=cosines), counts)

    @cached_property
    def _speakers(self) -> tuple[Indices, Indices]:
        """Indices of all speakers, and their numbers of exemplars."""
        return np.arange(len(self), dtype=np.intp), np.diff(self.starts)

    def best_exemplar(self, speaker: int, direction: NDArray[np.floating]) -> Vector:
        """Return the exemplar of a speaker, by its index, that is closest to a direction, float32 [size]."""
        own = self.embeddings[self.rows(speaker)]
        nearest: Vector = own[int((own @ direction.astype(np.float32)).argmax())]
        return nearest

    def conditions(self, speaker: int) -> list[Evidence]:
        """Return the evidence of a speaker's exemplars, by its index, where it is known."""
        return [
            Evidence(*(None if np.isnan(value) else float(value) for value in row))  # type: ignore[arg-type]
            for row in self.qualities[self.rows(speaker)]
            if not np.isnan(row[0])
        ]


def _qualities(exemplars: Sequence[Exemplar]) -> NDArray[np.float32]:
    values = [
        (np.nan,) * QUALITIES
        if each.quality is None
        else (
            each.quality.speech_s,
            each.quality.snr_db,
            each.quality.bandwidth_hz,
            each.quality.clipping,
            each.quality.level_db,
        )
        for each in exemplars
    ]
    return np.array(values, np.float32)  # None becomes NaN
