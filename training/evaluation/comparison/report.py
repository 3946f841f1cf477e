"""The evaluation as one self-contained HTML page."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from speakerlens.training.data.mixing import KINDS
from speakerlens.training.evaluation.comparison.figures import example_title, looks
from speakerlens.training.evaluation.comparison.pages import data_url, render
from speakerlens.training.evaluation.comparison.results import Deletion, Evaluation
from speakerlens.training.evaluation.conditions import LABELS
from speakerlens.training.evaluation.intervals import Interval
from speakerlens.training.evaluation.maps.attributions import FUSED, STAGES_AND_FUSED
from speakerlens.training.evaluation.maps.example import EXAMPLE_SNR_DB, Example
from speakerlens.training.variants import VARIANTS

_TEMPLATE = Path(__file__).with_name("report.html.j2")


def write_report(evaluation: Evaluation, shown: Example, robustness_png: Path, saliency_png: Path, path: Path) -> None:
    """Write the page, with both figures embedded.

    Args:
        evaluation: the numbers.
        shown: the utterance that `saliency_png` shows.
        robustness_png: from `figures.robustness_figure`.
        saliency_png: from `figures.saliency_figure`.
        path: the HTML file.
    """
    probed = list(dict.fromkeys((row.interference, row.snr_db) for row in evaluation.deletion))
    page = render(
        _TEMPLATE,
        title="Speaker identification under interference",
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
        maps=STAGES_AND_FUSED,
        fused_table=fused_table(evaluation, probed),
        stage_table=stage_table(evaluation),
        robustness=data_url(robustness_png),
        saliency=data_url(saliency_png),
        percent=percent,
        points=_points,
        interval=_interval,
        best=_best,
    )
    path.write_text(page, encoding="utf-8")


def finding(evaluation: Evaluation) -> str:
    """Return the main result in one or two sentences."""
    ranked = sorted(evaluation.summaries, key=lambda summary: summary.mean, reverse=True)
    means = ", ".join(f"{summary.variant} {percent(summary.mean)} %" for summary in ranked)
    cleans = ", ".join(f"{summary.variant} {percent(summary.clean)} %" for summary in ranked)
    sentences = f"Mean top-1 accuracy under interference: {means}. On clean speech: {cleans}."
    indices = {summary.variant: _mean(evaluation.deletion, summary.variant, FUSED) for summary in ranked}
    measured = ", ".join(f"{variant} {index:.2f}" for variant, index in indices.items() if not math.isnan(index))
    return (
        f"{sentences} Deletion index of the fused map (1: no reaction to the interference): {measured}."
        if measured
        else sentences
    )


def caption(shown: Example) -> str:
    """Return the caption of the saliency figure, with the rule that chose its utterance."""
    order = ", ".join(LABELS[kind].lower() for kind in KINDS)
    return (
        f"{example_title(shown)}. Chosen by rule: the first test utterance of the manifest, at {EXAMPLE_SNR_DB:g} dB, "
        f"under the first of these that the corpus has: {order}. Above: log-mel of the speech and of the mixture, and, "
        "in orange, the bins that the interference dominates. Below: the fused LayerCAM map of the true speaker for "
        "each variant: the darker a bin, the more it raised the score; orange bins are dominated by the interference."
    )


def fused_table(evaluation: Evaluation, probed: Sequence[tuple[str, float]]) -> dict[str, list[Markup]]:
    """Return the deletion index of the fused map by variant: a cell for each (kind, ratio) and one for the mean."""
    found = {(row.variant, row.interference, row.snr_db): row.index for row in evaluation.deletion if row.map == FUSED}
    columns = [[found[variant, kind, snr_db] for variant in evaluation.variants] for kind, snr_db in probed]
    columns.append([_mean(evaluation.deletion, variant, FUSED) for variant in evaluation.variants])
    return _rows(evaluation.variants, columns)


def stage_table(evaluation: Evaluation) -> dict[str, list[Markup]]:
    """Return the deletion index averaged over conditions by variant: a cell for each of `STAGES_AND_FUSED`."""
    rows, variants = evaluation.deletion, evaluation.variants
    return _rows(variants, [[_mean(rows, variant, name) for variant in variants] for name in STAGES_AND_FUSED])


def percent(share: float) -> str:
    """Return a share in percent, without the sign."""
    return f"{100 * share:.1f}"


def _points(difference: float) -> str:
    """Return a difference of shares in percentage points, signed."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def _rows(variants: Sequence[str], columns: Sequence[Sequence[float]]) -> dict[str, list[Markup]]:
    """Return columns of numbers as rows of cells, the lowest of each column bold."""
    cells = [[_emphasise(f"{value:.2f}", value == np.nanmin(column)) for value in column] for column in columns]
    return {variant: [column[row] for column in cells] for row, variant in enumerate(variants)}


def _mean(rows: Iterable[Deletion], variant: str, name: str) -> float:
    """Return the mean deletion index of a variant's map over the conditions that have one; NaN if none has."""
    indices = [row.index for row in rows if row.variant == variant and row.map == name and not math.isnan(row.index)]
    return sum(indices) / len(indices) if indices else math.nan


def _best(share: float, column: Iterable[float]) -> Markup:
    """Return a share in percent, bold if it is the highest of its column."""
    return _emphasise(percent(share), share == max(column))


def _emphasise(text: str, bold: bool) -> Markup:
    if text == "nan":
        text = "–"
    return Markup("<b>{}</b>").format(text) if bold else Markup.escape(text)


def _interval(interval: Interval) -> str:
    return f"{percent(interval[0])}–{percent(interval[1])}"
