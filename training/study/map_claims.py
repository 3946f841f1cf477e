"""What the study's claims about saliency maps come to on this corpus: sentences as in `claims`."""

import math
from collections.abc import Iterator

import numpy as np

from speakerlens.training.evaluation.conditions import LABELS
from speakerlens.training.evaluation.intervals import Estimate
from speakerlens.training.evaluation.maps.attributions import FUSED
from speakerlens.training.evaluation.maps.localisation import OTHER_SPEAKER
from speakerlens.training.evaluation.maps.randomisation import INPUT, STEPS
from speakerlens.training.evaluation.maps.randomisation import MAPS as SANITY_MAPS
from speakerlens.training.evaluation.maps.ranking import Ranked
from speakerlens.training.model.network import STAGES
from speakerlens.training.model.saliency import FUSED_STAGES
from speakerlens.training.study.accuracy import MEAN
from speakerlens.training.study.claims import Claim, Finding
from speakerlens.training.study.deleting import Deleting
from speakerlens.training.study.locating import Locating
from speakerlens.training.study.plan import Plan
from speakerlens.training.study.words import counted, difference, listed, map_name, number, percent, signed, told
from speakerlens.training.study.worth import Worth

FEWEST_UTTERANCES = 10
"""With fewer, nothing is said of which map is the most faithful: a bootstrap of a handful knows too little."""

_STAGE = "s4"
_SPEECH = "speaker"  # the kind that is speech as well


def deletion_claim(plan: Plan, found: Deleting, located: Locating) -> Claim:
    """Say whether augmented networks delete, and whether alignment makes them delete more, others' speech above all."""
    findings = (_measured(plan, found), _deletions(plan, found), *_turns(plan, located))
    return Claim("Augmented networks learn to delete", tuple(found for found in findings if found is not None))


def _pairs(plan: Plan) -> Iterator[tuple[str, str]]:
    """What is compared, where it is there: all with `clean`, and what aligns with what does not."""
    yield from ((variant, "clean") for variant in plan.variants if variant != "clean")
    yield from (("act-da", "da"), ("act-da", "da-2x"), ("act-pair", "da-pair"))


def _measured(plan: Plan, found: Deleting) -> Finding:
    indices = listed([f"{variant} {number(found.index[variant, MEAN, _STAGE].mean)}" for variant in plan.variants])
    controls = listed([f"{variant} {number(found.clean[variant, MEAN, _STAGE].mean)}" for variant in plan.variants])
    top1 = listed([f"{variant} {percent(found.top1[variant, MEAN].mean)} %" for variant in plan.variants])
    return Finding(
        f"Deletion index of the maps of {map_name(_STAGE)}, mean over kinds at 5 and 0 dB: {indices} (1 is blind to "
        f"the interference, lower keeps off it). Named rightly in the same mixtures: {top1}. On the same bins the maps "
        f"of the utterances without interference have: {controls}. Only what an index lies below that is a reaction to "
        f"the interference: {_reacted(plan, found, MEAN)}.",
        tuple(f"{LABELS[kind]}: {_reacted(plan, found, kind)}." for kind in found.kinds),
    )


def _reacted(plan: Plan, found: Deleting, kind: str) -> str:
    """Say for which variants the map moves off the interference, onto it, or cannot be told to do either."""
    words = {-1: "the map moves off it", 1: "the map moves onto it", 0: "not told from staying where it was"}
    groups: dict[str, list[str]] = {}
    for variant in plan.variants:
        gap = found.gap[variant, kind, _STAGE]
        groups.setdefault(told(gap, words), []).append(f"{variant} ({signed(gap.mean)})")
    return "; ".join(f"{verdict} for {listed(some)}" for verdict, some in groups.items())


def _deletions(plan: Plan, found: Deleting) -> Finding | None:
    """Compare the variants' deletion; None if no two of them are to be compared."""
    kinds = (MEAN, *(kind for kind in found.kinds if kind == _SPEECH))
    points = tuple(
        _deleted(ours, theirs, kind, *changes)
        for ours, theirs in _pairs(plan)
        for kind in (kinds[:1] if theirs == "clean" else kinds)
        if (changes := found.compare(ours, theirs, kind, _STAGE)) is not None
    )
    title = f"Between variants: the reaction, by which deletion is judged, and the index of {map_name(_STAGE)} itself."
    return Finding(title, points) if points else None


def _deleted(ours: str, theirs: str, kind: str, index: Estimate, reaction: Estimate) -> str:
    deletes = told(reaction, {1: "deletes less", -1: "deletes more", 0: "not told apart"})
    lies = told(index, {1: "lies more on it", -1: "lies less on it", 0: "not told apart"})
    where = "" if kind == MEAN else f" under {LABELS[kind].lower()}s alone"
    reacts = f"reaction {difference(reaction)}, {deletes}"
    return f"{ours} minus {theirs}{where}: {reacts}; index {difference(index)}, {lies}."


