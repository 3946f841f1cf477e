"""The evaluation as one self-contained HTML page."""

import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from markupsafe import Markup

from speakerlens import palette
from speakerlens.training.evaluation.comparison import charts
from speakerlens.training.evaluation.comparison.charts import Line, Mark, Series
from speakerlens.training.evaluation.comparison.figures import (
    KILOHERTZ,
    Robustness,
    accuracy_panels,
    loudness,
    panel_title,
    question,
    ratio_label,
    verdict,
)
from speakerlens.training.evaluation.comparison.pages import data_url, render
from speakerlens.training.evaluation.comparison.results import MEAN, Deletion, Evaluation
from speakerlens.training.evaluation.comparison.sentences import caption, clear_winner, deletion_finding, finding
from speakerlens.training.evaluation.conditions import CLEAN_KIND, LABELS
from speakerlens.training.evaluation.formatting import Entry, Table, entry, number, percent, signed
from speakerlens.training.evaluation.intervals import Interval
from speakerlens.training.evaluation.maps.attributions import FUSED, STAGES_AND_FUSED
from speakerlens.training.evaluation.maps.deletion import TARGETS, Target
from speakerlens.training.evaluation.maps.example import Example, Why
from speakerlens.training.variants import VARIANTS

_TEMPLATE = Path(__file__).with_name("report.html.j2")
_CLEAN_GAP_DB = 6.0
_MOST_SPEAKERS = 40  # in a chart; of more, those with most errors
_MOST_CONFUSIONS = 8
_MAP_HEIGHT = 190.0
_WHOSE = {"predicted": "the speaker whom the variant names", "true": "the true speaker"}


def write_report(evaluation: Evaluation, shown: Example, mixture: Path, speech: Path, path: Path) -> None:
    """Write the page, with everything embedded.

    Args:
        evaluation: the numbers.
        shown: the example.
        mixture: its sound, a FLAC file; speech: likewise, without the interference.
        path: the HTML file.
    """
    series = series_of(evaluation.variants)
    charted = _charted_speakers(evaluation)
    page = render(
        _TEMPLATE,
        title="Speaker identification under interference",
        e=evaluation,
        about=evaluation.about,
        corpus=evaluation.about["corpus"],
        setup=evaluation.deletion_setup,
        finding=finding(evaluation),
        deletion_finding=deletion_finding(evaluation),
        caption=caption(shown),
        labels=LABELS,
        series=series,
        looks=palette.looks(evaluation.variants),
        descriptions={name: variant.about for name, variant in VARIANTS.items()},
        accuracy_charts=accuracy_charts(evaluation),
        accuracy_table=accuracy_table(evaluation),
        speaker_chart=_speaker_chart(evaluation, charted),
        confusion_charts={variant: _confusion_chart(evaluation, variant, charted) for variant in evaluation.variants},
        confusion_table=confusion_table(evaluation),
        charted=len(charted),
        reliability_chart=reliability_chart(evaluation),
        deletion_tables=[deletion_table(evaluation, target) for target in reversed(TARGETS)],
        stage_table=stage_table(evaluation),
        maps=_maps(shown),
        mixture=data_url(mixture),
        speech=data_url(speech),
        marker=charts.marker,
        minutes=_minutes,
        percent=percent,
        number=number,
        points=lambda difference: signed(100 * difference, 1),
        interval=_interval,
    )
    path.write_text(page, encoding="utf-8")


def series_of(variants: Sequence[str]) -> dict[str, Series]:
    """Return how each variant is drawn in the charts."""
    looks = palette.looks(variants)
    return {name: Series(name, f"v{place}", looks[name].marker) for place, name in enumerate(variants)}


def accuracy_charts(evaluation: Robustness) -> dict[str, Markup]:
    """Return a chart of top-1 by ratio for the mean and for each kind of interference, by its title."""
    ratios = sorted(evaluation.snrs_db)
    clean_at = ratios[-1] + _CLEAN_GAP_DB
    ticks = {ratio: f"{ratio:g}".replace("-", "−") for ratio in ratios} | {clean_at: "clean"}
    made = {}
    for kind in accuracy_panels(evaluation):
        lines = []
        for name, series in series_of(evaluation.variants).items():
            marks = [_accuracy_mark(evaluation, name, kind, ratio, ratio) for ratio in ratios]
            lines.append(Line(series, tuple(marks), (_accuracy_mark(evaluation, name, CLEAN_KIND, None, clean_at),)))
        made[panel_title(kind)] = charts.line_chart(panel_title(kind), lines, ticks, ratio_label(kind))
    return made


def _accuracy_mark(evaluation: Robustness, variant: str, kind: str, ratio: float | None, x: float) -> Mark:
    top1, interval = evaluation.top1(variant, kind, ratio)
    where = "clean" if ratio is None else f"{number(ratio, 0)} dB"
    tip = [f"{variant}, {where}: {percent(top1)} %"]
    if interval is not None:
        tip.append(f"95 %: {_interval(interval)}")
    return Mark(x, top1, tuple(tip), interval)


