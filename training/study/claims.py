"""What the study's claims come to on this corpus: sentences whose words follow from the intervals.

A difference counts as shown where its interval over seeds (95 %, Student's t) leaves zero out, and as not told apart
where it does not; nothing here knows what ought to come out.
"""

import math
from dataclasses import dataclass

from training.conditions import LABELS
from training.objectives import VARIANTS
from training.study.accuracy import MEAN, Accuracy, Comparison, Matching
from training.study.convergence import Convergence
from training.study.deleting import Deleting
from training.study.plan import Plan
from training.study.words import difference, interval, listed, number, percent, signed

_ALIGNED = "act-da"
_STAGE = "s4"


@dataclass(frozen=True)
class Claim:
    """A claim and what was found: one paragraph a string."""

    title: str
    paragraphs: tuple[str, ...]


def accuracy_claim(plan: Plan, found: Accuracy, dev: Convergence) -> Claim:
    """Say whether `act-da` is more robust, what the alignment itself does, and what the same compute buys elsewhere."""
    references: dict[Matching, tuple[str, ...]] = {"updates": ("da", "da-pair"), "compute": ("da-2x", "da-pair")}
    texts = [_matched(plan, found, matching, others) for matching, others in references.items()]
    paragraphs = [text for text in texts if text]
    return Claim("Alignment of activations makes the network more robust", (*paragraphs, _convergence(plan, dev)))


def _matched(plan: Plan, found: Accuracy, matching: Matching, others: tuple[str, ...]) -> str:
    table = found.table(matching)
    if table is None:
        return ""
    what = {
        "updates": "At matched updates (every variant drew the same number of crops)",
        "compute": "At matched compute (every variant put "
        f"{VARIANTS[table.rows[0].variant].passes} batch sizes through the network in an update)",
    }[matching]
    means = listed([f"{row.variant} {percent(row.top1[MEAN].mean)} %" for row in table.rows])
    sentences = [f"{what}, the share of utterances named under interference was: {means}."]
    for other in others:
        comparison = table.compare(_ALIGNED, other)
        if comparison is not None:
            sentences.append(_compared(plan, comparison))
    return " ".join(sentences)


def _compared(plan: Plan, found: Comparison) -> str:
    top1 = found.top1[MEAN]
    verdict = {
        1: f"{found.variant} names more speakers than {found.reference}",
        -1: f"{found.variant} names fewer speakers than {found.reference}",
        0: f"{found.variant} and {found.reference} are not told apart",
    }[top1.sign]
    seeds = f"{interval(top1, 1, 100)} over {len(plan.seeds)} seeds" if len(plan.seeds) > 1 else "only one seed"
    ours, theirs = (VARIANTS[name].passes for name in (found.variant, found.reference))
    work = "" if ours == theirs else f", for {ours} batch sizes of network work an update against {theirs}"
    return (
        f"{found.variant} minus {found.reference}: {signed(100 * top1.mean, 1)} points ({seeds}; "
        f"{interval(found.resampled, 1, 100)} over seeds and utterances){work}. So {verdict}."
    )


def _convergence(plan: Plan, dev: Convergence) -> str:
    if dev.on is None:
        return "The corpus has no dev split, so whether training had converged is not known."
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
    paragraphs = [
        f"Deletion index of the maps of {_STAGE.upper()}, mean over kinds at 5 and 0 dB: {indices} (1 is blind to the "
        f"interference, lower keeps off it). Named rightly in the same mixtures: {top1}. On the same bins the maps of "
        f"the utterances without interference have: {controls}; only what an index lies below that is a reaction to "
        "the interference."
    ]
    for theirs, kinds in (("clean", (MEAN,)), ("da", (MEAN, "speaker")), ("da-pair", (MEAN, "speaker"))):
        others = [_ALIGNED] if theirs != "clean" else [variant for variant in plan.variants if variant != "clean"]
        sentences = [
            _deleted(found, ours, theirs, kind)
            for ours in others
            for kind in kinds
            if (ours, theirs, kind, _STAGE) in found.changes or (theirs, ours, kind, _STAGE) in found.changes
        ]
        if sentences:
            paragraphs.append(" ".join(sentences))
    return Claim("Augmented networks learn to delete", tuple(paragraphs))


def _deleted(found: Deleting, ours: str, theirs: str, kind: str) -> str:
    change = found.change(ours, theirs, kind, _STAGE)
    verdict = {1: "it deletes less", -1: "it deletes more", 0: "the two are not told apart"}[change.sign]
    where = "" if kind == MEAN else f" under {LABELS[kind].lower()}s alone"
    return f"{ours} minus {theirs}{where}: {difference(change)}, so {verdict}."
