"""The baseline of a trained bundle against the same measures of the server's answers."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from speakerlens.export import baseline
from speakerlens.measures.distribution import quantile_bins
from speakerlens.measures.prediction import scores
from speakerlens.measures.saliency import concentration, deletion_index, estimated_interference
from speakerlens.measures.sound import measure_sound
from speakerlens.serving.engine.graphs import Job
from speakerlens.serving.engine.placement import Placement
from speakerlens.serving.engine.session import Engine
from speakerlens.serving.models.reader import read_bundle
from speakerlens.serving.pipeline.explain import displayed
from speakerlens.training.data.audio import read_sound
from speakerlens.training.data.manifest import Clip, Corpus, load_corpus


def test_serving_measures_the_same_on_the_same_speech(bundles: Path, corpus: Path) -> None:
    """Of every clean utterance: no other formula, map, temperature or utterance would give these counts."""
    bundle = read_bundle(bundles / "act-da" / "1")
    engine = Engine(bundle, Placement("cpu", 1))
    values: dict[str, list[float]] = {name: [] for name in bundle.baseline.clean}
    for clip in baseline.evaluation_set(load_corpus(corpus)).clean:
        audio = read_sound(clip.path, clip.start, clip.duration)
        (answer,) = engine.explain.compute(engine.explain.prepare([Job(audio)]))
        shown = displayed(bundle, answer, "fused")
        found = {
            **asdict(measure_sound(audio)),
            **scores(answer.logits, bundle.temperature)._asdict(),
            "best_logit": float(answer.logits.max()),
            "deletion_index": deletion_index(shown, estimated_interference(answer.features)),
            "concentration": concentration(shown),
        }
        for name, value in found.items():
            values[name].append(value)
    for name, expected in bundle.baseline.clean.items():
        counts = expected.bins.counts(values[name])
        assert counts.sum() == expected.samples
        moved = np.abs(counts - expected.counts).sum() / 2
        assert moved <= 2, f"{name}: of {expected.samples} utterances {moved} are in another bin, by rounding alone"
        assert np.nanmean(values[name]) == pytest.approx(expected.mean, rel=1e-3)


def test_evaluation_set_takes_dev_if_test_is_too_small(corpus: Path) -> None:
    known = load_corpus(corpus)
    evaluated = baseline.evaluation_set(known)
    test, dev = known.utterances("test"), known.utterances("dev")
    assert evaluated.clean == test + dev
    assert len(evaluated.corrupted) == min(baseline.UTTERANCES, len(test))
    assert {condition.snr_db for condition in evaluated.conditions} == {10.0, 0.0}

    def many(clip: Clip) -> list[Clip]:
        return [replace(clip, start=0.001 * place, duration=60.0) for place in range(300)]

    longer = Corpus(known.root, tuple(clip for each in test[:1] for clip in many(each)) + known.clips, known.digest)
    evaluated = baseline.evaluation_set(longer)
    assert len(evaluated.clean) == baseline.CLEAN_UTTERANCES
    assert {clip.split for clip in evaluated.clean} == {"test"}
    assert max(clip.duration for clip in evaluated.clean) == 6.0
    assert len(evaluated.corrupted) == baseline.UTTERANCES


def test_undefined_values_are_left_out() -> None:
    values = [1.0, 2.0, float("nan"), 3.0]
    found = baseline.distribution(quantile_bins(values), values)
    assert (found["samples"], found["mean"], sum(found["counts"])) == (3, 2.0, 3)
    nothing = baseline.distribution(quantile_bins([float("nan")]), [float("nan")])
    assert json.loads(json.dumps(nothing, allow_nan=False)) == {"edges": [], "counts": [0], "samples": 0, "mean": None}
