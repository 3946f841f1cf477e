"""The open-set score against the model's densities, on embeddings drawn from the model."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import multivariate_normal

from speakerlens.measures.scorer import Scorer
from speakerlens.training.evaluation.scorer import fit

SIZE, SPEAKERS, EACH = 8, 60, 20


def drawn(seed: int, speakers: int = SPEAKERS) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Embeddings of length one, [n, SIZE]: some directions tell speakers apart, others vary within them."""
    rng = np.random.default_rng(seed)
    between, within = np.linspace(1.5, 0.1, SIZE), np.linspace(0.2, 1.0, SIZE)
    means = rng.normal(size=(speakers, SIZE)) * between
    labels = np.repeat(np.arange(speakers), EACH)
    values = means[labels] + rng.normal(size=(len(labels), SIZE)) * within + 3
    return values / np.linalg.norm(values, axis=1, keepdims=True), labels


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    fitted = fit(*drawn(0), SPEAKERS)
    assert fitted is not None
    return fitted


def test_score_is_the_ratio_of_the_models_densities(scorer: Scorer) -> None:
    units, labels = drawn(0)
    centred = units - units.mean(axis=0)
    means = np.stack([centred[labels == label].mean(axis=0) for label in range(SPEAKERS)])
    within = (centred - means[labels]).T @ (centred - means[labels]) / (len(units) - SPEAKERS)
    within = 0.9 * within + 0.1 * np.trace(within) / SIZE * np.eye(SIZE)
    root = np.linalg.cholesky(within)
    back = np.linalg.inv(root)
    values, vectors = np.linalg.eigh(np.cov((means @ back.T).T) - np.eye(SIZE) / EACH)
    between = root @ vectors @ np.diag(np.maximum(values, 0)) @ vectors.T @ root.T
    posterior = between @ np.linalg.inv(between + within / EACH)
    around = within + between - posterior @ between
    found = scorer.scores(units[:40] * 7)
    anyone = multivariate_normal(np.zeros(SIZE), within + between).logpdf(centred[:40])
    for label in range(0, SPEAKERS, 7):
        speaker = multivariate_normal(posterior @ means[label], around).logpdf(centred[:40])
        np.testing.assert_allclose(found[:, label], speaker - anyone, rtol=1e-3, atol=1e-3)


def test_scorer_separates_out_of_set_speakers_better_than_cosine(scorer: Scorer) -> None:
    units, labels = drawn(0)
    centred = np.stack([units[labels == label].mean(axis=0) for label in range(SPEAKERS)])
    weights = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    others, _ = drawn(1)

    def errors(known: NDArray[np.float64], out_of_set: NDArray[np.float64]) -> float:
        return float((known < np.quantile(out_of_set, 0.95)).mean())

    cosines = errors((units @ weights.T).max(axis=1), (others @ weights.T).max(axis=1))
    ratios = errors(*(scorer.scores(each).max(axis=1) for each in (units, others)))
    assert ratios < 0.8 * cosines


def test_one_embedding_scores_as_in_a_batch(scorer: Scorer) -> None:
    units, _ = drawn(2, speakers=2)
    for unit, expected in zip(5 * units.astype(np.float32), scorer.scores(units), strict=True):
        np.testing.assert_allclose(scorer.scores(unit), expected, rtol=1e-5, atol=1e-5)


def test_embeddings_that_are_all_alike_have_no_scorer() -> None:
    assert fit(np.tile(np.eye(4)[0], (12, 1)), np.repeat(np.arange(3), 4), 3) is None
