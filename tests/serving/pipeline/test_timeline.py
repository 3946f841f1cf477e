"""The timeline against definitions: by hand, and against a search of all paths."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speakerlens.serving.pipeline.timeline import LEAST_PROBABILITY, SWITCH_NATS, SpeakerTurn, Timeline

LENGTH, HOP = 48_000, 23_040
SECONDS = 16_000


def sure(label: int, probability: float = 0.97, speakers: int = 4) -> NDArray[np.float64]:
    """Probabilities with one speaker in front."""
    values = np.full(speakers, (1 - probability) / (speakers - 1))
    values[label] = probability
    return values


def timeline(votes: list[NDArray[np.float64] | None]) -> Timeline:
    made = Timeline()
    for index, vote in enumerate(votes):
        start, stop = index * HOP, index * HOP + LENGTH
        if vote is None:
            made.add_pause(start, stop)
        else:
            made.add(start, stop, vote, 10 * vote)
    return made


def labels(votes: list[NDArray[np.float64] | None]) -> list[int]:
    return [turn.label for turn in timeline(votes).turns()]


def test_turns_by_hand() -> None:
    """Windows of 4 s every 2 s: neighbours share what overlaps half and half, and a pause parts."""
    made = Timeline()
    a, b = sure(0), sure(1)
    for index, vote in enumerate([a, a, b, b, None, b, b]):
        start, stop = 2 * index * SECONDS, (2 * index + 4) * SECONDS
        if vote is None:
            made.add_pause(start, stop)
        else:
            made.add(start, stop, vote, 10 * vote)
    assert made.turns() == (
        SpeakerTurn(0.0, 5.0, 0, pytest.approx(0.97), pytest.approx(9.7)),  # type: ignore[arg-type]
        SpeakerTurn(5.0, 9.0, 1, pytest.approx(0.97), pytest.approx(9.7)),  # type: ignore[arg-type]
        SpeakerTurn(11.0, 16.0, 1, pytest.approx(0.97), pytest.approx(9.7)),  # type: ignore[arg-type]
    )
    assert made.current() == made.turns()[-1]


def test_doubtful_window_between_sure_ones_makes_no_turn() -> None:
    for doubtful in (sure(2, 0.4), sure(1, 0.6), sure(3, 0.8)):
        assert labels([sure(0), sure(0), doubtful, sure(0), sure(0)]) == [0]


def test_mixed_window_between_two_speakers_makes_no_turn() -> None:
    assert labels([sure(0), sure(0), sure(3, 0.6), sure(1), sure(1)]) == [0, 1]


def test_speaker_of_two_sure_windows_has_a_turn() -> None:
    assert labels([sure(0), sure(0), sure(2), sure(2), sure(0), sure(0)]) == [0, 2, 0]


def test_pauses_have_no_speaker() -> None:
    assert timeline([None, None]).turns() == ()
    assert timeline([None, None]).current() is None
    made = timeline([None, sure(1), None, None, sure(1), None])
    assert [turn.label for turn in made.turns()] == [1, 1]
    assert made.current() is None
    assert made.turns()[0].end_s < made.turns()[1].start_s


def cost_of(path: tuple[int, ...], votes: list[NDArray[np.float64]]) -> float:
    switches = sum(one != other for one, other in itertools.pairwise(path))
    heard = sum(-np.log(max(vote[label], LEAST_PROBABILITY)) for label, vote in zip(path, votes, strict=True))
    return float(heard + SWITCH_NATS * switches)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.floats(0.01, 8.0), min_size=3, max_size=3), min_size=1, max_size=7))
def test_best_of_all_paths_is_found(scores: list[list[float]]) -> None:
    votes = [np.exp(row) / np.exp(row).sum() for row in np.array(scores)]
    best = min(cost_of(path, votes) for path in itertools.product(range(3), repeat=len(votes)))
    made = timeline(list(votes))
    edges = [0.0, *((index * HOP + LENGTH + (index + 1) * HOP) / 2 / SECONDS for index in range(len(votes) - 1))]
    path = tuple(next(turn.label for turn in reversed(made.turns()) if turn.start_s <= edge + 1e-9) for edge in edges)
    assert cost_of(path, votes) == pytest.approx(best)
    assert made.turns()[-1].end_s == ((len(votes) - 1) * HOP + LENGTH) / SECONDS


@given(st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=1, max_size=30), st.floats(0.3, 0.99))
def test_turns_are_in_order_and_the_current_one_is_the_last(found: list[int | None], probability: float) -> None:
    made = Timeline()
    for index, label in enumerate(found):
        start, stop = index * HOP, index * HOP + LENGTH
        if label is None:
            made.add_pause(start, stop)
        else:
            made.add(start, stop, sure(label, probability), sure(label, probability))
        turns = made.turns()
        assert all(turn.start_s < turn.end_s for turn in turns)
        assert all(one.end_s <= other.start_s for one, other in itertools.pairwise(turns))
        assert made.current() == (None if label is None else turns[-1])
