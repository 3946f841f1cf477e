"""The evaluation as one self-contained page: nothing in it is fetched from anywhere."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from speakerlens.training.data.mixing import KINDS
from speakerlens.training.evaluation.conditions import LABELS
from speakerlens.training.evaluation.figures import example_title, looks
from speakerlens.training.evaluation.measure import EXAMPLE_SNR_DB, FUSED, MAPS, Example
from speakerlens.training.evaluation.pages import data_address, render
from speakerlens.training.evaluation.results import Deletion, Evaluation, Interval
from speakerlens.training.variants import VARIANTS

_TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_report(evaluation: Evaluation, shown: Example, robustness_png: Path, saliency_png: Path, path: Path) -> None:
    """Write the page, with both pictures inside.

    Args:
        evaluation: the numbers.
        shown: the utterance that `saliency_png` shows.
        robustness_png: drawn by `training.evaluation.figures.robustness_figure`.
        saliency_png: drawn by `training.evaluation.figures.saliency_figure`.
        path: the HTML file.
    """
    probed = list(dict.fromkeys((row.interference, row.snr_db) for row in evaluation.deletion))
    page = render(
        _TEMPLATE,
        title="Who is speaking, and what was listened to",
        e=evaluation,
        about=evaluation.about,
        corpus=evaluation.about["corpus"],
        setup=evaluation.deletion_setup,
        finding=finding(evaluation),
        caption=caption(shown),
        labels=LABELS,
        colours={variant: colour for variant, (colour, _) in looks(evaluation.variants).items()},
        descriptions={name: variant.about for name, variant in VARIANTS.items()},
        probed=probed,
        maps=MAPS,
        fused_table=fused_table(evaluation, probed),
        stage_table=stage_table(evaluation),
        robustness=data_address(robustness_png),
        saliency=data_address(saliency_png),
        percent=percent,
        points=_points,
        interval=_interval,
        best=_best,
    )
    path.write_text(page, encoding="utf-8")


def finding(evaluation: Evaluation) -> str:
    """Say in a sentence or two what came out."""
    ranked = sorted(evaluation.summaries, key=lambda summary: summary.mean, reverse=True)
    means = ", ".join(f"{summary.variant} {percent(summary.mean)} %" for summary in ranked)
    cleans = ", ".join(f"{summary.variant} {percent(summary.clean)} %" for summary in ranked)
    sentences = f"Speakers named under interference, on average: {means}. On clean speech: {cleans}."
    indices = {summary.variant: _mean(evaluation.deletion, summary.variant, FUSED) for summary in ranked}
    measured = ", ".join(f"{variant} {index:.2f}" for variant, index in indices.items() if not math.isnan(index))
    return (
        f"{sentences} Deletion index of the maps, where 1 is blind to the interference: {measured}."
        if measured
        else sentences
    )


def caption(shown: Example) -> str:
    """Say what the saliency figure shows, and how its utterance was chosen."""
    order = ", ".join(LABELS[kind].lower() for kind in KINDS)
    return (
        f"{example_title(shown)}. Chosen by rule: the first test utterance of the manifest, at {EXAMPLE_SNR_DB:g} dB, "
        f"under the first of these that the corpus has: {order}. Above: log-mel of the speech and of the mixture, and, "
        "in orange, the bins in which the interference is louder. Below: each variant's fused LayerCAM map of the true "
        "speaker: the darker a bin, the more it raised the score; orange ones are where the interference is louder."
    )


def fused_table(evaluation: Evaluation, probed: Sequence[tuple[str, float]]) -> dict[str, list[Markup]]:
    """Lay out the deletion index of the fused map: by variant, a cell for each (kind, ratio) and one for the mean."""
    found = {(row.variant, row.interference, row.snr_db): row.index for row in evaluation.deletion if row.map == FUSED}
    columns = [[found[variant, kind, snr_db] for variant in evaluation.variants] for kind, snr_db in probed]
    columns.append([_mean(evaluation.deletion, variant, FUSED) for variant in evaluation.variants])
    return _rows(evaluation.variants, columns)


def stage_table(evaluation: Evaluation) -> dict[str, list[Markup]]:
    """Lay out the deletion index averaged over conditions: by variant, a cell for each of `measure.MAPS`."""
    columns = [[_mean(evaluation.deletion, variant, name) for variant in evaluation.variants] for name in MAPS]
    return _rows(evaluation.variants, columns)


def percent(share: float) -> str:
    """Write a share in percent, without the sign."""
    return f"{100 * share:.1f}"


def _points(difference: float) -> str:
    """Write a difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def _rows(variants: Sequence[str], columns: Sequence[Sequence[float]]) -> dict[str, list[Markup]]:
    """Turn columns of numbers into rows of cells, the lowest of each column bold."""
    cells = [[_emphasise(f"{value:.2f}", value == np.nanmin(column)) for value in column] for column in columns]
    return {variant: [column[row] for column in cells] for row, variant in enumerate(variants)}


def _mean(rows: Iterable[Deletion], variant: str, name: str) -> float:
    """Mean deletion index of a variant's map over all conditions in which it has one; NaN if there are none."""
    indices = [row.index for row in rows if row.variant == variant and row.map == name and not math.isnan(row.index)]
    return sum(indices) / len(indices) if indices else math.nan


def _best(share: float, column: Iterable[float]) -> Markup:
    """Write a share in percent, bold if it is the highest of its column."""
    return _emphasise(percent(share), share == max(column))


def _emphasise(text: str, bold: bool) -> Markup:
    if text == "nan":
        text = "–"
    return Markup("<b>{}</b>").format(text) if bold else Markup.escape(text)


def _interval(interval: Interval) -> str:
    return f"{percent(interval[0])}–{percent(interval[1])}"
