"""Where runs are measured: each measure of each run once, under a progress bar; what is found is kept on disk."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from speakerlens.training.checkpoint import CHECKPOINT, code_revision, load_run
from speakerlens.training.evaluation.conditions import SEED, Condition
from speakerlens.training.evaluation.maps.probes import Progress as Tick
from speakerlens.training.evaluation.workers import Networks
from speakerlens.training.files import make_folder
from speakerlens.training.study.plan import Plan, PlannedRun
from speakerlens.training.study.store import Stored, digest_of, read_result, write_result

RESULTS = "results"

Result = TypeVar("Result")

Work = Callable[[Networks, Tick], Mapping[str, Any]]
"""Takes networks by name; gives each one's result, and tells how far it is."""


@dataclass(frozen=True)
class Measure(Generic[Result]):
    """Something that is measured of runs.

    Attributes:
        name: of the measure, and of its files.
        version: raised by one whenever its code changes what it finds, so that what is on disk is measured again.
        kind: what it finds.
        conditions: in which it is measured.
        settings: all else that what it finds depends on, ready for JSON; with another value it is measured again.
    """

    name: str
    version: int
    kind: type[Result]
    conditions: Sequence[Condition]
    settings: Mapping[str, object]


class Bench:
    """Measures the runs of a plan, a seed's variants together, so that the mixtures are made once for all of them.

    Attributes:
        code_revisions: of the code that measured what was given, by measure; more than one where results were on disk.
    """

    def __init__(self, plan: Plan, device: torch.device, console: Console) -> None:
        make_folder(plan.out / RESULTS)
        self._plan, self._device, self._console = plan, device, console
        self._digests = {run: digest_of(run.folder / CHECKPOINT) for run in plan.runs}
        self.code_revisions: dict[str, tuple[str, ...]] = {}

    def each(
        self, measure: Measure[Result], work: Work, seeds: Sequence[int] | None = None
    ) -> dict[PlannedRun, Result]:
        """Give a measure of every run, or of those of some seeds; what is on disk already is not measured again.

        Args:
            measure: what.
            work: measures networks.
            seeds: those wanted; None means all.
        """
        plan, name, kind = self._plan, measure.name, measure.kind
        runs = [run for run in plan.runs if seeds is None or run.seed in seeds]
        files = {run: plan.out / RESULTS / f"seed-{run.seed}" / run.variant / f"{name}.json" for run in runs}
        common = {
            "corpus": plan.corpus.digest,
            "mixtures": SEED,
            "version": measure.version,
            "conditions": [str(condition) for condition in measure.conditions],
            "settings": measure.settings,
        }
        identities = {run: {"network": self._digests[run], **common} for run in runs}
        found = {run: read_result(files[run], kind, identities[run]) for run in runs}
        for seed in plan.seeds:
            missing = {run.variant: run for run in runs if run.seed == seed and found[run] is None}
            if missing:
                networks = {run.variant: load_run(run.folder, self._device).network for run in missing.values()}
                for variant, result in self._watched(f"{name}, seed {seed}", networks, work).items():
                    run = missing[variant]
                    write_result(files[run], result, identities[run])
                    found[run] = Stored(result, code_revision())
        self.code_revisions[name] = tuple(sorted({stored.code_revision for stored in found.values() if stored}))
        return {run: stored.found for run, stored in found.items() if stored is not None}

    def _watched(self, title: str, networks: Networks, work: Work) -> Mapping[str, Any]:
        """Do some work under a progress bar, or with a line at its end where there is no terminal."""
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        console = self._console
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(title, total=None)
            results = work(networks, lambda done, total: progress.update(task, completed=done, total=total))
        if not console.is_terminal:
            console.print(f"measured: {title}", markup=False, highlight=False, soft_wrap=True)
        return results
