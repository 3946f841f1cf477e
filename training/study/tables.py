"""The report's tables."""

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from markupsafe import Markup

from speakerlens.measures.listening import Listened
from speakerlens.training.evaluation.conditions import LABELS, SNRS_DB
from speakerlens.training.evaluation.formatting import Entry, Table, entry, map_name, number, percent
from speakerlens.training.evaluation.intervals import Estimate
from speakerlens.training.evaluation.maps.attributions import FUSED
from speakerlens.training.evaluation.maps.deletion import MAPS
from speakerlens.training.evaluation.maps.localisation import MAPS as LOCALISATION_MAPS
from speakerlens.training.evaluation.maps.localisation import OTHER_SPEAKER
from speakerlens.training.evaluation.maps.randomisation import INPUT, STEPS
from speakerlens.training.evaluation.maps.randomisation import MAPS as SANITY_MAPS
from speakerlens.training.evaluation.maps.ranking import Ranked
from speakerlens.training.model.network import STAGES
from speakerlens.training.study.accuracy import MEAN, SAME_WORK, Accuracy, Comparison
from speakerlens.training.study.analysis import Study
from speakerlens.training.study.formatting import change, difference_interval, heading, share, value, value_interval

_INTERVALS = "95 % intervals over seeds"
_PAIRED = f"Paired by seed, with {_INTERVALS}; bold where the interval excludes zero."


def accuracy_tables(study: Study) -> list[Table]:
    """Return accuracies of all variants, differences at matched updates and compute, and unmatched pairs."""
    results = study.accuracy
    names = {
        "updates": "Matched updates: the same number of crops in the same number of steps.",
        "compute": f"Matched compute: the same network work within {100 * (1 - SAME_WORK):.0f} %.",
    }
    differences = [
        _differences(results.matched("updates"), names["updates"]),
        _differences(results.matched("compute"), names["compute"]),
    ]
    return [_accuracies(results), *(table for table in (*differences, _unmatched(results)) if table.rows)]


def _accuracies(results: Accuracy) -> Table:
    columns = list(results.rows[0].top1)
    rows = tuple(
        (row.variant, (f"{row.crops:.3g}", f"{row.work:.3g}", *(share(row.top1[column]) for column in columns)))
        for row in results.rows
    )
    caption = (
        "All variants: crops and network work per update, both in batch sizes; top-1 accuracy in percent, mean over "
        f"seeds, with {_INTERVALS}. Rows of different work do not compare recipes."
    )
    return Table(caption, ("variant", "crops", "work", *map(heading, columns)), rows)


def _differences(comparisons: Sequence[Comparison], what: str) -> Table:
    first, *others = comparisons[0].top1 if comparisons else (MEAN,)
    rows = tuple(
        (
            f"{each.variant} − {each.reference}",
            (
                f"{each.work:.3g}",
                change(each.top1[first], 1, 100),
                Markup('<span class="range">{}</span>').format(difference_interval(each.resampled, 1, 100)),
                *(change(each.top1[column], 1, 100) for column in others),
            ),
        )
        for each in comparisons
    )
    caption = (
        f"{what} Ratio of the work; differences in percentage points. {_PAIRED} “Over both”: the interval of the "
        "column before over seeds and utterances."
    )
    return Table(caption, ("difference", "work", heading(first), "over both", *map(heading, others)), rows)


def _unmatched(results: Accuracy) -> Table:
    rows = tuple(
        (f"{each.variant} over {each.reference}", (f"{each.crops:.3g}", f"{each.work:.3g}"))
        for each in results.unmatched
    )
    caption = "Pairs that match neither in updates nor in compute, and are not compared: ratios of crops and of work."
    return Table(caption, ("pair", "crops", "work"), rows)


def condition_tables(study: Study) -> list[Table]:
    """Return accuracy by kind and ratio, and the mean of every seed."""
    kinds = study.measured.evaluation_set.kinds
    tables = []
    for kind in kinds:
        rows = tuple(
            (variant, tuple(share(study.accuracy.by_condition[variant, kind, snr_db]) for snr_db in SNRS_DB))
            for variant in study.plan.variants
        )
        headings = ("variant", *(f"{number(snr_db, 0)} dB" for snr_db in SNRS_DB))
        tables.append(Table(f"{LABELS[kind]}: top-1 in percent, {_INTERVALS}.", headings, rows))
    means: tuple[tuple[str, tuple[Entry, ...]], ...] = tuple(
        (variant, tuple(percent(value) for value in values)) for variant, values in study.accuracy.by_seed.items()
    )
    headings = ("variant", *(f"seed {seed}" for seed in study.plan.seeds))
    return [*tables, Table("Mean under interference of every seed, in percent.", headings, means)]


def gain_table(study: Study) -> Table:
    """Return the gain on the dev split over the last quarter of the updates."""
    rows = tuple((variant, (change(gain, 1),)) for variant, gain in study.convergence.gains.items())
    caption = (
        "Percentage points gained on the dev split over the last quarter of the updates (straight line), with "
        f"{_INTERVALS}; bold where the interval excludes zero."
    )
    return Table(caption, ("variant", "gain"), rows)


