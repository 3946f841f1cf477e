"""The report's tables: rows of cells that are ready to show."""

import math
from dataclasses import dataclass

from markupsafe import Markup

from training.conditions import CLEAN_KIND, LABELS, SNRS_DB
from training.maps.deletion import MAPS
from training.measure import FUSED
from training.network import STAGES
from training.study.accuracy import MEAN, Table
from training.study.analysis import Study
from training.study.statistics import Estimate
from training.study.words import interval, number, percent, range_of, signed

Cell = Markup | str


@dataclass(frozen=True)
class Grid:
    """A table of the report.

    Attributes:
        caption: what it shows. headings: of all columns, the rows' names included.
        rows: name and cells of each; a variant's name is shown with its colour.
        groups: what stands over the headings, with how many of the columns after the first it spans.
    """

    caption: str
    headings: tuple[Cell, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    groups: tuple[tuple[str, int], ...] = ()


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
        (row.variant, tuple(_share(row.top1[c], row.top1[c].mean == best[c]) for c in columns)) for row in table.rows
    )
    caption = (
        f"{what} Top-1 accuracy in percent, mean over seeds; below it the 95 % interval over seeds; the best is bold."
    )
    return Grid(caption, ("variant", *map(_heading, columns)), rows)


def _differences(table: Table, what: str) -> Grid:
    columns = list(table.rows[0].top1)
    rows = tuple(
        (
            f"{each.variant} minus {each.reference}",
            (
                *(_change(each.top1[column], 1, 100) for column in columns),
                Markup('<span class="range">{}</span>').format(interval(each.resampled, 1, 100)),
            ),
        )
        for each in table.comparisons
    )
    caption = (
        f"{what} Differences in percentage points, paired by seed, with 95 % intervals over seeds; bold where the "
        "interval leaves zero out. Last, for the mean: the interval over seeds and utterances."
    )
    last = Markup("mean, over seeds<br>and utterances")
    return Grid(caption, ("difference", *map(_heading, columns), last), rows)


def cell_tables(study: Study) -> list[Grid]:
    """Accuracy by kind and ratio, and the mean of every seed."""
    kinds = study.findings.setting.kinds
    grids = []
    for kind in kinds:
        rows = tuple(
            (variant, tuple(_share(study.accuracy.cells[variant, kind, snr_db], False) for snr_db in SNRS_DB))
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
    rows = tuple((variant, (_change(gain, 1),)) for variant, gain in study.convergence.gains.items())
    caption = "Percentage points gained on the dev split over the last quarter of the updates (straight line)."
    return Grid(caption, ("variant", "gain"), rows)


def deletion_tables(study: Study) -> list[Grid]:
    """Deletion indices beside the accuracy, by kind and by stage."""
    found, variants = study.deleting, study.plan.variants
    kinds = (MEAN, *study.findings.setting.kinds)
    by_kind = [
        Grid(
            f"Deletion index of {'the fused map' if name == FUSED else name.upper()} by kind, mean of 5 and 0 dB, with "
            "95 % intervals over seeds; beside it top-1 in percent in the same mixtures.",
            ("variant", *(text for _ in kinds for text in ("index", "top-1"))),
            tuple(
                (
                    variant,
                    tuple(
                        cell
                        for kind in kinds
                        for cell in (_value(found.index[variant, kind, name]), percent(found.top1[variant, kind].mean))
                    ),
                )
                for variant in variants
            ),
            tuple((str(_heading(kind)), 2) for kind in kinds),
        )
        for name in (STAGES[-1], FUSED)
    ]
    by_stage = Grid(
        "Deletion index by map, mean over kinds: under the interference, and of the map of the same utterance without "
        "it, on the same bins. “s4-raw” is S4 not interpolated; “energy” is no map but the loudness of the mixture.",
        ("variant", *(text for _ in MAPS for text in ("index", "clean map"))),
        tuple(
            (
                variant,
                tuple(number(which[variant, MEAN, name].mean) for name in MAPS for which in (found.index, found.clean)),
            )
            for variant in variants
        ),
        tuple((name.upper() if name in STAGES else name, 2) for name in MAPS),
    )
    changes = Grid(
        f"Differences of the deletion index of {STAGES[-1].upper()}, paired by seed, with 95 % intervals; bold where "
        "the interval leaves zero out. Below zero: the first deletes more.",
        ("difference", *map(_heading, kinds)),
        tuple(
            (f"{ours} minus {theirs}", tuple(_change(found.changes[ours, theirs, kind, STAGES[-1]]) for kind in kinds))
            for ours, theirs in dict.fromkeys(key[:2] for key in found.changes)
        ),
    )
    return [*by_kind, changes, by_stage]


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
                    _value(of["temperature"]),
                    *(_share(of[name], False) for name in ("ece_before", "ece_after")),
                    *(_value(of[name]) for name in ("nll_before", "nll_after")),
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
            (variant, (_value(of["threshold"], 3), *(_share(of[name], False) for name in names)))
            for variant, of in found.items()
        ),
    )
    return [believed, known]


def _heading(column: str) -> Cell:
    if column == MEAN:
        return Markup("under<br>interference")
    return "without" if column == CLEAN_KIND else LABELS[column].lower()


def _share(found: Estimate, bold: bool) -> Markup:
    return _cell(percent(found.mean), range_of(found, 1, 100), bold)


def _value(found: Estimate, digits: int = 2) -> Markup:
    return _cell(number(found.mean, digits), range_of(found, digits), False)


def _change(found: Estimate, digits: int = 2, factor: float = 1.0) -> Markup:
    ends = "" if math.isnan(found.low) else interval(found, digits, factor)
    return _cell(signed(factor * found.mean, digits), ends, found.sign != 0)


def _cell(text: str, ends: str, bold: bool) -> Markup:
    shown = Markup("<b>{}</b>").format(text) if bold else Markup.escape(text)
    return shown + Markup('<br><span class="range">{}</span>').format(ends) if ends else shown
