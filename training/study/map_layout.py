"""The report's tables of what was measured of the maps."""

from markupsafe import Markup

from speakerlens.training.evaluation.intervals import Estimate
from speakerlens.training.evaluation.maps.attributions import FUSED
from speakerlens.training.evaluation.maps.deletion import MAPS
from speakerlens.training.evaluation.maps.localisation import MAPS as TURN_MAPS
from speakerlens.training.evaluation.maps.localisation import OTHER_SPEAKER
from speakerlens.training.evaluation.maps.randomisation import INPUT, STEPS
from speakerlens.training.evaluation.maps.randomisation import MAPS as SANITY_MAPS
from speakerlens.training.evaluation.maps.ranking import Ranked
from speakerlens.training.model.network import STAGES
from speakerlens.training.study.accuracy import MEAN
from speakerlens.training.study.analysis import Study
from speakerlens.training.study.cells import Cell, Grid, cell, change, heading, value
from speakerlens.training.study.words import map_name, number, percent, range_of


def deletion_tables(study: Study) -> list[Grid]:
    """Deletion indices beside the accuracy, by kind and by stage."""
    found, variants = study.deleting, study.plan.variants
    kinds = (MEAN, *study.findings.setting.kinds)
    by_kind = [
        Grid(
            f"Deletion index of {'the fused map' if name == FUSED else name.upper()} by kind, mean of 5 and 0 dB, with "
            "95 % intervals over seeds; beside it, in percent, how many were named rightly in the same mixtures.",
            ("variant", *map(heading, kinds)),
            tuple(
                (variant, tuple(_beside(found.index[variant, k, name], found.top1[variant, k].mean) for k in kinds))
                for variant in variants
            ),
        )
        for name in (STAGES[-1], FUSED)
    ]
    reaction = Grid(
        f"Deletion index of {STAGES[-1].upper()} minus that of the map of the same utterance without interference, on "
        "the same bins; bold where the interval leaves zero out. Below zero, the map moves off the interference.",
        ("variant", *map(heading, kinds)),
        tuple((variant, tuple(change(found.gap[variant, kind, STAGES[-1]]) for kind in kinds)) for variant in variants),
    )
    by_stage = Grid(
        "Deletion index by map, mean over kinds; below it that of the map of the same utterance without interference, "
        "on the same bins. “S4-raw” is S4 not interpolated; “energy” is no map but the loudness of the mixture.",
        ("variant", *(map_name(name) for name in MAPS)),
        tuple(
            (
                variant,
                tuple(
                    cell(
                        number(found.index[variant, MEAN, name].mean),
                        f"without {number(found.clean[variant, MEAN, name].mean)}",
                        False,
                    )
                    for name in MAPS
                ),
            )
            for variant in variants
        ),
    )
    pairs = dict.fromkeys(key[:2] for key in found.changes)
    reactions, changes = (
        Grid(
            f"{what} Paired by seed, with 95 % intervals; bold where the interval leaves zero out.",
            ("difference", *map(heading, kinds)),
            tuple(
                (f"{ours} minus {theirs}", tuple(change(of[ours, theirs, kind, STAGES[-1]]) for kind in kinds))
                for ours, theirs in pairs
            ),
        )
        for what, of in (
            (
                f"Differences of that reaction of {STAGES[-1].upper()} between variants, by which deletion is judged: "
                "below zero, the first deletes more.",
                found.reactions,
            ),
            (
                f"Differences of the deletion index of {STAGES[-1].upper()} itself: below zero, the first lies less on "
                "the interference, be it that it would not look there anyway.",
                found.changes,
            ),
        )
    )
    return [*by_kind, reaction, *([reactions, changes] if pairs else []), by_stage]


def _beside(index: Estimate, top1: float) -> Markup:
    return Markup('{} <span class="range">{} %</span>{}').format(
        number(index.mean), percent(top1), Markup('<br><span class="range">{}</span>').format(range_of(index))
    )