def deletion_tables(study: Study) -> list[Table]:
    """Return deletion indices with the accuracy, by kind and by stage, and the reactions."""
    results, variants = study.deletion, study.plan.variants
    kinds = (MEAN, *study.measured.evaluation_set.kinds)
    by_kind = [
        Table(
            f"Deletion index of {'the fused map' if name == FUSED else name.upper()} by kind, mean of 5 and 0 dB, with "
            f"{_INTERVALS}; beside it, top-1 in percent on the same mixtures.",
            ("variant", *map(heading, kinds)),
            tuple(
                (variant, tuple(_beside(results.index[variant, k, name], results.top1[variant, k].mean) for k in kinds))
                for variant in variants
            ),
        )
        for name in (STAGES[-1], FUSED)
    ]
    reaction = Table(
        f"Deletion index of {STAGES[-1].upper()} minus that of the map of the same utterance without interference, on "
        "the same bins (the reaction); bold where the interval excludes zero. Below zero, the map avoids the "
        "interference.",
        ("variant", *map(heading, kinds)),
        tuple(
            (variant, tuple(change(results.gap[variant, kind, STAGES[-1]]) for kind in kinds)) for variant in variants
        ),
    )
    by_stage = Table(
        "Deletion index by map, mean over kinds; below it that of the map of the same utterance without interference, "
        "on the same bins. “S4-raw” is S4 without interpolation; “energy” is the loudness of the mixture.",
        ("variant", *(map_name(name) for name in MAPS)),
        tuple(
            (
                variant,
                tuple(
                    entry(
                        number(results.index[variant, MEAN, name].mean),
                        f"without {number(results.clean[variant, MEAN, name].mean)}",
                        False,
                    )
                    for name in MAPS
                ),
            )
            for variant in variants
        ),
    )
    pairs = dict.fromkeys(key[:2] for key in results.changes)
    reactions, changes = (
        Table(
            f"{what} {_PAIRED}",
            ("difference", *map(heading, kinds)),
            tuple(
                (f"{ours} − {theirs}", tuple(change(of[ours, theirs, kind, STAGES[-1]]) for kind in kinds))
                for ours, theirs in pairs
            ),
        )
        for what, of in (
            (
                f"Differences of the reaction of {STAGES[-1].upper()}: below zero, the first deletes more.",
                results.reactions,
            ),
            (
                f"Differences of the deletion index of {STAGES[-1].upper()} itself: below zero, the first has less "
                "saliency on the interference, with or without a reaction to it.",
                results.changes,
            ),
        )
    )
    return [*by_kind, reaction, *([reactions, changes] if pairs else []), by_stage]


def _beside(index: Estimate, top1: float) -> Markup:
    return Markup('{} <span class="range">{} %</span>{}').format(
        number(index.mean), percent(top1), Markup('<br><span class="range">{}</span>').format(value_interval(index))
    )


def localisation_tables(study: Study) -> list[Table]:
    """Return areas of frames, their differences between variants, and areas of bins; none without other talkers."""
    results, variants = study.localisation, study.plan.variants
    if not results.frames:
        return []
    beyond = (f"{FUSED} − {OTHER_SPEAKER}", tuple(change(results.beyond[variant]) for variant in variants))
    caption = "Area under the ROC curve of {}, mean over utterances, with " + _INTERVALS + "{}."
    frames, bins = (
        tuple(
            (map_name(name), tuple(value(areas[variant, name]) for variant in variants)) for name in LOCALISATION_MAPS
        )
        for areas in (results.frames, results.bins)
    )
    between = Table(
        f"Differences of the area of frames between variants; above zero, the first separates better. {_PAIRED}",
        ("difference", *map(map_name, LOCALISATION_MAPS)),
        tuple(
            (f"{ours} − {theirs}", tuple(change(results.changes[ours, theirs, name]) for name in LOCALISATION_MAPS))
            for ours, theirs in dict.fromkeys(key[:2] for key in results.changes)
        ),
    )
    bold = "; the last row is bold where the interval excludes zero"
    return [
        Table(caption.format("frames (the map summed over mel)", bold), ("map", *variants), (*frames, beyond)),
        *([between] if between.rows else []),
        Table(caption.format("single bins", ""), ("map", *variants), bins),
    ]


def faithfulness_tables(study: Study) -> list[Table]:
    """Return the faithfulness of each method, and of each fusion of stages."""
    results, variants = study.map_quality, study.plan.variants
    by_variant = {
        (variant, each.method): each.faithfulness for variant, ranked in results.by_variant.items() for each in ranked
    }

    def table(what: str, ranked: tuple[Ranked, ...]) -> Table:
        return Table(
            f"{what}, the most faithful first: areas under the curves of the true speaker's probability, their "
            "difference (the higher the more faithful), the distance to the first (bold where the interval excludes "
            "zero), and the difference in each variant alone. Intervals by bootstrap over utterances.",
            ("map", "deletion", "insertion", "insertion minus deletion", "behind the first", *variants),
            tuple(
                (map_name(each.method), _ranked(each, [by_variant[v, each.method] for v in variants]))
                for each in ranked
            ),
        )

    return [table("Methods", results.methods), table("Fusions of LayerCAM's stages", results.fusions)]


