"""The report's tables of accuracy, convergence and calibration."""

from collections.abc import Sequence

from markupsafe import Markup

from speakerlens.training.evaluation.conditions import LABELS, SNRS_DB
from speakerlens.training.study.accuracy import MEAN, SAME_WORK, Accuracy, Comparison
from speakerlens.training.study.analysis import Study
from speakerlens.training.study.cells import Cell, Grid, change, heading, share, value
from speakerlens.training.study.words import interval, number, percent


def accuracy_tables(study: Study) -> list[Grid]:
    """Accuracies of all variants, and differences at matched updates and at matched compute."""
    found = study.accuracy
    names = {
        "updates": "Matched updates: both drew the same number of crops, in the same number of steps.",
        "compute": f"Matched compute: the network's work of both is the same within {100 * (1 - SAME_WORK):.0f} %.",
    }
    differences = [
        _differences(found.matched("updates"), names["updates"]),
        _differences(found.matched("compute"), names["compute"]),
    ]
    return [_accuracies(found), *(grid for grid in differences if grid.rows)]


def _accuracies(found: Accuracy) -> Grid:
    columns = list(found.rows[0].top1)
    rows = tuple(
        (row.variant, (f"{row.crops:.3g}", f"{row.work:.3g}", *(share(row.top1[column]) for column in columns)))
        for row in found.rows
    )
    caption = (
        "All variants: crops drawn for an update and work of the network in it, both in batch sizes; top-1 accuracy in "
        "percent, mean over seeds, with 95 % intervals over seeds. Rows of different work do not compare recipes."
    )
    return Grid(caption, ("variant", "crops", "work", *map(heading, columns)), rows)


def _differences(comparisons: Sequence[Comparison], what: str) -> Grid:
    first, *others = comparisons[0].top1 if comparisons else (MEAN,)
    rows = tuple(
        (
            f"{each.variant} minus {each.reference}",
            (
                f"{each.work:.3g}",
                change(each.top1[first], 1, 100),
                Markup('<span class="range">{}</span>').format(interval(each.resampled, 1, 100)),
                *(change(each.top1[column], 1, 100) for column in others),
            ),
        )
        for each in comparisons
    )
    caption = (
        f"{what} Work of the first over that of the second; differences in percentage points, paired by seed, with "
        "95 % intervals over seeds; bold where the interval leaves zero out. “Over both”: of the column before, the "
        "interval over seeds and utterances."
    )
    return Grid(caption, ("difference", "work", heading(first), "over both", *map(heading, others)), rows)


def cell_tables(study: Study) -> list[Grid]:
    """Accuracy by kind and ratio, and the mean of every seed."""
    kinds = study.findings.setting.kinds
    grids = []
    for kind in kinds:
        rows = tuple(
            (variant, tuple(share(study.accuracy.cells[variant, kind, snr_db]) for snr_db in SNRS_DB))
            for variant in study.plan.variants
        )
        headings = ("variant", *(f"{number(snr_db, 0)} dB" for snr_db in SNRS_DB))
        grids.append(Grid(f"{LABELS[kind]}: top-1 in percent, 95 % intervals over seeds.", headings, rows))
    means: tuple[tuple[str, tuple[Cell, ...]], ...] = tuple(
        (variant, tuple(percent(value) for value in values)) for variant, values in study.accuracy.by_seed.items()
    )
    headings = ("variant", *(f"seed {seed}" for seed in study.plan.seeds))
    return [*grids, Grid("Mean under interference of every seed, in percent.", headings, means)]


def gain_table(study: Study) -> Grid:
    """What the last quarter of the updates gained on the dev split."""
    rows = tuple((variant, (change(gain, 1),)) for variant, gain in study.convergence.gains.items())
    caption = (
        "Percentage points gained on the dev split over the last quarter of the updates (straight line), with 95 % "
        "intervals over seeds; bold where the interval leaves zero out."
    )
    return Grid(caption, ("variant", "gain"), rows)


def calibration_tables(study: Study) -> list[Grid]:
    """Temperature, calibration error and threshold of each variant."""
    found = study.calibrating.figures
    believed = Grid(
        "Expected calibration error (15 bins, percent) and negative log-likelihood (nats), as trained and with the "
        "temperature; 95 % intervals over seeds.",
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
            for variant, of in found.items()
        ),
    )
    names = ("equal_error", "false_acceptance", "miss", "misidentified")
    known = Grid(
        "Strangers, in percent: equal error rate, and at the threshold set on dev: strangers accepted, known speakers "
        "refused, known speakers accepted under somebody else's name; 95 % intervals over seeds.",
        ("variant", "threshold", "equal error", "strangers accepted", "known refused", "wrong name"),
        tuple(
            (variant, (value(of["threshold"], 3), *(share(of[name]) for name in names)))
            for variant, of in found.items()
        ),
    )
    changes = Grid(
        "Differences, paired by seed, with 95 % intervals; bold where the interval leaves zero out. Equal error rate "
        "and calibration error in percentage points; with the temperature.",
        ("difference", "equal error", "calibration error", "likelihood"),
        tuple(
            (
                f"{ours} minus {theirs}",
                (change(of["equal_error"], 1, 100), change(of["ece_after"], 1, 100), change(of["nll_after"])),
            )
            for (ours, theirs), of in study.calibrating.changes.items()
        ),
    )
    return [believed, known, *([changes] if changes.rows else [])]