def turn_tables(study: Study) -> list[Grid]:
    """How well each map picks the target's turns, of frames, between variants, and of bins; none without turns."""
    found, variants = study.locating, study.plan.variants
    if not found.frames:
        return []
    beyond = (f"{FUSED} minus {OTHER_SPEAKER}", tuple(change(found.beyond[variant]) for variant in variants))
    caption = "Area under the ROC curve of {}, mean over utterances, with 95 % intervals over seeds{}."
    frames, bins = (
        tuple((map_name(name), tuple(value(areas[variant, name]) for variant in variants)) for name in TURN_MAPS)
        for areas in (found.frames, found.bins)
    )
    between = Grid(
        "Differences of the area of frames between variants, paired by seed, with 95 % intervals; bold where the "
        "interval leaves zero out. Above zero: the first picks the target's turns better.",
        ("difference", *map(map_name, TURN_MAPS)),
        tuple(
            (f"{ours} minus {theirs}", tuple(change(found.changes[ours, theirs, name]) for name in TURN_MAPS))
            for ours, theirs in dict.fromkeys(key[:2] for key in found.changes)
        ),
    )
    bold = "; the last line's differences are bold where the interval leaves zero out"
    return [
        Grid(caption.format("frames (the map summed over mel)", bold), ("map", *variants), (*frames, beyond)),
        *([between] if between.rows else []),
        Grid(caption.format("single bins", ""), ("map", *variants), bins),
    ]


def faithful_tables(study: Study) -> list[Grid]:
    """How faithful each method is, and each fusion of stages."""
    found, variants = study.worth, study.plan.variants
    by_variant = {
        (variant, each.method): each.faithfulness for variant, ranked in found.by_variant.items() for each in ranked
    }

    def table(what: str, ranked: tuple[Ranked, ...]) -> Grid:
        return Grid(
            f"{what}, the most faithful first: areas under the curves of the true speaker's probability, their "
            "difference (the higher the more faithful), how far behind the first that is (bold where the interval "
            "leaves zero out), and the difference in each variant alone. Intervals by bootstrap over utterances.",
            ("map", "deletion", "insertion", "insertion minus deletion", "behind the first", *variants),
            tuple(
                (map_name(each.method), _ranked(each, [by_variant[v, each.method] for v in variants]))
                for each in ranked
            ),
        )

    return [table("Methods", found.methods), table("Fusions of LayerCAM's stages", found.fusions)]


def _ranked(found: Ranked, by_variant: list[float]) -> tuple[Cell, ...]:
    low, high = found.interval
    least, most = found.behind_interval
    behind = cell(number(found.behind), f"{number(least)} to {number(most)}", least > 0) if found.behind else ""
    return (
        number(found.deletion),
        number(found.insertion),
        cell(number(found.faithfulness), f"{number(low)} to {number(high)}", False),
        behind,
        *map(number, by_variant),
    )


def sanity_tables(study: Study) -> list[Grid]:
    """How like the original map is while more and more of the network forgets; a table a variant."""
    found = study.worth.sanity
    return [
        Grid(
            f"{variant}: rank correlation with the original map once everything down to the part has new weights; "
            "last, of the original map with the log-mel itself.",
            ("map", *map(map_name, STEPS), "with the log-mel"),
            tuple(
                (map_name(name), tuple(number(found[variant, step, name]) for step in (*STEPS, INPUT)))
                for name in SANITY_MAPS
            ),
        )
        for variant in study.plan.variants
    ]


def grid_table(study: Study) -> Grid:
    """How far the grid stands out at each tap of each stage."""
    found = study.worth
    return Grid(
        "Power of the raw maps of clean utterances at half a cycle a row or column over that beside it, in decibels "
        "(at 0 or below there is no grid), and the grid's height: the spread of the means of the four positions of a "
        "2x2 cell over their mean. Mean of the variants, 95 % intervals over seeds.",
        ("stage", "tap", "maps taken here", "grid (dB)", "height"),
        tuple(
            (
                stage.upper(),
                (
                    tap.replace("-", " "),
                    "yes" if found.used[stage, tap] else "",
                    value(grid, 1),
                    value(found.spread[stage, tap]),
                ),
            )
            for (stage, tap), grid in found.grid_db.items()
        ),
    )
