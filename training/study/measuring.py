"""Measure every trained run of a plan: accuracy, what the maps are worth, calibration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from rich.console import Console

from speakerlens.training.evaluation.accuracy import accuracy_steps, true_ranks
from speakerlens.training.evaluation.calibration import (
    FALSE_ACCEPTANCE,
    Calibration,
    CalibrationReport,
    calibrate,
    measure_calibration,
)
from speakerlens.training.evaluation.conditions import CLEAN
from speakerlens.training.evaluation.maps.attributions import FUSIONS, METHODS
from speakerlens.training.evaluation.maps.deletion import DeletionIndices, deletion_indices
from speakerlens.training.evaluation.maps.faithfulness import Faithfulness, Masking, faithfulness
from speakerlens.training.evaluation.maps.localisation import Localisation, localisation
from speakerlens.training.evaluation.maps.probes import Counter, Probes, choose_probes
from speakerlens.training.evaluation.maps.probes import Progress as Tick
from speakerlens.training.evaluation.maps.randomisation import Randomised, randomisation
from speakerlens.training.evaluation.maps.spectrum import MapSpectrum, map_spectra
from speakerlens.training.evaluation.predictions import FEWEST_OUT_OF_SET
from speakerlens.training.evaluation.workers import Networks, device_and_front_end, for_each
from speakerlens.training.model.network import STAGES
from speakerlens.training.model.saliency import FUSED_STAGES
from speakerlens.training.study.bench import Bench, Measure, Work
from speakerlens.training.study.plan import Plan, PlannedRun
from speakerlens.training.study.setting import Setting, survey

FEW_PROBES = 30
"""Utterances on which maps are masked and weights randomised: each is heard hundreds of times."""

FAITHFUL_METHODS = tuple(dict.fromkeys((*METHODS, *FUSIONS)))


@dataclass(frozen=True)
class Ranks:
    """Rank of the true speaker among all, 1 is best: by condition, then by test utterance of the manifest."""

    ranks: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Calibrated:
    """What dev utterances made of a run's answers, and what test utterances say of it."""

    calibration: Calibration
    report: CalibrationReport


@dataclass(frozen=True)
class Findings:
    """All that was measured, by run, in the order of the plan.

    Faithfulness and randomisation are of the first seed's runs only. Localisation is empty where the test split has no
    other talkers. `code_revisions` are of the code that measured, by measure.
    """

    setting: Setting
    accuracy: Mapping[PlannedRun, Ranks]
    deletion: Mapping[PlannedRun, tuple[DeletionIndices, ...]]
    localisation: Mapping[PlannedRun, tuple[Localisation, ...]]
    faithfulness: Mapping[PlannedRun, tuple[Faithfulness, ...]]
    randomisation: Mapping[PlannedRun, tuple[Randomised, ...]]
    spectra: Mapping[PlannedRun, tuple[MapSpectrum, ...]]
    calibration: Mapping[PlannedRun, Calibrated]
    code_revisions: Mapping[str, tuple[str, ...]]


def measure(plan: Plan, device: torch.device, console: Console) -> Findings:
    """Measure what has not been measured yet, and give it all.

    Raises:
        UserError: the corpus has no test utterances or no interference to test with, or a result is damaged.
    """
    setting = survey(plan)
    bench = Bench(plan, device, console)
    probes = choose_probes(plan.corpus, plan.corpus.speakers)
    few = choose_probes(plan.corpus, plan.corpus.speakers, FEW_PROBES)
    first = plan.seeds[:1]
    measures = _measures(setting, probes, few)
    talkers = "speaker" in setting.kinds
    return Findings(
        setting,
        bench.each(measures.accuracy, _accuracy(plan, setting)),
        bench.each(measures.deletion, _deletion(probes, setting)),
        bench.each(measures.localisation, _of_maps(localisation, probes)) if talkers else {},
        bench.each(measures.faithfulness, _faithfulness(few, setting), first),
        bench.each(measures.randomisation, _of_maps(randomisation, few), first),
        bench.each(measures.spectrum, _of_maps(map_spectra, probes)),
        bench.each(measures.calibration, _calibration(plan)),
        bench.code_revisions,
    )


