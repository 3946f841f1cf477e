"""Whether utterances are of one speaker, on hand-made embeddings."""

from collections.abc import Sequence

import numpy as np
import pytest

from speakerlens.measures.agreement import outliers

THRESHOLDS = ((1, 0.6), (3, 0.65))
Vector = np.ndarray[tuple[int], np.dtype[np.float64]]


def near(speaker: int, spread: float, seed: int) -> Vector:
    """Return a unit vector around a speaker's axis; `spread` 0.5 gives cosines of about 0.8 between two of them."""
    rng = np.random.default_rng(seed)
    vector = np.eye(40)[speaker] + spread * rng.normal(size=40) / np.sqrt(40)
    unit: Vector = vector / np.linalg.norm(vector)
    return unit


def of(*speakers: int, spread: float = 0.5) -> list[tuple[int, Vector]]:
    return [(index, near(speaker, spread, index)) for index, speaker in enumerate(speakers)]


def named(utterances: Sequence[tuple[int, Vector]], pieces: Sequence[tuple[int, Vector]] = ()) -> list[int]:
    return [each.utterance for each in outliers(utterances, pieces or utterances, THRESHOLDS)]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 100])
def test_one_speaker_agrees(count: int) -> None:
    assert named(of(*[0] * count)) == []


@pytest.mark.parametrize(
    ("speakers", "expected"),
    [((0, 1), [1]), ((0, 0, 1), [2]), ((1, 0, 0), [0]), ((0, 1, 0, 1, 0), [1, 3]), ((0, 0, 0, 1, 2), [3, 4])],
)
def test_other_speakers_are_named(speakers: tuple[int, ...], expected: list[int]) -> None:
    found = outliers(of(*speakers), of(*speakers), THRESHOLDS)
    assert [each.utterance for each in found] == expected
    assert all(not each.within and each.cosine < 0.4 < each.limit for each in found)


def test_two_speakers_in_one_utterance_are_found_by_its_pieces() -> None:
    utterances = of(0, 0, 0)
    pieces = [(index, near(speaker, 0.5, 10 * index + n)) for index in range(3) for n, speaker in enumerate((0, 0, 0))]
    assert named(utterances, pieces) == []
    pieces[4:6] = [(1, near(3, 0.5, 77)), (1, near(3, 0.5, 78))]
    [found] = outliers(utterances, pieces, THRESHOLDS)
    assert (found.utterance, found.within) == (1, True)


def test_what_is_stored_is_never_the_outlier() -> None:
    stored = [(-1, near(0, 0.5, 90)), (-2, near(0, 0.5, 91))]
    assert named([*stored, *of(0, 0)]) == []
    assert named([*stored, *of(1, 1, 1, 1)]) == [0, 1, 2, 3]
    assert named([stored[0], *of(1, 1, 1, 1)]) == [0, 1, 2, 3]