def listening_tables(study: Study) -> list[Table]:
    """Return the faithfulness of each map by its sound; a table per variant."""
    tables = []
    for run, rows in study.measured.listening.items():
        by_map: dict[str, list[Listened]] = {}
        for row in rows:
            by_map.setdefault(row.method, []).append(row.measures)
        names = [field.name for field in fields(Listened)]
        means = {
            name: [float(np.mean([getattr(each, measure) for each in measures])) for measure in names]
            for name, measures in by_map.items()
        }
        caption = (
            f"{run.variant}: by the sound that each map keeps and removes, mean over the conditions. AI, share of "
            "utterances whose kept sound has a higher probability; AD, drop in probability; AG, gain; FF, probability "
            "minus that of the removed sound; Fid-In, share with the same class. All but AD are better when higher."
        )
        rows_of_table = tuple((map_name(name), tuple(map(number, of))) for name, of in means.items())
        tables.append(Table(caption, ("map", "AI", "AD", "AG", "FF", "Fid-In"), rows_of_table))
    return tables


def _ranked(results: Ranked, by_variant: list[float]) -> tuple[Entry, ...]:
    low, high = results.interval
    least, most = results.behind_interval
    behind = entry(number(results.behind), f"{number(least)} to {number(most)}", least > 0) if results.behind else ""
    return (
        number(results.deletion),
        number(results.insertion),
        entry(number(results.faithfulness), f"{number(low)} to {number(high)}", False),
        behind,
        *map(number, by_variant),
    )


def sanity_tables(study: Study) -> list[Table]:
    """Return the similarity to the original map along the randomisation cascade; a table per variant."""
    results = study.map_quality.sanity
    return [
        Table(
            f"{variant}: rank correlation with the original map, with everything randomised down to the part; "
            "last, of the original map with the log-mel itself.",
            ("map", *map(map_name, STEPS), "with the log-mel"),
            tuple(
                (map_name(name), tuple(number(results[variant, step, name]) for step in (*STEPS, INPUT)))
                for name in SANITY_MAPS
            ),
        )
        for variant in study.plan.variants
    ]


def grid_table(study: Study) -> Table:
    """Return power and height of the grid at each tap of each stage."""
    results = study.map_quality
    return Table(
        "Power of the raw maps of clean utterances at half a cycle per row or column over that beside it, in decibels "
        "(at 0 or below there is no grid), and the grid's height: the spread of the means of the four positions of a "
        "2x2 cell over their mean. Mean of the variants, " + _INTERVALS + ".",
        ("stage", "tap", "maps taken here", "grid (dB)", "height"),
        tuple(
            (
                stage.upper(),
                (
                    tap.replace("-", " "),
                    "yes" if results.used[stage, tap] else "",
                    value(grid, 1),
                    value(results.spread[stage, tap]),
                ),
            )
            for (stage, tap), grid in results.grid_db.items()
        ),
    )


def calibration_tables(study: Study) -> list[Table]:
    """Return temperature, calibration error and error rates at the threshold of each variant."""
    results = study.calibration.figures
    probabilities = Table(
        "Expected calibration error (15 bins, percent) and negative log-likelihood (nats), as trained and with the "
        f"temperature; {_INTERVALS}.",
        ("variant", "temperature", "error", "error with it", "likelihood", "likelihood with it"),
        tuple(
            (
                variant,
                (
                    value(of["temperature"]),
                    *(share(of[name]) for name in ("ece_before", "ece_after")),
                    *(value(of[name]) for name in ("nll_before", "nll_after")),
                ),
            )
            for variant, of in results.items()
        ),
    )
    names = ("equal_error", "false_acceptance", "miss", "misidentified")
    detection = Table(
        "Open-set detection, in percent: equal error rate, and at the threshold set on dev: out-of-set speakers "
        f"accepted, known speakers missed, known speakers accepted as another one; {_INTERVALS}.",
        ("variant", "threshold", "equal error", "false acceptance", "miss", "misidentified"),
        tuple(
            (variant, (value(of["threshold"], 3), *(share(of[name]) for name in names)))
            for variant, of in results.items()
        ),
    )
    changes = Table(
        f"Differences, with the temperature; equal error rate and calibration error in percentage points. {_PAIRED}",
        ("difference", "equal error", "calibration error", "likelihood"),
        tuple(
            (
                f"{ours} − {theirs}",
                (change(of["equal_error"], 1, 100), change(of["ece_after"], 1, 100), change(of["nll_after"])),
            )
            for (ours, theirs), of in study.calibration.changes.items()
        ),
    )
    return [probabilities, detection, *([changes] if changes.rows else [])]
