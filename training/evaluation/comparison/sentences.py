"""What an evaluation found, in sentences with intervals."""

import math
from collections.abc import Sequence

from speakerlens.training.data.mixing import KINDS
from speakerlens.training.evaluation.accuracy import Difference
from speakerlens.training.evaluation.comparison.figures import example_title
from speakerlens.training.evaluation.comparison.results import Deletion, Evaluation
from speakerlens.training.evaluation.conditions import LABELS
from speakerlens.training.evaluation.formatting import listed, number, percent, signed
from speakerlens.training.evaluation.intervals import Interval
from speakerlens.training.evaluation.maps.attributions import FUSED
from speakerlens.training.evaluation.maps.example import EXAMPLE_SECONDS, EXAMPLE_SNR_DB, Example


def clear_winner(values: Sequence[float], intervals: Sequence[Interval], lowest: bool = False) -> int | None:
    """Return the position of the best value whose interval overlaps no other; None if there is none."""
    known = [place for place, value in enumerate(values) if not math.isnan(value)]
    if len(known) < 2:
        return None
    best = (min if lowest else max)(known, key=lambda place: values[place])
    low, high = intervals[best]
    others = [intervals[place] for place in known if place != best]
    clear = all(high < other[0] if lowest else low > other[1] for other in others)
    return best if clear else None


def finding(evaluation: Evaluation) -> str:
    """Return the main result: the best accuracy under interference, and what the others lack, with intervals."""
    ranked = sorted(evaluation.summaries, key=lambda summary: -summary.mean)
    best, others = ranked[0], ranked[1:]
    lead = (
        f"Under interference, {best.variant} names the right speaker in {percent(best.mean)} % of the utterances "
        f"{_ends(best.mean_interval, 100, 1)}"
    )
    than = [_behind(evaluation.differences, best.variant, other.variant) for other in others]
    accuracies = ", ".join(f"{each.variant} {percent(each.mean)} %" for each in evaluation.summaries)
    clean = ", ".join(f"{each.variant} {percent(each.clean)} %" for each in evaluation.summaries)
    if not than:
        return f"{lead}; on clean speech in {percent(best.clean)} %."
    return f"{lead}: {listed(than)}. Top-1 under interference: {accuracies}; on clean speech: {clean}."


def deletion_finding(evaluation: Evaluation) -> str:
    """Return how interference changes the saliency on the bins that it dominates; empty where nothing was measured."""
    rows = [row for row in evaluation.deletion_means if (row.map, row.target) == (FUSED, "predicted")]
    found = [f"{row.variant} {_change(row)}" for row in rows if not math.isnan(row.change)]
    if not found:
        return ""
    return (
        "Deletion: interference changes the deletion index of the maps of the speaker whom each variant names, against "
        f"the maps of the same utterances without it, by {listed(found)}. Below zero, saliency leaves the interfered "
        "bins."
    )


def caption(shown: Example) -> str:
    """Return the caption of the saliency maps, with the rule that chose their utterance."""
    order = ", ".join(LABELS[kind].lower() for kind in KINDS)
    return (
        f"{example_title(shown)}. Chosen by rule: the first test utterance of the manifest, its first "
        f"{EXAMPLE_SECONDS:g} s, at {EXAMPLE_SNR_DB:g} dB, under the first of these that the corpus has: {order}. "
        "Grey: log-mel of the mixture. Violet: the fused LayerCAM map, the more opaque, the more the bin raised the "
        "score of the speaker asked about. Yellow: bins that the interference dominates. Probabilities are calibrated; "
        "for the same file, the server gives the same answers and maps."
    )


def _behind(differences: Sequence[Difference], best: str, other: str) -> str:
    found = next(each for each in differences if {each.variant, each.reference} == {best, other})
    sign = 1 if found.variant == best else -1
    low, high = sorted(sign * end for end in found.interval)
    ends = _ends((low, high), 100, 1)
    if low <= 0:
        return f"not told apart from {other} ({signed(sign * 100 * found.mean, 1)} points {ends})"
    return f"{percent(sign * found.mean)} points {ends} more than {other}"


def _change(row: Deletion) -> str:
    low, high = row.change_interval
    verdict = "lower" if high < 0 else "higher" if low > 0 else "not told apart from 0"
    return f"{signed(row.change)} {_ends(row.change_interval)} ({verdict})"


def _ends(interval: Interval, factor: float = 1.0, digits: int = 2) -> str:
    low, high = (number(factor * end, digits) for end in interval)
    return f"[{low}, {high}]"
