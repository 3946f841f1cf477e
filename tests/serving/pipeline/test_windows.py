"""Windows, aggregation, stitching, timeline and voice activity, each against its definition."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speakerlens.containers import Extent
from speakerlens.measures.windows import Windowing
from speakerlens.serving.bundle import Bundle
from speakerlens.serving.config import Config
from speakerlens.serving.context import union
from speakerlens.serving.engine.graphs import ExplainedPrediction, Prediction
from speakerlens.serving.models.reader import read_bundle
from speakerlens.serving.pipeline.aggregate import Piece, WindowAggregator, stitched
from speakerlens.serving.pipeline.decode import RawAudio
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.query import QueryOptions
from speakerlens.serving.pipeline.samples import DurationLimit
from speakerlens.serving.pipeline.vad import holds_speech
from speakerlens.serving.pipeline.windows import Window, WindowCutter, WindowReader, windowing
from tests.serving.harness import talk

SHAPE = Windowing(length=50, hop=24, grid=8)


@pytest.fixture(scope="module")
def bundle(toy_bundles: Path) -> Bundle:
    return read_bundle(toy_bundles / "da" / "1")


def cut(samples: np.ndarray, sizes: list[int], shape: Windowing = SHAPE) -> list[Window]:
    cutter, windows = WindowCutter(shape), []
    for size in sizes:
        windows += cutter.feed(samples[:size])
        samples = samples[size:]
    windows += cutter.feed(samples)
    assert cutter.total == sum(sizes) + len(samples)
    return windows + cutter.finish()


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 400), st.lists(st.integers(0, 90), max_size=12))
@example(50, [])
@example(51, [50])
@example(74, [])
@example(75, [74])
@example(51, [7] * 7)
@example(399, [90] * 4)
def test_windows_do_not_depend_on_how_samples_arrive(total: int, sizes: list[int]) -> None:
    samples = np.arange(total, dtype=np.float32)
    while sum(sizes) > total:
        sizes.pop()
    windows = cut(samples, sizes)
    if total <= 50:
        assert [window.weight for window in windows] == [1]
        assert [(w.start, w.stop) for w in windows] == [(0, total)]
    full = range(0, max(total - 50, 0) + 1, 24) if total >= 50 else range(0)
    assert [window.start for window in windows][: len(full)] == list(full)
    assert len(windows) - len(full) == (full[-1] + 50 < total if full else 1)
    for window in windows:
        np.testing.assert_array_equal(window.samples, samples[window.start : window.stop])
        assert window.start % 8 == 0
    assert windows[-1].stop == total
    assert len(windows) == 1 or [window.start for window in windows] == SHAPE.starts(total)
    assert len(windows) == 1 or all(window.weight == SHAPE.weight(len(window.samples)) for window in windows)
    windows = cut(samples, sizes, SHAPE.with_full_last)
    assert windows[-1].stop == total
    assert len(windows) == 1 or all(42 < len(window.samples) <= 50 for window in windows)
    assert all(window.weight == 1 for window in windows)


@pytest.mark.parametrize(
    ("samples", "kind", "rate", "channels", "brief"),
    [(48_000, "float32", 16_000, 1, True), (48_000, "int16", 16_000, 1, True), (48_001, "float32", 16_000, 1, False),
     (24_000, "float32", 8_000, 1, False), (48_000, "float32", 16_000, 2, False)],
)  # fmt: skip
def test_one_window_of_plain_samples_is_brief(samples: int, kind: str, rate: int, channels: int, brief: bool) -> None:
    """It is decoded on the event loop; its samples are those that were sent."""
    sent = (np.random.default_rng(0).normal(0, 0.1, (samples, channels)) * (32_767 if kind == "int16" else 1)).astype(
        kind
    )
    audio = RawAudio(sent.tobytes(), kind, rate, channels, None)
    reader = WindowReader(audio, DurationLimit(60), Windowing(48_000, 24_000, 160), 8_000)
    assert reader.brief is brief
    window = reader.next()
    assert window is not None
    if brief:
        assert reader.finished
        scale = 32_768 if kind == "int16" else 1
        np.testing.assert_array_equal(window.samples, sent[:, 0].astype(np.float32) / np.float32(scale))
        assert window.samples.flags.writeable, "it is a copy"


def test_grid_fits_every_stage(bundle: Bundle) -> None:
    shape = windowing(3.0, [bundle])
    assert shape == Windowing(length=48_000, hop=23_040, grid=1280, least=bundle.min_samples)
    for stage in bundle.stages:
        assert shape.hop % (bundle.frame_shift * stage.stride) == 0


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("seconds", [0.5, 3.0, 3.2, 4.0, 6.7, 20.9, 21.1])
def test_admission_counts_the_windows_that_are_computed(bundle: Bundle, seconds: float, full: bool) -> None:
    """A call's cost is the samples of its windows, where a sample costs a second and all else nothing."""
    admitted: list[tuple[float, int]] = []

    class Door:
        @contextmanager
        def admit(self, cost: float, steps: int, *_: object) -> Iterator[None]:
            admitted.append((cost, steps))
            yield

    model: Any = SimpleNamespace(bundle=bundle, predict=SimpleNamespace(inference=SimpleNamespace(seconds=float)))
    unused: Any = None
    door: Any = Door()
    pipeline = Pipeline(unused, Config(bundles=Path()), unused, unused, unused, door)
    samples = np.zeros(round(seconds * 16_000), np.float32)
    with pipeline.admit(QueryOptions(), [model], [Extent("raw", len(samples), 16_000, 1)], full_windows=full):
        pass
    shape = windowing(3.0, [bundle])
    cutter = WindowCutter(shape.with_full_last if full else shape)
    windows = cutter.feed(samples) + cutter.finish()
    assert admitted == [(sum(len(window.samples) for window in windows), len(windows) + 1)]


