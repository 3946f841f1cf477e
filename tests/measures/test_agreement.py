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


def stretches_of(*utterances: Sequence[int]) -> list[tuple[int, Vector]]:
    """Return a stretch of each of the speakers of each utterance."""
    return [
        (index, near(speaker, 0.5, 100 * index + place))
        for index, speakers in enumerate(utterances)
        for place, speaker in enumerate(speakers)
    ]


def test_second_speaker_in_a_part_is_found_by_its_stretch() -> None:
    utterances = of(0, 0, 0)
    alike = stretches_of((0, 0, 0), (0, 0, 0), (0, 0, 0))
    assert outliers(utterances, utterances, THRESHOLDS, alike) == []
    [found] = outliers(utterances, utterances, THRESHOLDS, stretches_of((0, 0, 0), (0, 3, 0), (0, 0, 0)))
    assert (found.utterance, found.within) == (1, True)
    assert found.cosine < found.limit < THRESHOLDS[0][1]
    # What is stored takes the place of other utterances.
    [found] = outliers([utterances[0], (-1, near(0, 0.5, 90))], [], THRESHOLDS, stretches_of((0, 3)))
    assert found.utterance == 0
    assert outliers(utterances[:1], [], THRESHOLDS, stretches_of((0, 3))) == [], "there is nothing to compare with"


def test_long_utterances_must_agree_more_than_short_ones() -> None:
    """An utterance that a reference of short ones would accept is refused where all have several windows."""
    apart = 0.68 * np.eye(40)[0] + np.sqrt(1 - 0.68**2) * np.eye(40)[1]
    utterances = [(0, np.eye(40)[0]), (1, np.eye(40)[0]), (2, apart)]
    assert named(utterances) == []
    long = [(index, vector) for index, vector in utterances for _ in range(2)]
    assert [each.utterance for each in outliers(utterances, [], THRESHOLDS, long)] == [2]
    assert outliers(utterances, [], THRESHOLDS, long[:4]) == [], "one of them is short"


def test_two_speakers_in_several_utterances_are_found_by_pieces() -> None:
    mixed = enumerate([(0, 0), (0, 3), (0, 3)])
    pieces = [(index, near(speaker, 0.3, 10 * index + n)) for index, two in mixed for n, speaker in enumerate(two)]
    alike = stretches_of((0, 0), (0, 0), (0, 0))
    found = outliers(of(0, 0, 0), pieces, THRESHOLDS, alike)
    assert [(each.utterance, each.within) for each in found] == [(1, True), (2, True)]


def test_what_is_stored_is_never_the_outlier() -> None:
    stored = [(-1, near(0, 0.5, 90)), (-2, near(0, 0.5, 91))]
    assert named([*stored, *of(0, 0)]) == []
    assert named([*stored, *of(1, 1, 1, 1)]) == [0, 1, 2, 3]
    assert named([stored[0], *of(1, 1, 1, 1)]) == [0, 1, 2, 3]