def _turns(plan: Plan, found: Locating) -> tuple[Finding | None, ...]:
    """Say whether maps pick the turns of whom they explain, and which variants' do better; nothing without turns."""
    if not found.frames:
        return ()
    picks = {
        1: "picks whom it explains",
        -1: "picks others rather than whom it explains",
        0: "not told from the map of another speaker",
    }
    better = {1: "picks better", -1: "picks worse", 0: "not told apart"}
    areas = listed([f"{variant} {number(found.frames[variant, FUSED].mean)}" for variant in plan.variants])
    others = listed([f"{variant} {number(found.frames[variant, OTHER_SPEAKER].mean)}" for variant in plan.variants])
    changes = tuple(
        f"{ours} minus {theirs}: {difference(change)}, {told(change, better)}."
        for ours, theirs in _pairs(plan)
        if (change := found.compare(ours, theirs, FUSED)) is not None
    )
    return (
        Finding(
            "Where target, somebody else and target talk in turn, the area under the ROC curve of the target's fused "
            f"map, for his frames against the other's, is: {areas} (1 is perfect, 0.5 is chance). The map of another "
            f"speaker has: {others}. What lies between the two is about whom a map explains:",
            tuple(f"{v}: {difference(found.beyond[v])}, {told(found.beyond[v], picks)}." for v in plan.variants),
        ),
        Finding("Between variants, the area of the target's fused map:", changes) if changes else None,
    )


def faithfulness_claim(plan: Plan, found: Worth) -> Claim:
    """Say which maps the network itself agrees with, and whether they change when it forgets."""
    areas = listed([f"{map_name(method.method)} {number(method.faithfulness)}" for method in found.methods])
    shown = listed([STAGES[stage].upper() for stage in FUSED_STAGES])
    findings = [
        "Area under the insertion curve minus that under the deletion curve (the higher the more faithful), networks "
        f"of seed {plan.seeds[0]}, {counted(found.utterances, 'utterance')}: {areas}."
    ]
    if found.utterances < FEWEST_UTTERANCES:
        findings.append(
            f"No verdict: it takes {FEWEST_UTTERANCES} utterances at least. The fused map that is shown takes {shown}."
        )
    else:
        findings.append(_ranking("the methods", found.methods))
        findings.append(
            f"{_ranking('the fusions of stages', found.fusions)} The fused map that is shown takes {shown}; the most "
            f"faithful takes {listed([STAGES[stage].upper() for stage in found.recommended])}."
        )
    return Claim("The maps are faithful", tuple(map(Finding, (*findings, _sanity(plan, found)))))


def _ranking(what: str, ranked: tuple[Ranked, ...]) -> str:
    """Say which of some methods is first, and from which the bootstrap over utterances tells it apart."""
    best, *others = ranked
    equal = [map_name(each.method) for each in others if each.behind_interval[0] <= 0]
    low, high = best.interval
    apart = f"not told apart from it: {listed(equal)}" if equal else "told apart from all others"
    return (
        f"Of {what}, {map_name(best.method)} is the most faithful: {number(best.faithfulness)} ({number(low)} to "
        f"{number(high)} over utterances); {apart}."
    )


def _sanity(plan: Plan, found: Worth) -> str:
    def mean(step: str, name: str) -> float:
        return float(np.nanmean([found.sanity[variant, step, name] for variant in plan.variants]))

    falls = [f"{map_name(n)} {number(mean(STEPS[0], n))} → {number(mean(STEPS[-1], n))}" for n in SANITY_MAPS]
    sound = [f"{map_name(n)} {number(mean(INPUT, n))}" for n in SANITY_MAPS]
    return (
        f"Sanity check: rank correlation with the original map when the {STEPS[0]} alone has new random weights → "
        f"when everything has: {listed(falls)}. A map that shows the network ends near zero. Correlation of the "
        f"original map with the log-mel itself: {listed(sound)}."
    )


def grid_claim(found: Worth) -> Claim:
    """Say whether there is a grid, and what tapping the last block's input does to it."""
    points = []
    for stage in STAGES:
        taps = {tap: grid for (of, tap), grid in found.grid_db.items() if of == stage}
        heights = "; ".join(f"at the {tap.replace('-', ' ')} {_grid(grid)}" for tap, grid in taps.items())
        used = listed([tap.replace("-", " ") for tap in taps if found.used[stage, tap]])
        points.append(f"{stage.upper()}: {heights}. Maps are taken at the {used}.")
    first = (
        "Power of the raw maps at half a cycle a row or column, where a convolution of stride 2 leaves its grid, over "
        "that beside it (mean of the variants, 95 % interval over seeds; at 0 dB or below there is no grid):"
    )
    return Claim("Strided convolutions leave a grid in the maps", (Finding(first, tuple(points)),))


def _grid(found: Estimate) -> str:
    """Write how far a grid stands out."""
    if math.isnan(found.mean):
        return "not measured (the maps are too small)"
    return f"{difference(found, 1, ' dB')}, {told(found, {1: 'a grid', -1: 'no grid', 0: 'not told from none'})}"