def test_whole_is_the_mean_of_windows_with_a_vote(bundle: Bundle) -> None:
    rng = np.random.default_rng(0)
    predictions = [
        Prediction(rng.normal(size=12).astype(np.float32), rng.normal(size=6).astype(np.float32) * 3) for _ in range(3)
    ]
    aggregator = WindowAggregator(bundle)
    for index, prediction in enumerate([predictions[0], None, predictions[1], predictions[2]]):
        aggregator.add(Window(index * 100, np.zeros(200, np.float32)), prediction, prediction is not None)
    whole = aggregator.result()
    np.testing.assert_allclose(whole.logits, np.mean([each.logits for each in predictions], axis=0), rtol=1e-6)
    lengths = [np.linalg.norm(each.embedding) for each in predictions]
    directions = [each.embedding / length for each, length in zip(predictions, lengths, strict=True)]
    np.testing.assert_allclose(whole.embedding, np.mean(directions, axis=0) * np.mean(lengths), rtol=1e-5)
    assert aggregator.votes == 3


def test_short_last_window_counts_by_its_length(bundle: Bundle) -> None:
    """In the logits, the embedding, and the timeline; without speech it ends no turn."""
    rng = np.random.default_rng(1)
    full, short = (
        Prediction(rng.normal(size=12).astype(np.float32), rng.normal(size=6).astype(np.float32)) for _ in range(2)
    )
    short.logits[11] = 50
    aggregator = WindowAggregator(bundle)
    aggregator.add(Window(0, np.zeros(16_000, np.float32)), full, True)
    aggregator.add(Window(14_000, np.zeros(4_000, np.float32), 0.25), short, True)
    whole = aggregator.result()
    np.testing.assert_allclose(whole.logits, (full.logits + 0.25 * short.logits) / 1.25, rtol=1e-5)
    norms = [np.linalg.norm(each.embedding) for each in (full, short)]
    mean = (full.embedding / norms[0] + 0.25 * short.embedding / norms[1]) / 1.25
    np.testing.assert_allclose(whole.embedding, mean * (norms[0] + 0.25 * norms[1]) / 1.25, rtol=1e-5)
    [turn] = aggregator.timeline()
    assert (turn.label, turn.end_s) == (int(full.logits.argmax()), 18_000 / 16_000), "one turn, of the full window"
    quiet = WindowAggregator(bundle)
    quiet.add(Window(0, np.zeros(16_000, np.float32)), full, True)
    quiet.add(Window(14_000, np.zeros(4_000, np.float32), 0.25), None, False)
    assert [(each.start_s, each.end_s) for each in quiet.timeline()] == [(0.0, 18_000 / 16_000)]
    np.testing.assert_array_equal(quiet.result().logits, full.logits)


def test_single_windows_output_is_unchanged(bundle: Bundle) -> None:
    aggregator, prediction = WindowAggregator(bundle), Prediction(np.ones(12, np.float32), np.ones(6, np.float32))
    aggregator.add(Window(0, np.zeros(9, np.float32)), prediction, True)
    assert aggregator.result() is prediction
    assert aggregator.timeline() == ()


def test_all_windows_count_where_none_holds_speech(bundle: Bundle) -> None:
    rng = np.random.default_rng(0)
    predictions = [Prediction(rng.normal(size=12).astype(np.float32), np.ones(6, np.float32)) for _ in range(3)]
    aggregator = WindowAggregator(bundle)
    for index, prediction in enumerate(predictions):
        aggregator.add(Window(index * 100, np.zeros(200, np.float32)), prediction, False)
    expected = np.mean([each.logits for each in predictions], axis=0)
    np.testing.assert_allclose(aggregator.result().logits, expected, rtol=1e-6)
    assert aggregator.timeline() == ()
    aggregator.add(Window(300, np.zeros(200, np.float32)), predictions[2], True)
    np.testing.assert_allclose(aggregator.result().logits, predictions[2].logits, rtol=1e-6)


