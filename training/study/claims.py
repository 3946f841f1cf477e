"""What the study's claims come to on this corpus: sentences whose words follow from the intervals.

A difference counts as shown where its interval over seeds (95 %, Student's t) leaves zero out, and as not told apart
where it does not; nothing here knows what ought to come out.
"""

import math
from dataclasses import dataclass

import numpy as np

from training.conditions import LABELS
from training.maps.randomisation import INPUT, STEPS
from training.maps.randomisation import MAPS as SANITY_MAPS
from training.maps.ranking import Ranked
from training.network import STAGES
from training.saliency import FUSED_STAGES
from training.study.accuracy import MEAN, Accuracy, Comparison, Matching, Table
from training.study.convergence import Convergence
from training.study.deleting import Deleting
from training.study.plan import Plan
from training.study.statistics import Estimate
from training.study.words import difference, interval, listed, number, percent, signed
from training.study.worth import Worth

_ALIGNED = "act-da"
_STAGE = "s4"


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
    """Say whether alignment makes more robust, what it does beside its pairs, and what the same compute buys."""
    pairs: dict[Matching, tuple[tuple[str, str], ...]] = {
        "updates": (("act-pair", "da"), ("act-pair", "da-pair")),
        "compute": (("act-da", "da-2x"), ("act-da", "act-pair"), ("act-pair", "da-2x")),
    }
    matched = [
        _matched(plan, table, compared)
        for matching, compared in pairs.items()
        if (table := found.table(matching)) is not None
    ]
    return Claim("Alignment of activations makes the network more robust", (*matched, Finding(_convergence(dev))))


def _matched(plan: Plan, table: Table, compared: tuple[tuple[str, str], ...]) -> Finding:
    what = {
        "updates": "At matched updates (every variant drew the same number of crops)",
        "compute": "At matched compute (every variant put about "
        f"{_work(plan, table.rows[0].variant):.3g} batch sizes through the network in an update, forward and back)",
    }[table.matching]
    means = listed([f"{row.variant} {percent(row.top1[MEAN].mean)} %" for row in table.rows])
    comparisons = [table.compare(ours, theirs) for ours, theirs in compared]
    return Finding(
        f"{what}, the share of utterances named under interference was: {means}.",
        tuple(_compared(plan, comparison) for comparison in comparisons if comparison is not None),
    )


def _compared(plan: Plan, found: Comparison) -> str:
    top1 = found.top1[MEAN]
    verdict = {
        1: f"{found.variant} names more speakers than {found.reference}",
        -1: f"{found.variant} names fewer speakers than {found.reference}",
        0: f"{found.variant} and {found.reference} are not told apart",
    }[top1.sign]
    seeds = f"{interval(top1, 1, 100)} over {len(plan.seeds)} seeds" if len(plan.seeds) > 1 else "only one seed"
    ours, theirs = (_work(plan, name) for name in (found.variant, found.reference))
    work = "" if ours == theirs else f", for {ours:.3g} batch sizes of network work an update against {theirs:.3g}"
    return (
        f"{found.variant} minus {found.reference}: {signed(100 * top1.mean, 1)} points ({seeds}; "
        f"{interval(found.resampled, 1, 100)} over seeds and utterances){work}. So {verdict}."
    )


def _work(plan: Plan, variant: str) -> float:
    return plan.work(variant)


def _convergence(dev: Convergence) -> str:
    gains = listed([f"{variant} {difference(gain, 1, ' points')}" for variant, gain in dev.gains.items()])
    if all(math.isnan(gain.mean) for gain in dev.gains.values()):
        return "Too few evaluations on the dev split in the last quarter of the updates to say whether it still rose."
    verdict = (
        f"It still rose for {listed(dev.rising)}: trained longer, the order may change."
        if dev.rising
        else "No rise is told apart from none."
    )
    return f"Accuracy on the {dev.on} dev crops changed over the last quarter of the updates by: {gains}. {verdict}"


def deletion_claim(plan: Plan, found: Deleting) -> Claim:
    """Say whether augmented networks delete, and whether alignment makes them delete more, others' speech above all."""
    indices = listed([f"{variant} {number(found.index[variant, MEAN, _STAGE].mean)}" for variant in plan.variants])
    controls = listed([f"{variant} {number(found.clean[variant, MEAN, _STAGE].mean)}" for variant in plan.variants])
    top1 = listed([f"{variant} {percent(found.top1[variant, MEAN].mean)} %" for variant in plan.variants])
    measured = Finding(
        f"Deletion index of the maps of {_STAGE.upper()}, mean over kinds at 5 and 0 dB: {indices} (1 is blind to the "
        f"interference, lower keeps off it). Named rightly in the same mixtures: {top1}. On the same bins the maps of "
        f"the utterances without interference have: {controls}. Only what an index lies below that is a reaction to "
        f"the interference: {_reacted(plan, found, MEAN)}.",
        tuple(f"{LABELS[kind]}: {_reacted(plan, found, kind)}." for kind in found.kinds),
    )
    pairs = [
        (ours, theirs, kind)
        for theirs, kinds in (("clean", (MEAN,)), ("da", (MEAN, "speaker")), ("da-2x", (MEAN, "speaker")))
        for ours in (plan.variants if theirs == "clean" else (_ALIGNED,))
        for kind in kinds
    ]
    compared = Finding(
        "Between variants, the index, and what of it is a reaction to the interference:",
        tuple(_deleted(*pair, *changes) for pair in pairs if (changes := found.compare(*pair, _STAGE)) is not None),
    )
    return Claim("Augmented networks learn to delete", (measured, *([compared] if compared.points else [])))


