"""The study as one self-contained page: nothing in it is fetched from anywhere."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from speakerlens.training.evaluation.comparison.figures import example_title, looks
from speakerlens.training.evaluation.comparison.pages import data_url, render
from speakerlens.training.evaluation.conditions import LABELS
from speakerlens.training.files import make_folder, write_whole
from speakerlens.training.study import layout, map_layout
from speakerlens.training.study.accuracy import SAME_WORK
from speakerlens.training.study.analysis import Study
from speakerlens.training.study.examples import RULE, show_examples
from speakerlens.training.study.map_claims import FEWEST_UTTERANCES
from speakerlens.training.study.map_pictures import deletion_figure, faithfulness_figure, sanity_figure, spectra_figure
from speakerlens.training.study.measuring import FEW_PROBES
from speakerlens.training.study.pictures import accuracy_figure, detection_figure, dev_figure, reliability_figure
from speakerlens.training.study.words import counted, listed

REPORT = "report.html"
FIGURES = "figures"

_TEMPLATE = Path(__file__).with_name("study.html.j2")
_CONTENTS = {
    "claims": "The claims, and what was found",
    "run": "What was run",
    "accuracy": "How often the speaker was named",
    "convergence": "Had training come to its end?",
    "deletion": "Where the saliency lies: deletion",
    "localisation": "Where the saliency lies: whose turn it is",
    "faithfulness": "Does the network agree with the maps?",
    "grid": "The grid of strided convolutions",
    "calibration": "Probabilities and strangers",
    "examples": "Examples to look at and listen to",
    "making": "How it was made",
    "limits": "What the numbers mean, and their limits",
}


def write_report(study: Study, device: torch.device) -> Path:
    """Draw the figures and the examples, and write OUT/report.html with all of them inside; returns its path."""
    examples = show_examples(study.plan, study.findings.setting, device)
    page = render(
        _TEMPLATE,
        title="What augmentation teaches a speaker network: the study",
        about=study.about,
        corpus=study.about["corpus"],
        contents=list(_CONTENTS.items()),
        claims=study.claims,
        labels=LABELS,
        colours={variant: colour for variant, (colour, _) in looks(study.plan.variants).items()},
        accuracy_tables=layout.accuracy_tables(study),
        cell_tables=layout.cell_tables(study),
        gain_table=layout.gain_table(study),
        deletion_tables=map_layout.deletion_tables(study),
        probes=len(study.findings.setting.probes),
        turn_tables=map_layout.turn_tables(study),
        faithful_tables=map_layout.faithful_tables(study),
        few=min(FEW_PROBES, len(study.findings.setting.probes)),
        masked=listed([str(condition) for condition in study.findings.setting.masked]),
        sanity_tables=map_layout.sanity_tables(study),
        grid_table=map_layout.grid_table(study),
        calibration_tables=layout.calibration_tables(study),
        counted=counted,
        fewest=FEWEST_UTTERANCES,
        tolerance=f"{100 * (1 - SAME_WORK):.0f} %",
        false_acceptance=study.calibrating.false_acceptance,
        strangers=study.calibrating.strangers,
        rule=RULE,
        examples=[
            {
                "title": example_title(each.example),
                "picture": data_url(each.picture),
                "speech": data_url(each.speech),
                "mixture": data_url(each.mixture),
            }
            for each in examples
        ],
        pictures={name: data_url(path) for name, path in _draw(study).items()},
    )
    path = study.plan.out / REPORT
    write_whole(path, page)
    return path


def _draw(study: Study) -> Mapping[str, Path]:
    """Draw the figures into OUT/figures; each under its name."""
    folder = study.plan.out / FIGURES
    make_folder(folder)
    plan, findings = study.plan, study.findings
    kinds = findings.setting.kinds
    draw: dict[str, Callable[[Path], None]] = {
        "dev": partial(dev_figure, plan, study.convergence),
        "accuracy": partial(accuracy_figure, plan, kinds, study.accuracy, study.about),
        "deletion": partial(deletion_figure, plan, kinds, study.deleting),
        "faithfulness": partial(faithfulness_figure, findings),
        "sanity": partial(sanity_figure, plan, study.worth),
        "spectra": partial(spectra_figure, findings),
        "reliability": partial(reliability_figure, plan, study.calibrating),
        "detection": partial(detection_figure, plan, study.calibrating),
    }
    paths = {name: folder / f"{name}.svg" for name in draw}
    for name, path in paths.items():
        draw[name](path)
    return paths
