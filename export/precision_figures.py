"""What a precision changes: its outputs, and what is decided by them, beside those of float32 on the same utterances.

The utterances are those of the test split in the conditions of the baseline, and out-of-set speakers in the same
conditions. Errors are relative L2 errors of single utterances. The floor is in `measures/precision.py`.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.precision import correlation, relative_error
from speakerlens.measures.probes import Voices
from speakerlens.measures.scorer import Scorer
from speakerlens.training.evaluation.conditions import Condition

ACCURACY, IDENTIFIED = "top-1 accuracy", "share identified above the threshold"
FALSE_ACCEPTANCE = "false acceptance"
SAME, DIFFERENT = "same speaker accepted", "different speakers accepted"
LOWER_IS_BETTER = (FALSE_ACCEPTANCE, DIFFERENT)
EVERYWHERE = "all"
"""In place of an interference: the utterances of all conditions together."""

UNKNOWN = -1


class Scores(NamedTuple):
    """Outputs of `predict` for some utterances: logits [n, classes], with none without a classifier, and embeddings."""

    logits: NDArray[np.float32]
    embeddings: NDArray[np.float32]


@dataclass(frozen=True)
class Decider:
    """How a bundle decides; `threshold` and `comparison` are None where nothing was calibrated.

    Attributes:
        threshold: least score of a known speaker.
        scale: of the objective, by which logits are divided.
        scorer: adds to the logits in the score; None: the score is the logit over the scale.
        voices: whose nearest one is the answer, without a classifier.
        comparison: least cosine of two utterances of the same speaker.
    """

    threshold: float | None
    scale: float
    scorer: Scorer | None
    voices: Voices | None
    comparison: float | None

    def best(self, scores: Scores) -> NDArray[np.int64]:
        """Return the index of the best speaker of each utterance, [n]."""
        if self.voices is None:
            found: NDArray[np.int64] = scores.logits.argmax(axis=1)
            return found
        return np.array([self.voices.nearest(each)[0] for each in scores.embeddings], np.int64)

    def decided(self, scores: Scores) -> NDArray[np.int64]:
        """Return the speaker that is named, or UNKNOWN, [n]."""
        best = self.best(scores)
        if self.threshold is None:
            return best
        if self.voices is not None:
            values = np.array([self.voices.nearest(each)[1] for each in scores.embeddings])
        elif self.scorer is None:
            values = scores.logits.max(axis=1).astype(np.float64) / self.scale
        else:
            of_all = scores.logits.astype(np.float64) + self.scorer.scores(scores.embeddings)
            values = of_all[np.arange(len(best)), best]
        return np.where(values >= self.threshold, best, UNKNOWN)


@dataclass
class Trials:
    """Outputs of one precision and of float32 for the same utterances, by condition.

    Attributes:
        fp32: of known speakers, by condition, in the order of the utterances.
        changed: likewise, of the precision.
        labels: their speakers.
        strangers: of float32 and of the precision, for out-of-set speakers in all conditions.
    """

    fp32: dict[Condition, list[Scores]] = field(default_factory=lambda: defaultdict(list))
    changed: dict[Condition, list[Scores]] = field(default_factory=lambda: defaultdict(list))
    labels: dict[Condition, list[NDArray[np.int64]]] = field(default_factory=lambda: defaultdict(list))
    strangers: list[tuple[Scores, Scores]] = field(default_factory=list)

    def conditions(self, decider: Decider) -> list[dict[str, Any]]:
        """Return `conditions` of the precision in `precisions.json`: every condition, then all of them together."""
        entries = []
        known: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]] = []
        others: list[NDArray[np.bool_]] = []
        for condition in self.fp32:
            before, after = _joined(self.fp32[condition]), _joined(self.changed[condition])
            labels = np.concatenate(self.labels[condition])
            shares = [_share(ACCURACY, decider.best(before) == labels, decider.best(after) == labels)]
            if condition.snr_db is None and decider.comparison is not None:
                shares += _comparisons(before, after, labels, decider.comparison)
            decisions = decider.decided(before), decider.decided(after)
            known.append((decisions[0] == labels, decisions[1] == labels))
            others.append(decisions[0] != decisions[1])
            entries.append(_entry(condition.kind, condition.snr_db, shares, others[-1]))
        if decider.threshold is not None:
            pairs = [np.concatenate(each) for each in zip(*known, strict=True)]
            shares = [_share(IDENTIFIED, *pairs)]
            if self.strangers:
                accepted = [decider.decided(_joined(each)) != UNKNOWN for each in zip(*self.strangers, strict=True)]
                shares.append(_share(FALSE_ACCEPTANCE, *accepted))
            entries.append(_entry(EVERYWHERE, None, shares, np.concatenate(others)))
        return entries

    def errors(self) -> list[dict[str, Any]]:
        """Return the errors of logits and embeddings, of `outputs` in `precisions.json`."""
        pairs = [
            (one, other)
            for condition in self.fp32
            for before, after in zip(self.fp32[condition], self.changed[condition], strict=True)
            for one, other in zip(zip(*before, strict=True), zip(*after, strict=True), strict=True)
        ]
        return [
            output_entry(name, graph="predict.onnx", errors=[relative_error(new[at], old[at]) for old, new in pairs])
            for at, name in enumerate(("logits", "embedding"))
            if pairs[0][0][at].size
        ]


def output_entry(name: str, graph: str, errors: Sequence[float], correlations: Sequence[float] = ()) -> dict[str, Any]:
    """Return an entry of `outputs` in `precisions.json`."""
    entry = {"output": name, "graph": graph, "median": float(np.median(errors)), "worst": float(max(errors))}
    return {**entry, "correlation": min(correlations)} if correlations else entry


def map_entries(
    graph: str, pairs: Sequence[tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]]
) -> list[dict[str, Any]]:
    """Return the entries of the maps of a graph; `pairs` has the outputs of float32 and of the precision by name.

    A map without any value in float32 is left out.
    """
    found = []
    for name in [each for each in pairs[0][0] if each.startswith("saliency")]:
        shown = [(old[name], new[name]) for old, new in pairs if np.any(old[name])]
        if shown:
            errors = [relative_error(new, old) for old, new in shown]
            found.append(output_entry(name, graph, errors, [correlation(new, old) for old, new in shown]))
    return found


def deletion_entries(fp32: Sequence[Mapping[str, Any]], changed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return `deletion_index` of the precision from the results of the probes in both, where it is defined."""
    return [
        {
            "interference": old["interference"],
            "snr_db": old["snr_db"],
            "fp32": old["deletion_index"],
            "value": new["deletion_index"],
        }
        for old, new in zip(fp32, changed, strict=True)
        if old["deletion_index"] is not None and math.isfinite(old["deletion_index"])
    ]


