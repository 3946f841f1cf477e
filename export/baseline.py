"""`baseline.json`: distributions of the exported model's answers on the evaluation set.

A running server compares its traffic with them, clean and under each kind of interference. Both sides compute the
measures with the package `measures`.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speakerlens.export.onnx_graphs import EXPLAIN
from speakerlens.export.parity import MAPS, load_runtimes
from speakerlens.measures.distribution import Bins, quantile_bins
from speakerlens.measures.prediction import scores
from speakerlens.measures.saliency import concentration, deletion_index, estimated_interference
from speakerlens.measures.sound import measure_sound
from speakerlens.training.data.manifest import Clip, Corpus, spread
from speakerlens.training.evaluation.conditions import (
    CLEAN,
    CLEAN_KIND,
    Condition,
    MixtureBatch,
    batches,
    mixtures,
    supplied_grid,
)
from speakerlens.training.model.front_end import frame_count
from speakerlens.training.model.saliency import Saliency, fused

UTTERANCES = 40
"""Number of utterances under each kind of interference."""

CLEAN_UTTERANCES = 240
"""Number of clean utterances, from which drift is measured. With ten bins the population stability index of two samples
of one distribution has the mean 9 (1/240 + 1/m), well below 0.1, the usual limit for a change."""

LONGEST_SECONDS = 6.0
_SNRS_DB = (10.0, 0.0)
_BATCH = 8

Measures = dict[str, list[float]]
"""Values by measure, in the order of the utterances."""


class EvaluationSet(NamedTuple):
    """Utterances of the baseline: clean ones, and fewer of them under each kind of interference."""

    clean: tuple[Clip, ...]
    corrupted: tuple[Clip, ...]
    conditions: tuple[Condition, ...]

    @property
    def steps(self) -> int:
        """Return the number of batches in `measure`."""
        return len(batches(self.clean, _BATCH)) + len(batches(self.corrupted, _BATCH)) * len(self.conditions)


def evaluation_set(corpus: Corpus) -> EvaluationSet:
    """Choose utterances of the test split, spread over the speakers; clean ones also from dev if there are too few.

    The conditions are each kind of interference at 10 and 0 dB, as far as the corpus supplies them. Utterances are cut
    to six seconds.
    """
    supplied, _ = supplied_grid(corpus, "test")
    test = corpus.utterances("test")
    clean = spread(test, CLEAN_UTTERANCES)
    clean += spread(corpus.utterances("dev"), CLEAN_UTTERANCES - len(clean))
    return EvaluationSet(
        tuple(_cut(clip) for clip in clean),
        tuple(_cut(clip) for clip in spread(test, UTTERANCES)),
        tuple(condition for condition in supplied if condition.snr_db in _SNRS_DB),
    )


def measure(
    folder: Path,
    corpus: Corpus,
    evaluated: EvaluationSet,
    speakers: Sequence[str],
    temperature: float,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run `explain.onnx` over the evaluation set.

    Args:
        folder: the bundle, or its staging folder.
        corpus: its test split supplies the interference.
        evaluated: from `evaluation_set`.
        speakers: the labels.
        temperature: of the calibration.
        advance: called after each of `evaluated.steps` batches.

    Returns:
        Content of `baseline.json` except `probes`: the conditions with their top-1 accuracy, and for each kind of
        interference the distributions of the measures of the audio, of the prediction, and of the fused map of the
        predicted speaker.
    """
    explain = load_runtimes(folder)[EXPLAIN]
    values: dict[str, Measures] = defaultdict(lambda: defaultdict(list))
    hits: dict[Condition, list[bool]] = defaultdict(list)
    for batch in _batches(corpus, evaluated, speakers):
        target = torch.full_like(batch.labels, -1)
        outputs = {n: torch.from_numpy(v) for n, v in explain(batch.mixture.audio, batch.lengths, target).items()}
        for name, column in _measures(batch, outputs, temperature).items():
            values[batch.condition.kind][name] += column
        hits[batch.condition] += (outputs["logits"].argmax(dim=1) == batch.labels).tolist()
        advance()
    bins = {name: quantile_bins(column) for name, column in values[CLEAN_KIND].items()}
    return {
        "utterances": len(evaluated.corrupted),
        "conditions": [
            {"interference": c.kind, "snr_db": c.snr_db, "utterances": len(hit), "top1": sum(hit) / len(hit)}
            for c, hit in hits.items()
        ],
        "distributions": {
            kind: {name: distribution(bins[name], column) for name, column in columns.items()}
            for kind, columns in values.items()
        },
    }


def _cut(clip: Clip) -> Clip:
    return replace(clip, duration=min(clip.duration, LONGEST_SECONDS))


def _batches(corpus: Corpus, evaluated: EvaluationSet, speakers: Sequence[str]) -> Iterator[MixtureBatch]:
    return chain(
        mixtures(corpus, "test", speakers, (CLEAN,), _BATCH, evaluated.clean),
        mixtures(corpus, "test", speakers, evaluated.conditions, _BATCH, evaluated.corrupted),
    )


def _measures(batch: MixtureBatch, outputs: dict[str, Tensor], temperature: float) -> Measures:
    """Return the measures of each utterance of a batch; `outputs` are those of `explain`, by name."""
    saliency = as_saliency(outputs, batch.lengths)
    maps = fused(saliency)
    columns: Measures = defaultdict(list)
    for row, (samples, frames) in enumerate(zip(batch.lengths.tolist(), saliency.frames.tolist(), strict=True)):
        logits, shown = outputs["logits"][row].numpy(), maps[row, :, :frames].numpy()
        interference = estimated_interference(saliency.features[row, :, :frames].numpy())
        found = {
            **asdict(measure_sound(batch.mixture.audio[row, :samples].numpy())),
            **scores(logits, temperature)._asdict(),
            "best_logit": float(logits.max()),
            "deletion_index": deletion_index(shown, interference),
            "concentration": concentration(shown),
        }
        for name, value in found.items():
            columns[name].append(value)
    return columns


def as_saliency(outputs: dict[str, Tensor], lengths: Tensor) -> Saliency:
    """Return the outputs of `explain` in the form of the eager reference.

    Args:
        outputs: by name, shapes as in `export.graph.Explanation`.
        lengths: valid samples, [batch].
    """
    frames = frame_count(lengths)
    columns = [frames]
    for _ in MAPS[1:]:
        columns.append((columns[-1] + 1) // 2)
    return Saliency(
        outputs["explained"],
        outputs["logits"],
        outputs["embedding"],
        outputs["features"],
        frames,
        tuple(outputs[name] for name in MAPS),
        tuple(columns),
    )


def distribution(bins: Bins, column: Sequence[float]) -> dict[str, Any]:
    """Return counts and mean of a measure under one kind of interference; NaN values are left out."""
    counts = bins.counts(column)
    known = [value for value in column if not math.isnan(value)]
    return {
        "edges": list(bins.edges),
        "counts": counts.tolist(),
        "samples": len(known),
        "mean": math.fsum(known) / len(known) if known else None,
    }
