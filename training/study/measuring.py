"""Measure every trained run of a plan, each measure of each run once: what is found is kept under OUT/results."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from training.calibration import Calibration, CalibrationReport, calibrate, calibration_steps, measure_calibration
from training.checkpoint import CHECKPOINT, load_run
from training.conditions import Condition, supplied_grid
from training.errors import UserError
from training.maps.deletion import DeletionIndices, deletion_indices
from training.maps.probes import Counter, choose_probes
from training.maps.probes import Progress as Tick
from training.measure import DELETION_SNRS_DB, accuracy_steps, true_ranks
from training.study.plan import Plan, PlannedRun
from training.study.store import digest_of, read_result, write_result
from training.workers import Networks

RESULTS = "results"

Result = TypeVar("Result")


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
class Setting:
    """What the runs are measured under.

    Attributes:
        conditions: all of the accuracy's; the first is clean. left_out: kinds that the corpus cannot supply, and why.
        kinds: of interference; overlapping: those that mask bins of the speech.
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
        """Conditions in which the maps are measured."""
        return tuple(Condition(kind, snr_db) for kind in self.kinds for snr_db in DELETION_SNRS_DB)


@dataclass(frozen=True)
class Findings:
    """All that was measured: by run, in the order of the plan."""

    setting: Setting
    accuracy: Mapping[PlannedRun, Ranks]
    deletion: Mapping[PlannedRun, tuple[DeletionIndices, ...]]
    calibration: Mapping[PlannedRun, Calibrated]


def measure(plan: Plan, device: torch.device, console: Console) -> Findings:
    """Measure what has not been measured yet, and give it all.

    Raises:
        UserError: the corpus has no test utterances or no interference to test with, or a result is damaged.
    """
    setting = survey(plan)
    bench = _Bench(plan, device, console)
    return Findings(
        setting,
        bench.each("accuracy", Ranks, setting.conditions, _accuracy(plan, setting)),
        bench.each("deletion", tuple[DeletionIndices, ...], setting.probed, _deletion(plan, setting)),
        bench.each("calibration", Calibrated, setting.conditions, _calibration(plan)),
    )


def survey(plan: Plan) -> Setting:
    """See what a plan's corpus has to test with. Raises UserError if it is not enough."""
    corpus = plan.corpus
    conditions, left_out = supplied_grid(corpus, "test")
    kinds = tuple(dict.fromkeys(condition.kind for condition in conditions[1:]))
    if not corpus.utterances("test"):
        raise UserError(f"{corpus.root}: has no test utterances; a study needs some of every speaker")
    if not kinds:
        raise UserError(f"{corpus.root}: has no interference to test with; make the corpus with noise, music or others")
    utterances = tuple(clip.path.name for clip in corpus.utterances("test"))
    probes = tuple(clip.path.name for clip in choose_probes(corpus, corpus.speakers).clips)
    return Setting(conditions, left_out, kinds, utterances, probes)


_Work = Callable[[Networks, Tick], Mapping[str, Any]]
"""Takes networks by name; gives each one's result, and tells how far it is."""


def _accuracy(plan: Plan, setting: Setting) -> _Work:
    def work(networks: Networks, tick: Tick) -> Mapping[str, Ranks]:
        counter = Counter(accuracy_steps(networks, plan.corpus, setting.conditions), tick)
        ranks = true_ranks(networks, plan.corpus, plan.corpus.speakers, setting.conditions, counter)
        return {name: Ranks(tuple(map(tuple, ranks[row].tolist()))) for row, name in enumerate(networks)}

    return work


def _deletion(plan: Plan, setting: Setting) -> _Work:
    def work(networks: Networks, tick: Tick) -> Mapping[str, tuple[DeletionIndices, ...]]:
        probes = choose_probes(plan.corpus, plan.corpus.speakers)
        return _by_network(networks, deletion_indices(networks, probes, setting.probed, tick))

    return work


def _calibration(plan: Plan) -> _Work:
    corpus, speakers = plan.corpus, plan.corpus.speakers

    def work(networks: Networks, tick: Tick) -> Mapping[str, Calibrated]:
        steps = sum(calibration_steps(corpus, split, speakers) for split in ("dev", "test"))
        counter = Counter(steps * len(networks), tick)
        found = {}
        for name, network in networks.items():
            calibration = calibrate(network, corpus, speakers, advance=counter)
            found[name] = Calibrated(calibration, measure_calibration(network, corpus, speakers, calibration, counter))
        return found

    return work


def _by_network(networks: Networks, results: Sequence[Any]) -> Mapping[str, Any]:
    return {name: tuple(result for result in results if result.network == name) for name in networks}


class _Bench:
    """Where runs are measured, a seed's variants together, so that the mixtures are made once for all of them."""

    def __init__(self, plan: Plan, device: torch.device, console: Console) -> None:
        self._plan, self._device, self._console = plan, device, console
        self._digests = {run: digest_of(run.folder / CHECKPOINT) for run in plan.runs}

    def each(
        self, name: str, kind: type[Result], conditions: Sequence[Condition], work: _Work
    ) -> dict[PlannedRun, Result]:
        """Give a measure of every run; what is on disk already is not measured again."""
        plan = self._plan
        files = {run: plan.out / RESULTS / f"seed-{run.seed}" / run.variant / f"{name}.json" for run in plan.runs}
        common = {"corpus": plan.corpus.digest, "conditions": [str(condition) for condition in conditions]}
        identities = {run: {"network": self._digests[run], **common} for run in plan.runs}
        found = {run: read_result(files[run], kind, identities[run]) for run in plan.runs}
        for seed in plan.seeds:
            missing = {run.variant: run for run in plan.runs if run.seed == seed and found[run] is None}
            if missing:
                networks = {run.variant: load_run(run.folder, self._device).network for run in missing.values()}
                for variant, result in self._watched(f"{name}, seed {seed}", networks, work).items():
                    run = missing[variant]
                    write_result(files[run], result, identities[run])
                    found[run] = result
        return {run: result for run, result in found.items() if result is not None}

    def _watched(self, title: str, networks: Networks, work: _Work) -> Mapping[str, Any]:
        """Do some work under a progress bar, or with a line at its end where there is no terminal."""
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        console = self._console
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(title, total=None)
            results = work(networks, lambda done, total: progress.update(task, completed=done, total=total))
        if not console.is_terminal:
            console.print(f"measured: {title}", markup=False, highlight=False, soft_wrap=True)
        return results