def _joined(parts: Sequence[Scores]) -> Scores:
    return Scores(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _share(name: str, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> dict[str, Any]:
    return {
        "name": name,
        "fp32": float(before.mean()),
        "value": float(after.mean()),
        "lower_is_better": name in LOWER_IS_BETTER,
    }


def _entry(
    kind: str, snr_db: float | None, shares: Sequence[dict[str, Any]], changed: NDArray[np.bool_]
) -> dict[str, Any]:
    return {
        "interference": kind,
        "snr_db": snr_db,
        "utterances": len(changed),
        "shares": list(shares),
        "changed": float(changed.mean()),
    }


def _comparisons(before: Scores, after: Scores, labels: NDArray[np.int64], threshold: float) -> list[dict[str, Any]]:
    """Return the shares of accepted pairs of the same and of different speakers; each utterance with every other."""
    first, second = np.triu_indices(len(labels), 1)
    same = labels[first] == labels[second]
    accepted = []
    for scores in (before, after):
        units = scores.embeddings / np.maximum(np.linalg.norm(scores.embeddings, axis=1, keepdims=True), 1e-12)
        accepted.append((units @ units.T)[first, second] >= threshold)
    shares = []
    for name, chosen in ((SAME, same), (DIFFERENT, ~same)):
        if chosen.any():
            shares.append(_share(name, accepted[0][chosen], accepted[1][chosen]))
    return shares
