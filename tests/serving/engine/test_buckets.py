"""Few shapes of batches: lengths and rows are rounded up within bounds, and all are warmed up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.engine.buckets import BatchLimits, cpu_buckets, cuda_buckets
from speakerlens.serving.engine.graphs import Job
from speakerlens.serving.engine.placement import Placement
from speakerlens.serving.engine.session import Engine
from speakerlens.serving.models.reader import read_bundle
from tests.serving import toy
from tests.serving.harness import voice

LIMITS = st.builds(
    BatchLimits,
    rows=st.integers(1, 40),
    batch_seconds=st.none() | st.floats(1, 200),
    longest_seconds=st.floats(0.5, 40),
)


@given(LIMITS, st.integers(1, 50 * SAMPLE_RATE), st.integers(1, 40))
def test_lengths_and_rows_are_rounded_up_a_little(limits: BatchLimits, samples: int, count: int) -> None:
    for buckets, step in ((cpu_buckets(limits), SAMPLE_RATE // 2), (cuda_buckets(limits), 5 * SAMPLE_RATE)):
        length = buckets.length(samples)
        assert samples <= length < samples + step
        assert buckets.length(length) == length
        if count <= limits.rows:
            assert count <= buckets.rows(count) <= min(limits.rows, 2 * count)
        assert list(buckets.lengths) == sorted(set(buckets.lengths))


@given(LIMITS, st.floats(0.1, 40), st.integers(1, 40))
def test_cuda_computes_only_shapes_of_the_warm_up(limits: BatchLimits, seconds: float, count: int) -> None:
    buckets = cuda_buckets(limits)
    shape = buckets.rows(min(count, limits.rows)), buckets.length(round(min(seconds, limits.longest_seconds) * 16_000))
    assert shape in buckets.warm or (shape[0] > 1 and shape[0] * shape[1] > buckets.batch_samples)


def test_the_number_of_shapes_is_small() -> None:
    assert len(cuda_buckets(BatchLimits()).warm) == 28
    assert len(cpu_buckets(BatchLimits()).warm) == 3


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(read_bundle(toy.write_bundle(tmp_path_factory.mktemp("bundles"), "v", 1)), Placement("cpu", 1))


@pytest.mark.parametrize("lengths", [(0.5,), (0.51,), (1.3, 0.7, 2.6), (3.0, 3.0)])
def test_padding_is_invisible(engine: Engine, lengths: tuple[float, ...]) -> None:
    jobs = [Job(voice(seconds, seed=seed)) for seed, seconds in enumerate(lengths)]
    feed = engine.explain.prepare(jobs)
    assert feed.arrays["audio"].shape == (len(jobs), engine.explain.buckets.length(max(len(job.audio) for job in jobs)))
    for job, answer in zip(jobs, engine.explain.compute(feed), strict=True):
        expected = toy.expected(toy.weights(0), job.audio)
        np.testing.assert_allclose(answer.logits, expected["logits"], rtol=1e-4, atol=1e-6)
        for stage, values in enumerate(answer.saliency, 1):
            np.testing.assert_allclose(values, expected[f"saliency_s{stage}"], rtol=1e-3, atol=1e-6)


def test_a_reopened_engine_gives_the_same_results(engine: Engine) -> None:
    job = Job(voice(1.0))
    before = engine.predict.compute(engine.predict.prepare([job]))[0]
    engine.reopen()
    engine.predict.probe()
    after = engine.predict.compute(engine.predict.prepare([job]))[0]
    np.testing.assert_array_equal(before.logits, after.logits)
