"""All results of a study, and the summary of its comparisons."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import torch

from speakerlens.training.config import dump_config
from speakerlens.training.evaluation.conditions import LABELS, SEED
from speakerlens.training.evaluation.maps.attributions import FUSED
from speakerlens.training.model.network import STAGES
from speakerlens.training.provenance import machine, moment, tested, versions
from speakerlens.training.study.accuracy import MEAN, Accuracy, compare_accuracy
from speakerlens.training.study.calibration import CalibrationResults, compare_calibration
from speakerlens.training.study.formatting import sentence
from speakerlens.training.study.logs import Convergence, convergence, starts
from speakerlens.training.study.map_quality import (
    DeletionResults,
    LocalisationResults,
    MapQuality,
    compare_deletion,
    compare_localisation,
    compare_maps,
)
from speakerlens.training.study.measurements import Measurements
from speakerlens.training.study.plan import Plan
from speakerlens.training.variants import VARIANTS

_ACCURACY_PAIRS = (
    ("da", "clean"),
    ("act-pair", "da"),
    ("act-pair", "da-pair"),
    ("act-da", "da-2x"),
    ("act-da", "act-pair"),
    ("act-pair", "da-2x"),
)
_ALIGNMENT_PAIRS = (("act-da", "da"), ("act-da", "da-2x"), ("act-pair", "da-pair"))
_STAGE = STAGES[-1]
_SPEECH = "speaker"  # the kind of interference that is speech as well


@dataclass(frozen=True)
class SummaryGroup:
    """Comparisons of one figure, one line each."""

    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """A study that has been measured.

    Attributes:
        about: date, command, corpus, machine, versions, variants, configuration; plain values.
        plan, measured: what the results rest on.
        summary: in the order of the report.
    """

    about: Mapping[str, object]
    plan: Plan
    measured: Measurements
    accuracy: Accuracy
    convergence: Convergence
    deletion: DeletionResults
    localisation: LocalisationResults
    map_quality: MapQuality
    calibration: CalibrationResults
    summary: tuple[SummaryGroup, ...]


def analyse(plan: Plan, measured: Measurements, device: torch.device) -> Study:
    """Compare the variants."""
    accuracy, dev = compare_accuracy(plan, measured), convergence(plan)
    deletion, localisation = compare_deletion(plan, measured), compare_localisation(plan, measured)
    return Study(
        about=_about(plan, measured, dev, device),
        plan=plan,
        measured=measured,
        accuracy=accuracy,
        convergence=dev,
        deletion=deletion,
        localisation=localisation,
        map_quality=compare_maps(plan, measured),
        calibration=compare_calibration(plan, measured),
        summary=summarise(plan, accuracy, dev, deletion, localisation),
    )


def summarise(
    plan: Plan, accuracy: Accuracy, dev: Convergence, deletion: DeletionResults, localisation: LocalisationResults
) -> tuple[SummaryGroup, ...]:
    """Return the comparisons of the study's questions; groups without a line are left out.

    A difference is higher or lower where its 95 % interval over seeds excludes zero, else not told apart.
    """
    groups = (
        SummaryGroup("Top-1 accuracy under interference, at matched updates or compute", tuple(_accuracies(accuracy))),
        SummaryGroup(
            f"Gain on {dev.on} dev crops over the last quarter of the updates",
            tuple(sentence(variant, gain, " points", 1) for variant, gain in dev.gains.items()),
        ),
        SummaryGroup(
            f"Reaction to the interference: deletion index of {_STAGE.upper()} minus that without interference "
            "(lower deletes more)",
            tuple(sentence(variant, deletion.gap[variant, MEAN, _STAGE]) for variant in plan.variants),
        ),
        SummaryGroup("Reaction, between variants", tuple(_reactions(plan, deletion))),
        SummaryGroup(
            "Localisation: area of the target's fused map minus that of another speaker's map",
            tuple(sentence(variant, beyond) for variant, beyond in localisation.beyond.items()),
        ),
        SummaryGroup(
            "Localisation: area of the target's fused map, between variants", tuple(_areas(plan, localisation))
        ),
    )
    return tuple(group for group in groups if group.lines)


def _accuracies(accuracy: Accuracy) -> Iterator[str]:
    for variant, reference in _ACCURACY_PAIRS:
        comparison = accuracy.compare(variant, reference)
        if comparison is not None and (comparison.matches("updates") or comparison.matches("compute")):
            yield sentence(f"{variant} − {reference}", comparison.top1[MEAN], " points", 1, 100)


def _map_pairs(plan: Plan) -> Iterator[tuple[str, str]]:
    yield from ((variant, "clean") for variant in plan.variants if variant != "clean")
    yield from _ALIGNMENT_PAIRS


def _reactions(plan: Plan, deletion: DeletionResults) -> Iterator[str]:
    for variant, reference in _map_pairs(plan):
        for kind in (MEAN, _SPEECH) if reference != "clean" and _SPEECH in deletion.kinds else (MEAN,):
            estimate = deletion.reaction(variant, reference, kind, _STAGE)
            where = "" if kind == MEAN else f", {LABELS[kind].lower()} alone"
            if estimate is not None:
                yield sentence(f"{variant} − {reference}{where}", estimate)


def _areas(plan: Plan, localisation: LocalisationResults) -> Iterator[str]:
    for variant, reference in _map_pairs(plan):
        estimate = localisation.change(variant, reference, FUSED)
        if estimate is not None:
            yield sentence(f"{variant} − {reference}", estimate)


def _about(plan: Plan, measured: Measurements, dev: Convergence, device: torch.device) -> dict[str, object]:
    lines = [line for of_run in starts(plan).values() for line in of_run]
    return {
        **moment(),
        "seed": SEED,
        "seeds": list(plan.seeds),
        "corpus": tested(plan.corpus),
        "left_out": dict(measured.evaluation_set.left_out),
        "config": dump_config(plan.config),
        "updates": plan.config.updates,
        "batch_size": plan.config.data.batch_size,
        "parameters": lines[0]["parameters"],
        "variants": [
            {
                "name": variant,
                **asdict(VARIANTS[variant]),
                "passes": round(plan.work(variant), 2),
                "minutes": [round(dev.curves[run].seconds / 60, 2) for run in plan.runs if run.variant == variant],
            }
            for variant in plan.variants
        ],
        "trained": {
            "device": sorted({f"{line['device']}, {line['threads']} threads" for line in lines}),
            "torch": sorted({line["torch"] for line in lines}),
            "code_revision": sorted({line["code_revision"] for line in lines}),
        },
        "measured": {"code_revision": sorted({each for of in measured.code_revisions.values() for each in of})},
        "measures": {name: list(revisions) for name, revisions in measured.code_revisions.items()},
        "machine": machine(device),
        "versions": versions(),
    }
