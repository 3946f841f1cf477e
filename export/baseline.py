"""`baseline.json`: how the exported model's answers are distributed on the evaluation set.

A running service compares its traffic with this: what it is used to, clean and under each kind of interference.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.onnx_graphs import EXPLAIN
from export.parity import MAPS, load_runtimes
from training.conditions import Condition, MixtureBatch, batches, mixtures, supplied_grid
from training.frontend import LogMel, frame_count
from training.manifest import Clip, Corpus
from training.saliency import Saliency, deletion_index, dominated_bins, fused

UTTERANCES = 40
_SNRS_DB = (10.0, 0.0)
_BATCH = 8
_BINS = 20


def conditions_of(corpus: Corpus) -> tuple[Condition, ...]:
    """Clean speech and each kind of interference at 10 and 0 dB, as far as the corpus supplies them."""
    supplied, _ = supplied_grid(corpus, "test")
    return tuple(c for c in supplied if c.snr_db is None or c.snr_db in _SNRS_DB)


def steps(corpus: Corpus, utterances: Sequence[Clip]) -> int:
    """How often `measure` calls `advance`."""
    return len(batches(utterances, _BATCH)) * len(conditions_of(corpus))


def measure(
    folder: Path,
    corpus: Corpus,
    utterances: Sequence[Clip],
    speakers: Sequence[str],
    temperature: float,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Run `explain.onnx` over the evaluation set.

    Args:
        folder: the bundle, or what it will be.
        corpus: its test split is the evaluation set.
        utterances: those to use.
        speakers: the labels.
        temperature: of the calibration.
        advance: called after each of `steps()` batches.

    Returns:
        What `baseline.json` holds: the conditions with their top-1 accuracy, and for each kind of interference the
        histograms of top-1 probability, margin (first over second), entropy (nats), best logit, and deletion index of
        the fused map of the predicted speaker.
    """
    explain, front_end = load_runtimes(folder)[EXPLAIN], None
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    hits: dict[Condition, list[bool]] = defaultdict(list)
    for batch in mixtures(corpus, "test", speakers, conditions_of(corpus), _BATCH, utterances):
        target = torch.full_like(batch.labels, -1)
        outputs = {n: torch.from_numpy(v) for n, v in explain(batch.mixture.audio, batch.lengths, target).items()}
        front_end = front_end or LogMel(outputs["features"].shape[1])
        for name, column in _measures(batch, outputs, front_end, temperature).items():
            values[batch.condition.kind][name] += column.tolist()
        hits[batch.condition] += (outputs["logits"].argmax(dim=1) == batch.labels).tolist()
        advance()
    return {
        "utterances": len(utterances),
        "conditions": [
            {"interference": c.kind, "snr_db": c.snr_db, "utterances": len(hit), "top1": sum(hit) / len(hit)}
            for c, hit in hits.items()
        ],
        "distributions": {
            kind: {name: _histogram(name, column, len(speakers)) for name, column in columns.items()}
            for kind, columns in values.items()
        },
    }


def _measures(
    batch: MixtureBatch, outputs: dict[str, Tensor], front_end: LogMel, temperature: float
) -> dict[str, Tensor]:
    probabilities = (outputs["logits"] / temperature).softmax(dim=1)
    first, second = probabilities.topk(2, dim=1).values.unbind(dim=1)
    measures = {
        "top1_probability": first,
        "margin": first - second,
        "entropy": -(probabilities * probabilities.clamp_min(1e-30).log()).sum(dim=1),
        "best_logit": outputs["logits"].amax(dim=1),
    }
    if batch.condition.snr_db is not None:
        dominated = dominated_bins(front_end, batch.mixture.speech, batch.mixture.interference)
        saliency = as_saliency(outputs, batch.lengths)
        measures["deletion_index"] = deletion_index(fused(saliency), dominated, saliency.frames)
    return measures


def as_saliency(outputs: dict[str, Tensor], lengths: Tensor) -> Saliency:
    """Outputs of `explain` in the form of the eager reference."""
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


def _histogram(name: str, column: Sequence[float], classes: int) -> dict[str, Any]:
    """Counts in equal bins; the first and the last take what lies beyond them. Undefined values are left out."""
    values: NDArray[np.float64] = np.asarray(column)
    values = values[np.isfinite(values)]
    low, high = {"entropy": (0.0, math.log(classes)), "best_logit": (-32.0, 32.0), "deletion_index": (0.0, 2.0)}.get(
        name, (0.0, 1.0)
    )
    counts, edges = np.histogram(values.clip(low, high), bins=_BINS, range=(low, high))
    return {
        "edges": edges.round(6).tolist(),
        "counts": counts.tolist(),
        "samples": len(values),
        "mean": float(values.mean()) if len(values) else None,
    }
