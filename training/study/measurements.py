"""Measure every trained run of a plan: accuracy, quality of the maps, calibration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console

from speakerlens.training.data.manifest import Split
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.accuracy import accuracy_steps, true_ranks
from speakerlens.training.evaluation.calibration import (
    FALSE_ACCEPTANCE,
    Calibration,
    CalibrationReport,
    calibrate,
    measure_calibration,
)
from speakerlens.training.evaluation.conditions import CLEAN, Condition, supplied_grid
from speakerlens.training.evaluation.maps.attributions import FUSIONS, METHODS
from speakerlens.training.evaluation.maps.deletion import DELETION_SNRS_DB, DeletionIndices, deletion_indices
from speakerlens.training.evaluation.maps.faithfulness import Faithfulness, Masking, faithfulness
from speakerlens.training.evaluation.maps.listening import LISTENED_MAPS, ListenedMaps, listened_maps
from speakerlens.training.evaluation.maps.localisation import Localisation, localisation
from speakerlens.training.evaluation.maps.probes import Counter, Probes, Progress, choose_probes
from speakerlens.training.evaluation.maps.randomisation import Randomised, randomisation
from speakerlens.training.evaluation.maps.spectrum import MapSpectrum, map_spectra
from speakerlens.training.evaluation.predictions import FEWEST_OUT_OF_SET
from speakerlens.training.evaluation.workers import Networks, device_and_front_end, for_each
from speakerlens.training.model.network import STAGES
from speakerlens.training.model.saliency import FUSED_STAGES
from speakerlens.training.study.plan import Plan, PlannedRun
from speakerlens.training.study.store import Measure, MeasureStore, Work

FEW_PROBES = 30
"""Utterances for faithfulness, listening and randomisation, which run the network hundreds of times on each."""

FAITHFUL_METHODS = tuple(dict.fromkeys((*METHODS, *FUSIONS)))

_FAITHFUL_SNR_DB = 5.0


@dataclass(frozen=True)
class EvaluationSet:
    """Conditions and utterances of the measurements, the same for all runs.

    Attributes:
        conditions: for accuracy; the first is clean. left_out: kinds that the corpus cannot supply, and why.
        kinds: of interference.
        utterances: names of the test utterances, in the order of `Ranks`.
        probes: names of the utterances whose maps are measured.
    """

    conditions: tuple[Condition, ...]
    left_out: Mapping[str, str]
    kinds: tuple[str, ...]
    utterances: tuple[str, ...]
    probes: tuple[str, ...]

    @property
    def probed(self) -> tuple[Condition, ...]:
        """Return the conditions in which the maps are measured."""
        return tuple(Condition(kind, snr_db) for kind in self.kinds for snr_db in DELETION_SNRS_DB)

    @property
    def masked(self) -> tuple[Condition, ...]:
        """Return the conditions in which faithfulness is measured: clean, and the first kind at 5 dB."""
        return CLEAN, Condition(self.kinds[0], _FAITHFUL_SNR_DB)


@dataclass(frozen=True)
class Ranks:
    """Rank of the true speaker among all, 1 is best: by condition, then by test utterance of the manifest."""

    ranks: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Calibrated:
    """Calibration of a run on dev utterances, and its measurement on test utterances."""

    calibration: Calibration
    report: CalibrationReport


@dataclass(frozen=True)
class Measurements:
    """All measurements, by run, in the order of the plan.

    Faithfulness, listening and randomisation are of the first seed's runs only. Localisation is empty where the test
    split has no other talkers. `code_revisions` are of the code that measured, by measure.
    """

    evaluation_set: EvaluationSet
    accuracy: Mapping[PlannedRun, Ranks]
    deletion: Mapping[PlannedRun, tuple[DeletionIndices, ...]]
    localisation: Mapping[PlannedRun, tuple[Localisation, ...]]
    faithfulness: Mapping[PlannedRun, tuple[Faithfulness, ...]]
    listening: Mapping[PlannedRun, tuple[ListenedMaps, ...]]
    randomisation: Mapping[PlannedRun, tuple[Randomised, ...]]
    spectra: Mapping[PlannedRun, tuple[MapSpectrum, ...]]
    calibration: Mapping[PlannedRun, Calibrated]
    code_revisions: Mapping[str, tuple[str, ...]]


def choose_evaluation_set(plan: Plan) -> EvaluationSet:
    """Return what a plan's corpus has to test with.

    Raises:
        UserError: the corpus has no dev or no test utterances, or no interference.
    """
    corpus = plan.corpus
    conditions, left_out = supplied_grid(corpus, "test")
    kinds = tuple(dict.fromkeys(condition.kind for condition in conditions[1:]))
    purposes: dict[Split, str] = {"dev": "calibration and convergence", "test": "the comparison"}
    for split, what in purposes.items():
        if not corpus.utterances(split):
            raise UserError(f"{corpus.root}: has no {split} utterances; a study needs some of every speaker for {what}")
    if not kinds:
        raise UserError(f"{corpus.root}: has no interference to test with; prepare it with noise, music or others")
    utterances = tuple(clip.path.name for clip in corpus.utterances("test"))
    probes = tuple(clip.path.name for clip in choose_probes(corpus, corpus.speakers).clips)
    return EvaluationSet(conditions, left_out, kinds, utterances, probes)


def measure(plan: Plan, device: torch.device, console: Console) -> Measurements:
    """Measure what has not been measured yet, and return all measurements.

    Raise the version of a measure whenever its code gives other results.

    Raises:
        UserError: as of `choose_evaluation_set`, or a stored result is damaged.
    """
    tests = choose_evaluation_set(plan)
    store = MeasureStore(plan, device, console)
    probes = choose_probes(plan.corpus, plan.corpus.speakers)
    few = choose_probes(plan.corpus, plan.corpus.speakers, FEW_PROBES)
    fused = [STAGES[stage] for stage in FUSED_STAGES]
    many_names, few_names = (
        {"utterances": [clip.path.name for clip in each.clips], "fused": fused} for each in (probes, few)
    )
    masking = {"masking": asdict(Masking()), "methods": FAITHFUL_METHODS}
    rates = {"false_acceptance": FALSE_ACCEPTANCE, "fewest_strangers": FEWEST_OUT_OF_SET}
    first = plan.seeds[:1]
    return Measurements(
        tests,
        store.each(
            Measure("accuracy", 2, Ranks, tests.conditions, {"utterances": tests.utterances}), _accuracy(plan, tests)
        ),
        store.each(
            Measure("deletion", 2, tuple[DeletionIndices, ...], tests.probed, many_names),
            lambda networks, tick: _by_network(networks, deletion_indices(networks, probes, tests.probed, tick)),
        ),
        store.each(Measure("localisation", 2, tuple[Localisation, ...], [], many_names), _of_maps(localisation, probes))
        if "speaker" in tests.kinds
        else {},
        store.each(
            Measure("faithfulness", 2, tuple[Faithfulness, ...], tests.masked, {**few_names, **masking}),
            lambda networks, tick: _by_network(
                networks, faithfulness(networks, few, tests.masked, tick, FAITHFUL_METHODS)
            ),
            first,
        ),
        store.each(
            Measure("listening", 1, tuple[ListenedMaps, ...], tests.masked, {**few_names, "methods": LISTENED_MAPS}),
            lambda networks, tick: _by_network(networks, listened_maps(networks, few, tests.masked, tick)),
            first,
        ),
        store.each(
            Measure("randomisation", 1, tuple[Randomised, ...], [CLEAN], few_names), _of_maps(randomisation, few), first
        ),
        store.each(Measure("spectrum", 1, tuple[MapSpectrum, ...], [CLEAN], many_names), _of_maps(map_spectra, probes)),
        store.each(Measure("calibration", 2, Calibrated, tests.conditions, rates), _calibration(plan)),
        store.code_revisions,
    )


def _accuracy(plan: Plan, tests: EvaluationSet) -> Work:
    def work(networks: Networks, tick: Progress) -> Mapping[str, Ranks]:
        counter = Counter(accuracy_steps(networks, plan.corpus, tests.conditions), tick)
        ranks = true_ranks(networks, plan.corpus, plan.corpus.speakers, tests.conditions, counter)
        return {name: Ranks(tuple(map(tuple, ranks[row].tolist()))) for row, name in enumerate(networks)}

    return work


def _of_maps(measured: Callable[[Networks, Probes, Progress], Sequence[Any]], probes: Probes) -> Work:
    return lambda networks, tick: _by_network(networks, measured(networks, probes, tick))


def _calibration(plan: Plan) -> Work:
    corpus, speakers = plan.corpus, plan.corpus.speakers

    def work(networks: Networks, tick: Progress) -> Mapping[str, Calibrated]:
        results: dict[str, Calibrated] = {}

        def calibrated(name: str) -> None:
            calibration = calibrate(networks[name], corpus, speakers)
            report = measure_calibration(networks[name], corpus, speakers, calibration)
            results[name] = Calibrated(calibration, report)

        device, _ = device_and_front_end(networks)
        for_each(networks, calibrated, device, Counter(len(networks), tick))
        return results

    return work


def _by_network(networks: Networks, results: Sequence[Any]) -> Mapping[str, Any]:
    return {name: tuple(result for result in results if result.network == name) for name in networks}
