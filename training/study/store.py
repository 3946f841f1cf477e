"""Measurements of each run, kept on disk so that each is made once, with the revision of the code that made it.

The files are Python's JSON: missing figures stand as NaN, so that a result is read back as it was written.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from speakerlens.training.checkpoint import CHECKPOINT, code_revision, load_run
from speakerlens.training.errors import UserError
from speakerlens.training.evaluation.conditions import SEED, Condition
from speakerlens.training.evaluation.maps.probes import Progress as Tick
from speakerlens.training.evaluation.workers import Networks
from speakerlens.training.files import make_folder, write_whole
from speakerlens.training.study.plan import Plan, PlannedRun

RESULTS = "results"

Result = TypeVar("Result")

Work = Callable[[Networks, Tick], Mapping[str, Any]]
"""Measure networks by name; return each one's result, and report progress."""

_DAMAGED = "damaged; delete it to measure again"


@dataclass(frozen=True)
class Measure(Generic[Result]):
    """Identity of a measurement; a stored result of another identity is measured again.

    Attributes:
        name: of the measure, and of its files.
        version: raised by one whenever its code gives other results.
        kind: type of the result.
        conditions: in which it is measured.
        settings: everything else that the result depends on, ready for JSON.
    """

    name: str
    version: int
    kind: type[Result]
    conditions: Sequence[Condition]
    settings: Mapping[str, object]


class Stored(NamedTuple, Generic[Result]):
    """A result, and the revision of the code that measured it."""

    result: Result
    code_revision: str


class MeasureStore:
    """Measure the runs of a plan, all variants of a seed together, so that their mixtures are made once.

    Attributes:
        code_revisions: by measure, of the code that made the results; more than one where results were on disk.
    """

    def __init__(self, plan: Plan, device: torch.device, console: Console) -> None:
        make_folder(plan.out / RESULTS)
        self._plan, self._device, self._console = plan, device, console
        self._digests = {run: digest_of(run.folder / CHECKPOINT) for run in plan.runs}
        self.code_revisions: dict[str, tuple[str, ...]] = {}

    def each(
        self, measure: Measure[Result], work: Work, seeds: Sequence[int] | None = None
    ) -> dict[PlannedRun, Result]:
        """Return a measurement of every run, or of the runs of some seeds; results on disk are not measured again.

        Args:
            measure: what to measure.
            work: measures networks.
            seeds: those to measure; None means all.
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
        results = {run: read_result(files[run], kind, identities[run]) for run in runs}
        for seed in plan.seeds:
            missing = {run.variant: run for run in runs if run.seed == seed and results[run] is None}
            if missing:
                networks = {run.variant: load_run(run.folder, self._device).network for run in missing.values()}
                for variant, result in self._with_progress(f"{name}, seed {seed}", networks, work).items():
                    run = missing[variant]
                    write_result(files[run], result, identities[run])
                    results[run] = Stored(result, code_revision())
        self.code_revisions[name] = tuple(sorted({stored.code_revision for stored in results.values() if stored}))
        return {run: stored.result for run, stored in results.items() if stored is not None}

    def _with_progress(self, title: str, networks: Networks, work: Work) -> Mapping[str, Any]:
        """Run some work with a progress bar on a terminal, or with a line at its end elsewhere."""
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        console = self._console
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task(title, total=None)
            results = work(networks, lambda done, total: progress.update(task, completed=done, total=total))
        if not console.is_terminal:
            console.print(f"measured: {title}", markup=False, highlight=False, soft_wrap=True)
        return results


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_result(path: Path, kind: type[Result], identity: Mapping[str, object]) -> Stored[Result] | None:
    """Read a result; None if there is none, or it has another identity.

    Args:
        path: the file.
        kind: type of the result: dataclasses, tuples, mappings and plain values, to any depth.
        identity: what the result must be of.

    Raises:
        UserError: the file is damaged, was changed by hand, or cannot be read.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["of"] != json.loads(json.dumps(identity)):
            return None
        whole = stored["digest"] == _digest(stored["found"])
        result: Stored[Result] = Stored(_from_plain(kind, stored["found"]), str(stored["code_revision"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); clear the way, or give another --out") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {_DAMAGED}") from error
    if not whole:
        raise UserError(f"{path}: {_DAMAGED}")
    return result


def write_result(path: Path, result: object, identity: Mapping[str, object]) -> None:
    """Write a result atomically. Raises UserError if it cannot be written."""
    plain = json.loads(json.dumps(_plain(result)))
    stored = {"of": identity, "code_revision": code_revision(), "digest": _digest(plain), "found": plain}
    write_whole(path, json.dumps(stored, ensure_ascii=False) + "\n")


def _digest(plain: object) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _from_plain(kind: Any, value: Any) -> Any:
    """Convert parsed JSON back to a type."""
    arguments = get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        fields = {field.name: _from_plain(hints[field.name], value[field.name]) for field in dataclasses.fields(kind)}
        return kind(**fields)  # type: ignore[operator]
    if get_origin(kind) is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_from_plain(item, part) for item, part in zip(kinds, value, strict=True))
    if get_origin(kind) is Mapping:
        return {key: _from_plain(arguments[1], item) for key, item in value.items()}
    if isinstance(kind, UnionType):
        return None if value is None else _from_plain(next(item for item in arguments if item is not type(None)), value)
    return value