def _reacted(plan: Plan, found: Deleting, kind: str) -> str:
    """Say which variants' maps move off the interference, onto it, or cannot be told to do either."""
    words = {-1: "moves off it", 1: "moves onto it", 0: "not told from staying where it was"}
    gaps = {variant: found.gap[variant, kind, _STAGE] for variant in plan.variants}
    parts = []
    for sign, verdict in words.items():
        some = [f"{variant} {signed(gap.mean)}" for variant, gap in gaps.items() if gap.sign == sign]
        if some:
            parts.append(f"the map of {listed(some)} {verdict}" if sign else f"{listed(some)} {verdict}")
    return "; ".join(parts)


def _deleted(ours: str, theirs: str, kind: str, index: Estimate, reaction: Estimate) -> str:
    lies = {1: "lies more on it", -1: "lies less on it", 0: "not told apart"}[index.sign]
    deletes = {1: "deletes less", -1: "deletes more", 0: "not told apart"}[reaction.sign]
    where = "" if kind == MEAN else f" under {LABELS[kind].lower()}s alone"
    return f"{ours} minus {theirs}{where}: {difference(index)}, {lies}; reaction {difference(reaction)}, {deletes}."


def faithfulness_claim(plan: Plan, found: Worth) -> Claim:
    """Say which maps the network itself agrees with, and whether they change when it forgets."""
    areas = listed([f"{method.method} {number(method.faithfulness)}" for method in found.methods])
    findings = (
        "Area under the insertion curve minus that under the deletion curve (the higher the more faithful), networks "
        f"of seed {plan.seeds[0]}: {areas}. {_ranking('the methods', found.methods)}",
        f"{_ranking('the fusions of stages', found.fusions)} The fused map that is shown takes "
        f"{listed([STAGES[stage].upper() for stage in FUSED_STAGES])}; the most faithful takes "
        f"{listed([STAGES[stage].upper() for stage in found.recommended])}.",
        _sanity(plan, found),
    )
    return Claim("The maps are faithful", tuple(map(Finding, findings)))


def _ranking(what: str, ranked: tuple[Ranked, ...]) -> str:
    """Say which of some methods is first, and from which the bootstrap over utterances tells it apart."""
    best, *others = ranked
    equal = [each.method for each in others if each.behind_interval[0] <= 0]
    low, high = best.interval
    told = f"not told apart from it: {listed(equal)}" if equal else "told apart from all others"
    return (
        f"Of {what}, {best.method} is the most faithful: {number(best.faithfulness)} ({number(low)} to {number(high)} "
        f"over utterances); {told}."
    )


def _sanity(plan: Plan, found: Worth) -> str:
    def mean(step: str, name: str) -> float:
        return float(np.nanmean([found.sanity[variant, step, name] for variant in plan.variants]))

    falls = listed([f"{name} {number(mean(STEPS[0], name))} → {number(mean(STEPS[-1], name))}" for name in SANITY_MAPS])
    sound = listed([f"{name} {number(mean(INPUT, name))}" for name in SANITY_MAPS])
    return (
        f"Sanity check: rank correlation with the original map when the {STEPS[0]} alone has new random weights → "
        f"when everything has: {falls}. A map that shows the network ends near zero. Correlation of the original map "
        f"with the log-mel itself: {sound}."
    )


def grid_claim(found: Worth) -> Claim:
    """Say whether there is a grid, and what tapping the last block's input does to it."""
    points = []
    for stage in STAGES:
        taps = {tap: grid for (of, tap), grid in found.grid_db.items() if of == stage}
        heights = listed([f"{grid_words(grid)} at the {tap.replace('-', ' ')}" for tap, grid in taps.items()])
        used = listed([tap.replace("-", " ") for tap in taps if found.used[stage, tap]])
        points.append(f"{stage.upper()}: {heights}; maps are taken at the {used}.")
    first = (
        "Power of the raw maps at half a cycle a row or column, where a convolution of stride 2 leaves its grid, over "
        "that beside it (mean of the variants, 95 % interval over seeds; at 0 dB or below there is no grid):"
    )
    return Claim("Strided convolutions leave a grid in the maps", (Finding(first, tuple(points)),))


def grid_words(grid: Estimate) -> str:
    """Write how far a grid stands out."""
    if math.isnan(grid.mean):
        return "not measured (the maps are too small)"
    verdict = {1: "a grid", -1: "no grid", 0: "not told from none"}[grid.sign]
    return f"{difference(grid, 1, ' dB')}, {verdict},"
