"""What the study's claims come to on this corpus: sentences whose words follow from the intervals.

A difference counts as shown where its interval over seeds (95 %, Student's t) leaves zero out, and as not told apart
where it does not; one seed, or seeds that all give the same, tell nothing. Faithfulness is judged by a bootstrap over
utterances instead (`map_claims`). Nothing here knows what ought to come out.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speakerlens.training.study.accuracy import MEAN, SAME_WORK, Accuracy, Comparison, Matching
from speakerlens.training.study.convergence import LAST_SHARE, Convergence
from speakerlens.training.study.plan import Plan
from speakerlens.training.study.words import counted, difference, interval, listed, percent, signed, told

_MATCHED: Mapping[Matching, Sequence[tuple[str, str]]] = {
    "updates": (("da", "clean"), ("act-pair", "da"), ("act-pair", "da-pair")),
    "compute": (("act-da", "da-2x"), ("act-da", "act-pair"), ("act-pair", "da-2x")),
}
"""What the claim of accuracy compares, and by what it has to match."""


@dataclass(frozen=True)
class Finding:
    """A paragraph of a claim, and the points under it."""

    text: str
    points: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """A claim and what was found."""

    title: str
    findings: tuple[Finding, ...]


def accuracy_claim(plan: Plan, found: Accuracy, dev: Convergence) -> Claim:
    """Say what augmentation and pairs gain, what alignment adds to them, and what the same compute buys."""
    named = listed([f"{row.variant} {percent(row.top1[MEAN].mean)} % ({row.work:.3g})" for row in found.rows])
    tolerance = f"{100 * (1 - SAME_WORK):.0f} %"
    findings = (
        Finding(
            "Share of the utterances named under interference (in brackets the network work of an update, in batch "
            f"sizes that go forward and back): {named}."
        ),
        _matched(plan, found, "updates", "At matched updates (both drew as many crops, whatever their work):"),
        _matched(plan, found, "compute", f"At matched compute (the work of both is the same within {tolerance}):"),
        _unmatched(found),
        _convergence(plan, dev),
    )
    return Claim("Alignment of activations makes the network more robust", tuple(f for f in findings if f is not None))


def _matched(plan: Plan, found: Accuracy, matching: Matching, title: str) -> Finding | None:
    """Compare what is to match in one thing; None if the study has none of these pairs."""
    wanted = [found.compare(*pair) for pair in _MATCHED[matching]]
    points = [
        _compared(plan, each) if each.matches(matching) else f"{_times(each)}, so they are not compared."
        for each in wanted
        if each is not None
    ]
    return Finding(title, tuple(points)) if points else None


def _compared(plan: Plan, found: Comparison) -> str:
    top1, many = found.top1[MEAN], len(plan.seeds) > 1
    words = {
        1: f"{found.variant} names more speakers than {found.reference}",
        -1: f"{found.variant} names fewer speakers than {found.reference}",
        0: f"{found.variant} and {found.reference} are not told apart",
    }
    seeds = "" if top1.same else f" over {counted(len(plan.seeds), 'seed')}"
    over = f"{interval(top1, 1, 100)}{seeds}; " if many else ""
    resampled = f"{interval(found.resampled, 1, 100)} over {'seeds and ' if many else ''}utterances"
    work = "" if found.work == 1 else f", for {found.work:.3g} times the work"
    return (
        f"{found.variant} minus {found.reference}: {signed(100 * top1.mean, 1)} points ({over}{resampled}){work}; "
        f"{told(top1, words)}."
    )


def _unmatched(found: Accuracy) -> Finding | None:
    """Name the pairs whose difference says nothing of their recipes; None where every pair matches in something."""
    points = tuple(f"{_times(each)}." for each in found.unmatched)
    title = "Pairs that match neither in updates nor in compute, and are not compared:"
    return Finding(title, points) if points else None


def _times(found: Comparison) -> str:
    return (
        f"{found.variant} and {found.reference}: {found.variant} draws {found.crops:.3g} times the crops and does "
        f"{found.work:.3g} times the work of {found.reference}"
    )


def _convergence(plan: Plan, dev: Convergence) -> Finding:
    """Say whether accuracy on the dev split still rose, and what a rise at the end of a schedule is worth."""
    last = f"{100 * LAST_SHARE:.0f} % of the updates"
    if all(math.isnan(gain.mean) for gain in dev.gains.values()):
        return Finding(f"Too few evaluations on the dev split in the last {last} to say whether accuracy still rose.")
    words = {1: "still rose", -1: "fell", 0: "no change told apart from none"}
    optimiser = plan.config.optimiser
    causes = [
        *(["the learning rate falls to its final value"] if optimiser.decay != "none" else []),
        *(["the weights are averaged"] if optimiser.average_last else []),
    ]
    caution = (
        f" In these updates {listed(causes)}: part of a late rise comes from that alone and would come at the end of a "
        "shorter schedule as well, and a flat end says that this schedule is used up, not that a longer one would gain "
        "nothing."
        if causes
        else " Where it still rose, the order may change with longer training."
    )
    return Finding(
        f"Had training come to its end? What accuracy on the {dev.on} dev crops gained over the last {last}.{caution}",
        tuple(f"{name}: {difference(gain, 1, ' points')}; {told(gain, words)}." for name, gain in dev.gains.items()),
    )
