"""The study as one self-contained HTML page, with its figures and examples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from speakerlens.palette import looks
from speakerlens.training.checkpoint import load_run
from speakerlens.training.data.audio import write_audio
from speakerlens.training.evaluation.comparison import charts
from speakerlens.training.evaluation.comparison.figures import example_title, saliency_figure
from speakerlens.training.evaluation.comparison.pages import data_url, render
from speakerlens.training.evaluation.comparison.report import accuracy_charts, series_of
from speakerlens.training.evaluation.conditions import LABELS
from speakerlens.training.evaluation.formatting import counted, listed
from speakerlens.training.evaluation.maps.example import Calibrated, Example, explain
from speakerlens.training.evaluation.maps.probes import choose_probes
from speakerlens.training.files import make_folder, write_whole
from speakerlens.training.model.network import STAGES
from speakerlens.training.model.saliency import FUSED_STAGES
from speakerlens.training.study import figures, tables
from speakerlens.training.study.accuracy import SAME_WORK
from speakerlens.training.study.analysis import Study
from speakerlens.training.study.measurements import FEW_PROBES, Measurements
from speakerlens.training.study.plan import Plan

REPORT = "report.html"
FIGURES = "figures"
EXAMPLES = "examples"

_LONGEST_SECONDS = 10.0  # of an example, if there are shorter ones: longer maps are too wide
_TEMPLATE = Path(__file__).with_name("study.html.j2")
_RULE = (
    "Chosen by rule: each condition in which the deletion index is measured, with the next of the utterances whose "
    f"maps are measured (the first of each speaker in turn) of at most {_LONGEST_SECONDS:g} s; first seed."
)
_CONTENTS = {
    "summary": "Summary",
    "run": "Variants and runs",
    "accuracy": "Accuracy",
    "convergence": "Convergence",
    "deletion": "Saliency maps: deletion index",
    "localisation": "Saliency maps: localisation",
    "faithfulness": "Saliency maps: faithfulness",
    "grid": "Saliency maps: grid of strided convolutions",
    "calibration": "Calibration and open-set detection",
    "examples": "Examples",
    "making": "How it was made",
    "limits": "Definitions and limits",
}


@dataclass(frozen=True)
class _ExampleFiles:
    """One example, and its files."""

    example: Example
    picture: Path
    speech: Path
    mixture: Path


def write_report(study: Study, device: torch.device) -> Path:
    """Write the figures, the examples, and OUT/report.html with all of them embedded; return the page's path."""
    examples = _write_examples(study.plan, study.measured, device)
    evaluated = study.measured.evaluation_set
    kinds = evaluated.kinds
    page = render(
        _TEMPLATE,
        title="Data augmentation for speaker identification: a study",
        about=study.about,
        corpus=study.about["corpus"],
        contents=_CONTENTS,
        summary=study.summary,
        labels=LABELS,
        series=series_of(study.plan.variants),
        looks=looks(study.plan.variants),
        marker=charts.marker,
        accuracy_charts=accuracy_charts(figures.accuracy_curves(study.plan, kinds, study.accuracy, study.about)),
        accuracy_tables=tables.accuracy_tables(study),
        condition_tables=tables.condition_tables(study),
        gain_table=tables.gain_table(study),
        deletion_tables=tables.deletion_tables(study),
        probes=len(evaluated.probes),
        localisation_tables=tables.localisation_tables(study),
        faithfulness_tables=tables.faithfulness_tables(study),
        listening_tables=tables.listening_tables(study),
        few=min(FEW_PROBES, len(evaluated.probes)),
        masked=listed([str(condition) for condition in evaluated.masked]),
        fused=listed([STAGES[stage].upper() for stage in FUSED_STAGES]),
        recommended=listed([STAGES[stage].upper() for stage in study.map_quality.recommended]),
        sanity_tables=tables.sanity_tables(study),
        grid_table=tables.grid_table(study),
        calibration_tables=tables.calibration_tables(study),
        counted=counted,
        tolerance=f"{100 * (1 - SAME_WORK):.0f} %",
        false_acceptance=study.calibration.false_acceptance,
        strangers=study.calibration.strangers,
        rule=_RULE,
        examples=[
            {
                "title": example_title(each.example),
                "picture": data_url(each.picture),
                "speech": data_url(each.speech),
                "mixture": data_url(each.mixture),
            }
            for each in examples
        ],
        pictures={name: data_url(path) for name, path in _draw(study).items() if name != "accuracy"},
    )
    path = study.plan.out / REPORT
    write_whole(path, page)
    return path


def _draw(study: Study) -> Mapping[str, Path]:
    """Write the figures into OUT/figures; return their paths by name."""
    folder = study.plan.out / FIGURES
    make_folder(folder)
    plan, measured = study.plan, study.measured
    kinds = measured.evaluation_set.kinds
    draw: dict[str, Callable[[Path], None]] = {
        "dev": partial(figures.dev_figure, plan, study.convergence),
        "accuracy": partial(figures.accuracy_figure, figures.accuracy_curves(plan, kinds, study.accuracy, study.about)),
        "deletion": partial(figures.deletion_figure, plan, kinds, study.deletion),
        "faithfulness": partial(figures.faithfulness_figure, measured),
        "sanity": partial(figures.sanity_figure, plan, study.map_quality),
        "spectra": partial(figures.spectra_figure, measured),
        "reliability": partial(figures.reliability_figure, plan, study.calibration),
        "detection": partial(figures.detection_figure, plan, study.calibration),
    }
    paths = {name: folder / f"{name}.svg" for name in draw}
    for name, path in paths.items():
        draw[name](path)
    return paths


def _write_examples(plan: Plan, measured: Measurements, device: torch.device) -> tuple[_ExampleFiles, ...]:
    """Explain an utterance in each probed condition; write its figure and its audio under OUT/examples."""
    runs = [run for run in plan.runs if run.seed == plan.seeds[0]]
    networks = {run.variant: load_run(run.folder, device).network for run in runs}
    calibrations = {run.variant: measured.calibration[run].calibration for run in runs}
    calibrated = {name: Calibrated(c.temperature, c.threshold, c.utterances) for name, c in calibrations.items()}
    probes = choose_probes(plan.corpus, plan.corpus.speakers).clips
    clips = tuple(clip for clip in probes if clip.duration <= _LONGEST_SECONDS) or probes
    folder = plan.out / EXAMPLES
    make_folder(folder)
    written = []
    for number, condition in enumerate(measured.evaluation_set.probed):
        clip = clips[number % len(clips)]
        example = explain(networks, calibrated, plan.corpus, plan.corpus.speakers, clip, condition)
        stem = f"{number + 1:02}-{condition.kind}-{condition.snr_db:g}dB"
        files = _ExampleFiles(example, *(folder / f"{stem}{end}" for end in (".webp", "-speech.flac", "-mixture.flac")))
        saliency_figure(example, files.picture)
        write_audio(files.speech, example.speech)
        write_audio(files.mixture, example.mixture)
        written.append(files)
    return tuple(written)