def accuracy_table(evaluation: Evaluation) -> Table:
    """Return top-1 in percent with intervals: a row for the mean, for clean speech and for each kind."""
    rows: list[tuple[str, list[float], list[Interval]]] = [
        ("mean under interference", *_columns(evaluation, "mean", "mean_interval")),
        ("clean speech", *_columns(evaluation, "clean", "clean_interval")),
    ]
    rows += [
        (
            LABELS[kind].lower(),
            [summary.kinds[kind] for summary in evaluation.summaries],
            [summary.kind_intervals[kind] for summary in evaluation.summaries],
        )
        for kind in evaluation.kinds
    ]
    ratios = [number(end, 0) for end in (max(evaluation.snrs_db), min(evaluation.snrs_db))]
    return Table(
        f"Top-1 accuracy in percent. The mean and each kind average {len(evaluation.snrs_db)} ratios from {ratios[0]} "
        f"to {ratios[1]} dB. Below each: its 95 % interval. Bold: the best, where its interval overlaps no other.",
        ("condition", *evaluation.variants),
        tuple((name, _cells(values, intervals)) for name, values, intervals in rows),
    )


def _columns(evaluation: Evaluation, name: str, interval: str) -> tuple[list[float], list[Interval]]:
    return [getattr(s, name) for s in evaluation.summaries], [getattr(s, interval) for s in evaluation.summaries]


def _cells(values: Sequence[float], intervals: Sequence[Interval]) -> tuple[Entry, ...]:
    winner = clear_winner(values, intervals)
    pairs = enumerate(zip(values, intervals, strict=True))
    return tuple(entry(percent(value), _interval(interval), place == winner) for place, (value, interval) in pairs)


def _charted_speakers(evaluation: Evaluation) -> list[int]:
    """Return the speakers to chart, in the order of the labels: all, or those with the lowest accuracy."""
    scores = evaluation.speaker_scores
    tested = [n for n in range(len(scores.speakers)) if any(sum(rows[n]) for rows in scores.named.values())]
    mean = {n: float(np.mean([scores.accuracy(variant, n) for variant in scores.named])) for n in tested}
    return sorted(sorted(tested, key=mean.__getitem__)[:_MOST_SPEAKERS])


def _speaker_chart(evaluation: Evaluation, charted: Sequence[int]) -> Markup:
    scores = evaluation.speaker_scores
    rows = []
    for speaker in charted:
        marks = []
        for variant, series in series_of(evaluation.variants).items():
            share = scores.accuracy(variant, speaker)
            count = sum(scores.named[variant][speaker])
            tip = (f"{scores.speakers[speaker]}, {variant}: {percent(share)} %", f"of {count} mixtures")
            marks.append((series, Mark(share, 0.0, tip)))
        rows.append((scores.speakers[speaker], marks))
    return charts.dot_chart("Top-1 accuracy under interference by speaker", rows, "top-1 under interference")


def _confusion_chart(evaluation: Evaluation, variant: str, charted: Sequence[int]) -> Markup:
    scores = evaluation.speaker_scores
    cells = []
    for row, true in enumerate(charted):
        counts = scores.named[variant][true]
        for column, named in enumerate(charted):
            if count := counts[named]:
                share = count / sum(counts)
                tip = (f"{scores.speakers[true]} named {scores.speakers[named]}:", f"{count} ({percent(share)} %)")
                cells.append((row, column, share, tip))
    names = [scores.speakers[speaker] for speaker in charted]
    return charts.matrix_chart(f"Confusions of {variant}", series_of(evaluation.variants)[variant], names, cells)


def confusion_table(evaluation: Evaluation) -> Table:
    """Return the most frequent confusions of each variant."""
    scores = evaluation.speaker_scores
    columns = []
    for variant in evaluation.variants:
        found = scores.confusions(variant)[:_MOST_CONFUSIONS]
        texts = [
            entry(
                f"{scores.speakers[true]} → {scores.speakers[named]}",
                f"{count} ({percent(count / sum(scores.named[variant][true]))} %)",
                bold=False,
            )
            for true, named, count in found
        ]
        columns.append(texts)
    return Table(
        "The most frequent confusions under interference: true → named speaker, mixtures, and their share of the true "
        "speaker's mixtures.",
        ("rank", *evaluation.variants),
        tuple((str(place), cells) for place, cells in enumerate(zip_longest(*columns, fillvalue="–"), start=1)),
    )


