"""`baseline.json`: distributions of the exported model's answers on the evaluation set.

A running server compares its traffic with them, clean and under each kind of interference. Both sides compute the
measures with the package `measures`.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speakerlens.export.graph import Explanation, Verification
from speakerlens.export.onnx_graphs import EXPLAIN, PREDICT, VERIFY
from speakerlens.export.runtimes import MAPS, Runtime, part_of_graph
from speakerlens.measures.distribution import Bins, quantile_bins
from speakerlens.measures.prediction import scores
from speakerlens.measures.probes import Voices
from speakerlens.measures.saliency import concentration, deletion_index, estimated_interference
from speakerlens.measures.sound import measure_sound
from speakerlens.training.data.manifest import Clip, Corpus, Split, spread
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
from speakerlens.training.model.saliency import FUSED_STAGES, Saliency, fused

UTTERANCES = 40
"""Number of utterances under each kind of interference."""

CLEAN_UTTERANCES = 240
"""Number of clean utterances, from which drift is measured. With ten bins the population stability index of two samples
of one distribution has the mean 9 (1/240 + 1/m), well below 0.1, the usual limit for a change."""

LONGEST_SECONDS = 6.0
_SNRS_DB = (10.0, 0.0)
_SPLITS: tuple[Split, ...] = ("test", "dev")
_BATCH = 8

FLOAT32: Mapping[str, str] = {graph: graph for graph in (PREDICT, EXPLAIN, VERIFY)}

Answerer = Callable[[Tensor, Tensor], tuple[dict[str, Tensor], Tensor]]
"""From audio [batch, samples] and lengths [batch] to a graph's outputs, and the index of the best speaker [batch]."""

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


def evaluation_set(corpus: Corpus, speakers: Collection[str] | None = None) -> EvaluationSet:
    """Choose utterances of the test split, spread over the speakers; clean ones also from dev if there are too few.

    The conditions are each kind of interference at 10 and 0 dB, as far as the corpus supplies them. Utterances are cut
    to six seconds.

    Args:
        corpus: where they are chosen from.
        speakers: whose utterances; None for all.
    """
    supplied, _ = supplied_grid(corpus, "test")
    test, dev = (
        [clip for clip in corpus.utterances(split) if speakers is None or clip.speaker in speakers] for split in _SPLITS
    )
    clean = spread(test, CLEAN_UTTERANCES)
    clean += spread(dev, CLEAN_UTTERANCES - len(clean))
    return EvaluationSet(
        tuple(cut(clip) for clip in clean),
        tuple(cut(clip) for clip in spread(test, UTTERANCES)),
        tuple(condition for condition in supplied if condition.snr_db in _SNRS_DB),
    )