class _Measures(NamedTuple):
    accuracy: Measure[Ranks]
    deletion: Measure[tuple[DeletionIndices, ...]]
    localisation: Measure[tuple[Localisation, ...]]
    faithfulness: Measure[tuple[Faithfulness, ...]]
    randomisation: Measure[tuple[Randomised, ...]]
    spectrum: Measure[tuple[MapSpectrum, ...]]
    calibration: Measure[Calibrated]


def _measures(setting: Setting, probes: Probes, few: Probes) -> _Measures:
    """Say what is measured, in which version: raise the number of a measure whose code finds something else now."""
    fused = [STAGES[stage] for stage in FUSED_STAGES]
    many, some = ({"utterances": [clip.path.name for clip in each.clips], "fused": fused} for each in (probes, few))
    masking = {"masking": asdict(Masking()), "methods": FAITHFUL_METHODS}
    asked = {"false_acceptance": FALSE_ACCEPTANCE, "fewest_strangers": FEWEST_OUT_OF_SET}
    return _Measures(
        Measure("accuracy", 2, Ranks, setting.conditions, {"utterances": setting.utterances}),
        Measure("deletion", 2, tuple[DeletionIndices, ...], setting.probed, many),
        Measure("localisation", 2, tuple[Localisation, ...], [], many),
        Measure("faithfulness", 2, tuple[Faithfulness, ...], setting.masked, {**some, **masking}),
        Measure("randomisation", 1, tuple[Randomised, ...], [CLEAN], some),
        Measure("spectrum", 1, tuple[MapSpectrum, ...], [CLEAN], many),
        Measure("calibration", 2, Calibrated, setting.conditions, asked),
    )


def _accuracy(plan: Plan, setting: Setting) -> Work:
    def work(networks: Networks, tick: Tick) -> Mapping[str, Ranks]:
        counter = Counter(accuracy_steps(networks, plan.corpus, setting.conditions), tick)
        ranks = true_ranks(networks, plan.corpus, plan.corpus.speakers, setting.conditions, counter)
        return {name: Ranks(tuple(map(tuple, ranks[row].tolist()))) for row, name in enumerate(networks)}

    return work


def _deletion(probes: Probes, setting: Setting) -> Work:
    return lambda networks, tick: _by_network(networks, deletion_indices(networks, probes, setting.probed, tick))


def _faithfulness(probes: Probes, setting: Setting) -> Work:
    def work(networks: Networks, tick: Tick) -> Mapping[str, tuple[Faithfulness, ...]]:
        return _by_network(networks, faithfulness(networks, probes, setting.masked, tick, FAITHFUL_METHODS))

    return work


def _of_maps(measured: Callable[[Networks, Probes, Tick], Sequence[Any]], probes: Probes) -> Work:
    return lambda networks, tick: _by_network(networks, measured(networks, probes, tick))


def _calibration(plan: Plan) -> Work:
    corpus, speakers = plan.corpus, plan.corpus.speakers

    def work(networks: Networks, tick: Tick) -> Mapping[str, Calibrated]:
        found: dict[str, Calibrated] = {}

        def calibrated(name: str) -> None:
            calibration = calibrate(networks[name], corpus, speakers)
            report = measure_calibration(networks[name], corpus, speakers, calibration)
            found[name] = Calibrated(calibration, report)

        for_each(networks, calibrated, device_and_front_end(networks)[0], Counter(len(networks), tick))
        return found

    return work


def _by_network(networks: Networks, results: Sequence[Any]) -> Mapping[str, Any]:
    return {name: tuple(result for result in results if result.network == name) for name in networks}