def pieces_of(bundle: Bundle, samples: int, votes: list[bool] | None = None) -> list[Piece[ExplainedPrediction]]:
    """What windows would say whose features and maps depend only on where in the audio a column is."""
    cutter = WindowCutter(windowing(1.0, [bundle]))
    windows = cutter.feed(np.zeros(samples, np.float32)) + cutter.finish()
    made = []
    for index, window in enumerate(windows):
        frames = bundle.frames(len(window.samples))
        features = plane(bundle.mel_bins, window.start // 160, frames)
        maps = tuple(
            plane(stage.rows, window.start // (160 * stage.stride), -(-frames // stage.stride))
            for stage in bundle.stages
        )
        answer = ExplainedPrediction(np.zeros(12, np.float32), np.zeros(6, np.float32), 0, features, maps)
        made.append(Piece(window.start, answer, float(votes is None or votes[index])))
    return made


def plane(rows: int, first: int, columns: int) -> np.ndarray:
    values: np.ndarray = np.sin(np.arange(first, first + columns) / 7)[None] + np.arange(rows)[:, None] + 2
    return values.astype(np.float32)


@pytest.mark.parametrize("samples", [16_001, 24_000, 60_123, 100_000])
def test_equal_maps_are_stitched_exactly(bundle: Bundle, samples: int) -> None:
    """Every column lands where it belongs, to the last frame, and cross-fading what agrees changes nothing."""
    features, maps = stitched(bundle, pieces_of(bundle, samples), samples)
    np.testing.assert_allclose(features, plane(bundle.mel_bins, 0, bundle.frames(samples)), rtol=1e-5)
    for stage, values in zip(bundle.stages, maps, strict=True):
        np.testing.assert_allclose(values, plane(stage.rows, 0, bundle.columns(samples, stage)), rtol=1e-5)


def test_different_maps_are_cross_faded(bundle: Bundle) -> None:
    """Two windows of other levels: one's value, the other's, and between them no step larger than the fade's."""
    first, second = pieces_of(bundle, 16_000 + 7_680)
    ones = tuple(np.ones_like(values) for values in first.prediction.saliency)
    zeros = tuple(np.zeros_like(values) for values in second.prediction.saliency)
    answers = [
        ExplainedPrediction(each.prediction.logits, each.prediction.embedding, 0, each.prediction.features, maps)
        for each, maps in ((first, ones), (second, zeros))
    ]
    _, maps = stitched(bundle, [Piece(0, answers[0], 1.0), Piece(second.start, answers[1], 1.0)], 16_000 + 7_680)
    row = maps[0][0]
    joint = second.start // 160
    np.testing.assert_array_equal(row[:joint], 1)
    np.testing.assert_array_equal(row[98:], 0)
    steps = -np.diff(row)
    assert (steps >= 0).all()
    assert steps.max() < 3 / (98 - joint)


def test_window_without_a_vote_has_no_maps(bundle: Bundle) -> None:
    samples = 16_000 + 2 * 7_680
    features, maps = stitched(bundle, pieces_of(bundle, samples, [True, False, False]), samples)
    np.testing.assert_allclose(features, plane(bundle.mel_bins, 0, bundle.frames(samples)), rtol=1e-5)
    assert (maps[0][:, 100:] == 0).all()
    assert (maps[0][:, :40] > 0).all()


@pytest.mark.parametrize("seconds", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("seed", range(4))
def test_speech_is_detected_and_noise_is_not(seconds: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    speech = talk(seconds, seed=seed)
    noise = rng.normal(size=len(speech)).astype(np.float32)
    hum = np.sin(2 * np.pi * 100 * np.arange(len(speech)) / 16_000).astype(np.float32)
    power = float(np.sqrt((speech**2).mean()))
    assert holds_speech(speech)
    assert holds_speech(speech * np.float32(0.05))
    assert holds_speech(speech + power * noise), "at 0 dB"
    assert not holds_speech(0.05 * noise)
    assert not holds_speech(0.1 * hum + 1e-3 * noise)
    assert not holds_speech(speech * np.float32(1e-4)), "below -60 dBFS"
    assert not holds_speech(speech[:200])


def test_one_word_in_ten_seconds_is_speech() -> None:
    samples = 1e-3 * np.random.default_rng(0).normal(size=160_000).astype(np.float32)
    assert not holds_speech(samples)
    samples[50_000:62_000] += talk(0.75)
    assert holds_speech(samples)


def test_overlapping_intervals_count_once() -> None:
    assert union([(3.0, 4.0), (0.0, 2.0), (1.0, 2.5), (4.0, 5.0)]) == [(0.0, 2.5), (3.0, 5.0)]
