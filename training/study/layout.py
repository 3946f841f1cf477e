"""The report's tables of accuracy, convergence and calibration."""

from markupsafe import Markup

from training.conditions import LABELS, SNRS_DB
from training.study.accuracy import Table
from training.study.analysis import Study
from training.study.cells import Cell, Grid, change, heading, share, value
from training.study.words import interval, number, percent


def accuracy_tables(study: Study) -> list[Grid]:
    """Accuracies and their differences, at matched updates and at matched compute."""
    names = {
        "updates": "Matched updates: the same number of crops drawn.",
        "compute": "Matched compute: the same work of the network in every update.",
    }
    grids = []
    for table in study.accuracy.tables:
        what = names[table.matching]
        grids += [_accuracies(table, what), _differences(table, what)]
    return grids


def _accuracies(table: Table, what: str) -> Grid:
    columns = list(table.rows[0].top1)
    best = {column: max(row.top1[column].mean for row in table.rows) for column in columns}
    rows = tuple(
        (row.variant, tuple(share(row.top1[c], row.top1[c].mean == best[c]) for c in columns)) for row in table.rows
    )
    caption = (
        f"{what} Top-1 accuracy in percent, mean over seeds; below it the 95 % interval over seeds; the best is bold."
    )
    return Grid(caption, ("variant", *map(heading, columns)), rows)


def _differences(table: Table, what: str) -> Grid:
    first, *others = table.rows[0].top1
    rows = tuple(
        (
            f"{each.variant} minus {each.reference}",
            (
                change(each.top1[first], 1, 100),
                Markup('<span class="range">{}</span>').format(interval(each.resampled, 1, 100)),
                *(change(each.top1[column], 1, 100) for column in others),
            ),
        )
        for each in table.comparisons
    )
    caption = (
        f"{what} Differences in percentage points, paired by seed, with 95 % intervals over seeds; bold where the "
        "interval leaves zero out. Second, for the first: the interval over seeds and utterances."
    )
    return Grid(caption, ("difference", heading(first), "over both", *map(heading, others)), rows)


def cell_tables(study: Study) -> list[Grid]:
    """Accuracy by kind and ratio, and the mean of every seed."""
    kinds = study.findings.setting.kinds
    grids = []
    for kind in kinds:
        rows = tuple(
            (variant, tuple(share(study.accuracy.cells[variant, kind, snr_db], False) for snr_db in SNRS_DB))
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
    caption = "Percentage points gained on the dev split over the last quarter of the updates (straight line)."
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
                    *(share(of[name], False) for name in ("ece_before", "ece_after")),
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
            (variant, (value(of["threshold"], 3), *(share(of[name], False) for name in names)))
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