def measure(
    corpus: Corpus,
    evaluated: EvaluationSet,
    speakers: Sequence[str],
    temperature: float,
    answer: Answerer,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run a bundle's graphs over the evaluation set.

    Args:
        corpus: its test split supplies the interference.
        evaluated: from `evaluation_set`.
        speakers: the labels.
        temperature: of the calibration.
        answer: from `answerer` or `comparer`.
        advance: called after each of `evaluated.steps` batches.

    Returns:
        Content of `baseline.json` except `probes`: the conditions with their top-1 accuracy, and for each kind of
        interference the distributions of the measures of the audio, of the prediction, and of the fused map of the
        predicted speaker.
    """
    values: dict[str, Measures] = defaultdict(lambda: defaultdict(list))
    hits: dict[Condition, list[bool]] = defaultdict(list)
    for batch in _batches(corpus, evaluated, speakers):
        outputs, best = answer(batch.mixture.audio, batch.lengths)
        for name, column in _measures(batch, outputs, temperature).items():
            values[batch.condition.kind][name] += column
        hits[batch.condition] += (best == batch.labels).tolist()
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


def empty() -> dict[str, Any]:
    """Return the content of `baseline.json` of a bundle without recordings: nothing to compare traffic with."""
    return {"utterances": 0, "conditions": [], "distributions": {CLEAN_KIND: {}}, "probes": []}


def answerer(folder: Path, files: Mapping[str, str] = FLOAT32, threads: int = 1) -> Answerer:
    """Return what identifies a batch by `explain.onnx`, or the file in its place in `files`, for the maps shown."""
    explain = part_of_graph(folder / files[EXPLAIN], EXPLAIN, _shown(Explanation._fields), threads)

    def answer(audio: Tensor, lengths: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        outputs = _tensors(explain, audio, lengths, torch.full_like(lengths, -1))
        return outputs, outputs["logits"].argmax(dim=1)

    return answer


def comparer(folder: Path, voices: Voices, files: Mapping[str, str] = FLOAT32, threads: int = 1) -> Answerer:
    """Return what finds the nearest voice of each row of a batch, by `predict.onnx` and `verify.onnx`, as above."""
    predict = part_of_graph(folder / files[PREDICT], PREDICT, ("embedding",), threads)
    verify = part_of_graph(folder / files[VERIFY], VERIFY, _shown(Verification._fields), threads)

    def answer(audio: Tensor, lengths: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        embeddings = predict(audio, lengths, lengths)["embedding"]
        best = torch.tensor([voices.nearest(embedding)[0] for embedding in embeddings])
        return _tensors(verify, audio, lengths, torch.from_numpy(voices.directions)[best]), best

    return answer


def _shown(outputs: Sequence[str]) -> list[str]:
    """Return the outputs without the maps of stages that are not part of the fused map."""
    hidden = [name for stage, name in enumerate(MAPS) if stage not in FUSED_STAGES]
    return [name for name in outputs if name not in hidden]


def _tensors(runtime: Runtime, audio: Tensor, lengths: Tensor, other: Tensor) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in runtime(audio, lengths, other).items()}


def cut(clip: Clip) -> Clip:
    """Return the first six seconds of a clip."""
    return replace(clip, duration=min(clip.duration, LONGEST_SECONDS))


def _batches(corpus: Corpus, evaluated: EvaluationSet, speakers: Sequence[str]) -> Iterator[MixtureBatch]:
    return chain(
        mixtures(corpus, "test", speakers, (CLEAN,), _BATCH, evaluated.clean),
        mixtures(corpus, "test", speakers, evaluated.conditions, _BATCH, evaluated.corrupted),
    )


def _measures(batch: MixtureBatch, outputs: dict[str, Tensor], temperature: float) -> Measures:
    """Return the measures of each utterance of a batch; `outputs` are those of `explain` or `verify`, by name."""
    saliency = as_saliency(outputs, batch.lengths)
    maps = fused(saliency)
    columns: Measures = defaultdict(list)
    for row, (samples, frames) in enumerate(zip(batch.lengths.tolist(), saliency.frames.tolist(), strict=True)):
        shown = maps[row, :, :frames].numpy()
        interference = estimated_interference(saliency.features[row, :, :frames].numpy())
        found = {
            **asdict(measure_sound(batch.mixture.audio[row, :samples].numpy())),
            **_scores(outputs, row, temperature),
            "deletion_index": deletion_index(shown, interference),
            "concentration": concentration(shown),
        }
        for name, value in found.items():
            columns[name].append(value)
    return columns


def _scores(outputs: dict[str, Tensor], row: int, temperature: float) -> dict[str, float]:
    if "logits" not in outputs:
        return {"best_cosine": float(outputs["score"][row])}
    logits = outputs["logits"][row].numpy()
    return {**scores(logits, temperature)._asdict(), "best_logit": float(logits.max())}


def as_saliency(outputs: dict[str, Tensor], lengths: Tensor) -> Saliency:
    """Return the outputs of `explain` or `verify` in the form of the eager reference; those of `verify` lack a target.

    Args:
        outputs: by name, shapes as in `export.graph.Explanation`; maps that are not shown may be absent.
        lengths: valid samples, [batch].
    """
    frames, none = frame_count(lengths), torch.empty(len(lengths), 0)
    columns = [frames]
    for _ in MAPS[1:]:
        columns.append((columns[-1] + 1) // 2)
    return Saliency(
        outputs.get("explained", none),
        outputs.get("logits", none),
        outputs["embedding"],
        outputs["features"],
        frames,
        tuple(outputs.get(name, none) for name in MAPS),
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
