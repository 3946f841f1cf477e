"""Measure every trained run of a plan: accuracy, what the maps are worth, calibration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console

from training.calibration import Calibration, CalibrationReport, calibrate, measure_calibration
from training.conditions import CLEAN
from training.maps.attributions import FUSIONS, METHODS
from training.maps.deletion import DeletionIndices, deletion_indices
from training.maps.faithfulness import Faithfulness, faithfulness
from training.maps.localisation import Localisation, localisation
from training.maps.probes import Counter, Probes, choose_probes
from training.maps.probes import Progress as Tick
from training.maps.randomisation import Randomised, randomisation
from training.maps.spectrum import MapSpectrum, map_spectra
from training.measure import accuracy_steps, true_ranks
from training.study.bench import Bench, Work
from training.study.plan import Plan, PlannedRun
from training.study.setting import Setting, survey
from training.workers import Networks, common, for_each

FEW_PROBES = 30
"""Utterances on which maps are masked and weights randomised: each is heard hundreds of times."""


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
    other talkers.
    """

    setting: Setting
    accuracy: Mapping[PlannedRun, Ranks]
    deletion: Mapping[PlannedRun, tuple[DeletionIndices, ...]]
    localisation: Mapping[PlannedRun, tuple[Localisation, ...]]
    faithfulness: Mapping[PlannedRun, tuple[Faithfulness, ...]]
    randomisation: Mapping[PlannedRun, tuple[Randomised, ...]]
    spectra: Mapping[PlannedRun, tuple[MapSpectrum, ...]]
    calibration: Mapping[PlannedRun, Calibrated]


def measure(plan: Plan, device: torch.device, console: Console) -> Findings:
    """Measure what has not been measured yet, and give it all.

    Raises:
        UserError: the corpus has no test utterances or no interference to test with, or a result is damaged.
    """
    setting = survey(plan)
    each = Bench(plan, device, console).each
    probes = choose_probes(plan.corpus, plan.corpus.speakers)
    few = choose_probes(plan.corpus, plan.corpus.speakers, FEW_PROBES)
    first = plan.seeds[:1]
    talkers = "speaker" in setting.kinds
    return Findings(
        setting,
        each("accuracy", Ranks, setting.conditions, _accuracy(plan, setting)),
        each("deletion", tuple[DeletionIndices, ...], setting.probed, _deletion(probes, setting)),
        each("localisation", tuple[Localisation, ...], [], _of_maps(localisation, probes)) if talkers else {},
        each("faithfulness", tuple[Faithfulness, ...], setting.masked, _faithfulness(few, setting), first),
        each("randomisation", tuple[Randomised, ...], [CLEAN], _of_maps(randomisation, few), first),
        each("spectrum", tuple[MapSpectrum, ...], [CLEAN], _of_maps(map_spectra, probes)),
        each("calibration", Calibrated, setting.conditions, _calibration(plan)),
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
    methods = tuple(dict.fromkeys((*METHODS, *FUSIONS)))
    return lambda networks, tick: _by_network(networks, faithfulness(networks, probes, setting.masked, tick, methods))


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

        for_each(networks, calibrated, common(networks)[0], Counter(len(networks), tick))
        return found

    return work


def _by_network(networks: Networks, results: Sequence[Any]) -> Mapping[str, Any]:
    return {name: tuple(result for result in results if result.network == name) for name in networks}