def reliability_chart(evaluation: Evaluation) -> Markup:
    """Return accuracy over the calibrated probability."""
    lines = []
    for variant, series in series_of(evaluation.variants).items():
        marks = [
            Mark(
                each.confidence,
                each.accuracy,
                (
                    f"{variant}: {percent(each.confidence)} % sure, {percent(each.accuracy)} % right",
                    f"{each.count:,} answers",
                ),
            )
            for each in evaluation.confidence[variant].bins
            if each.confidence is not None and each.accuracy is not None
        ]
        lines.append(Line(series, tuple(marks)))
    ticks = {share: f"{share:.0%}" for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}
    return charts.line_chart("Calibration curve", lines, ticks, "calibrated probability", diagonal=True)


def deletion_table(evaluation: Evaluation, target: Target) -> Table:
    """Return the change of the deletion index of the fused map of a target: a row for each condition."""
    of = [row for row in (*evaluation.deletion_means, *evaluation.deletion) if (row.map, row.target) == (FUSED, target)]
    keys = dict.fromkeys((row.interference, row.snr_db) for row in of if row.interference != MEAN)
    rows = [("mean", [row for row in of if row.interference == MEAN])]
    for kind, ratio in keys:
        name = f"{LABELS[kind].lower()}, {number(ratio, 0)} dB"
        rows.append((name, [row for row in of if (row.interference, row.snr_db) == (kind, ratio)]))
    return Table(
        f"Why {_WHOSE[target]}? Change of the deletion index of that speaker's fused map against the same utterance "
        "without interference, on the same bins, with its 95 % interval; below it, the index without → with the "
        f"interference. Mean over {evaluation.deletion_setup.get('utterances', 0)} utterances. Bold: the lowest, where "
        "its interval overlaps no other.",
        ("condition", *evaluation.variants),
        tuple((name, _changes(found)) for name, found in rows),
    )


def stage_table(evaluation: Evaluation) -> Table:
    """Return the change of the deletion index by stage of the network, mean over the conditions."""
    rows = []
    for name in STAGES_AND_FUSED:
        of = [row for row in evaluation.deletion_means if (row.map, row.target) == (name, "predicted")]
        rows.append((name if name == FUSED else name.upper(), _changes(of)))
    return Table(
        f"The same by stage of the network, mean over the conditions, of {_WHOSE['predicted']}. S1 resolves single "
        "bins, S4 whole syllables.",
        ("map", *evaluation.variants),
        tuple(rows),
    )


def _changes(rows: Sequence[Deletion]) -> tuple[Entry, ...]:
    """Return an entry for each of some `Deletion`, one per variant."""
    winner = clear_winner([row.change for row in rows], [row.change_interval for row in rows], lowest=True)
    return tuple(_change(row, place == winner) for place, row in enumerate(rows))


def _change(row: Deletion, bold: bool) -> Entry:
    if math.isnan(row.change):
        return "–"
    ends = " to ".join(signed(end) for end in row.change_interval)
    indices = Markup('<br><span class="range">{} → {}</span>').format(number(row.clean_index), number(row.index))
    return entry(signed(row.change), ends, bold) + indices


def _maps(shown: Example) -> list[dict[str, object]]:
    """Return the maps in the order of the page: of the named speakers, then of the true one where it was not named."""
    grey = charts.png_url(palette.grey(loudness(shown, shown.mixture_db)))
    dominated = charts.png_url(palette.tint(palette.INTERFERENCE, 0.6 * shown.dominated))
    centres = shown.centres_hz / 1000
    heights = (np.interp(KILOHERTZ, centres, np.arange(len(centres)) + 0.5) / len(centres)).tolist()
    within = [centres[0] <= khz <= 1.05 * centres[-1] for khz in KILOHERTZ]
    frequencies = {f"{khz:g}": at for khz, at, inside in zip(KILOHERTZ, heights, within, strict=True) if inside}
    start, end = float(shown.times[0]), float(shown.times[-1])
    times = {f"{t:g}": (t - start) / (end - start) for t in np.arange(0.5, end, 0.5).tolist()} if end > start else {}

    def chart(variant: str, why: Why) -> dict[str, object]:
        layers = {"sound": grey, "saliency": charts.png_url(palette.saliency(why.map)), "dominated": dominated}
        title = f"{variant}: why {why.speaker}?"
        picture = charts.map_chart(title, layers, _MAP_HEIGHT, frequencies, times)
        return {
            "variant": variant,
            "verdict": verdict(shown.answers[variant]),
            "question": question(why),
            "probability": percent(why.probability),
            "picture": picture,
        }

    named = [chart(variant, answer.named) for variant, answer in shown.answers.items()]
    return named + [chart(variant, answer.true) for variant, answer in shown.answers.items() if not answer.correct]


def _minutes(seconds: float) -> str:
    return number(seconds / 60, 1) if seconds > 0 else "–"


def _interval(interval: Interval) -> str:
    return f"{percent(interval[0])}–{percent(interval[1])}"
