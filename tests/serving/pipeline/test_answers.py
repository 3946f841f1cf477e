"""The best speakers of an answer."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from speakerlens.measures.scorer import Scorer
from speakerlens.serving.pipeline.answers import largest


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(1, 50))
def test_best_are_those_of_a_stable_sort(values: list[int], count: int) -> None:
    scores = np.array(values, np.float32)
    np.testing.assert_array_equal(largest(scores, count), np.argsort(-scores, kind="stable")[:count])


def test_score_of_one_speaker_is_that_among_all() -> None:
    rng = np.random.default_rng(0)
    shapes = {"mean": (6,), "transform": (6, 4), "quadratic": (4,), "linear": (9, 4), "constant": (9,)}
    scorer = Scorer(**{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
    embedding = rng.normal(size=6).astype(np.float32)
    np.testing.assert_allclose([scorer.score(embedding, each) for each in range(9)], scorer.scores(embedding))
