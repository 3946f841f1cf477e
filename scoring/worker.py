"""A process of an archive: scores shards with a scorer of its own, and writes each as a part of the table."""

import ctypes
import signal
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speakerlens.scoring.inputs import Shard, paths_of
from speakerlens.serving.memory import limit_arenas

if TYPE_CHECKING:
    from speakerlens.scoring.rows import Row
    from speakerlens.scoring.scorer import Scorer

# Of prctl(2): the signal that this process gets when its parent ends, however that ends.
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Task:
    """A shard, and how to score it.

    Attributes:
        shard: which.
        singly: whether its recordings are scored one by one, each announced, to find the one that ends the process.
        skipped: recordings of the shard that are not scored, as they have ended a process.
    """

    shard: Shard
    singly: bool = False
    skipped: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Started:
    """The scorer is open."""

    provider: str


@dataclass(frozen=True)
class At:
    """The next recording of a shard that is scored singly, by its place."""

    index: int


@dataclass(frozen=True)
class Done:
    """A shard's part is written.

    Attributes:
        shard: which.
        rows: how many it has.
        seconds: duration of its recordings.
        failed: recordings without any answer, or with a model that failed, by status.
        named: paths of those, each with the status and the sentence.
    """

    shard: Shard
    rows: int
    seconds: float
    failed: Counter[str] = field(default_factory=Counter)
    named: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Stopped:
    """The process ends, as nothing can be scored or written any more: one sentence."""

    reason: str


Message = Started | At | Done | Stopped


@dataclass(frozen=True)
class Plan:
    """What a worker needs to know.

    Attributes:
        inputs: file with the recordings.
        parts: folder of the parts.
        out: the table, for its suffix.
        bundle: as for `Scorer`.
        options: the other arguments of `Scorer`.
    """

    inputs: Path
    parts: Path
    out: Path
    bundle: Path
    options: dict[str, Any]


def part_of(plan: Plan, shard: Shard) -> Path:
    """Return the file of a shard's part."""
    return plan.parts / f"{shard.name}{plan.out.suffix}"


def work(connection: Connection, plan: Plan) -> None:
    """Score the tasks that arrive until the parent ends; the main function of a process.

    A task that is to be scored singly comes alone; of others, the last is followed by None.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    limit_arenas()
    try:
        _work(connection, plan)
    except (EOFError, BrokenPipeError):  # the parent has ended
        pass
    except Exception as error:  # noqa: BLE001 - the parent reports it
        connection.send(Stopped(f"{type(error).__name__}: {error}"))


def _work(connection: Connection, plan: Plan) -> None:
    # These load the runtime.
    from speakerlens.scoring.scorer import Scorer  # noqa: PLC0415

    with Scorer(plan.bundle, **plan.options) as scorer:
        connection.send(Started(scorer.provider))
        while True:
            task: Task = connection.recv()
            if task.singly:
                _score_singly(connection, plan, task, scorer)
            else:
                _score_many(connection, plan, task, scorer)


def _score_many(connection: Connection, plan: Plan, task: Task, scorer: "Scorer") -> None:
    """Score a task and those that follow until None comes, without a pause between them."""
    tasks = deque([task])

    def sources() -> Iterator[str]:
        yield from paths_of(plan.inputs, task.shard)
        while (following := connection.recv()) is not None:
            tasks.append(following)
            yield from paths_of(plan.inputs, following.shard)

    found: list[list[Row]] = []
    for rows in scorer.score_each(sources()):
        found.append(rows)
        if len(found) == tasks[0].shard.count:
            connection.send(_write(plan, tasks.popleft().shard, found))
            found = []


def _score_singly(connection: Connection, plan: Plan, task: Task, scorer: "Scorer") -> None:
    from speakerlens.scoring.rows import Row  # noqa: PLC0415
    from speakerlens.scoring.sources import named  # noqa: PLC0415

    found: list[list[Row]] = []
    for index, path in enumerate(paths_of(plan.inputs, task.shard)):
        if index in task.skipped:
            [(name, _)] = named([path], None)
            found.append([Row(name, code="CRASHED", error="the process that scored it ended, twice and more")])
            continue
        connection.send(At(index))
        found += scorer.score_each([path])
    connection.send(_write(plan, task.shard, found))


def _write(plan: Plan, shard: Shard, found: Sequence[Sequence["Row"]]) -> Done:
    """Write the rows of each recording of a shard, and return what they count."""
    from speakerlens.scoring.writing import format_of, write_whole  # noqa: PLC0415

    rows = [row for each in found for row in each]
    write_whole(part_of(plan, shard), lambda file: format_of(plan.out).write(file, rows))
    seconds = sum(each[0].seconds or 0.0 for each in found)
    bad = [bad for each in found if (bad := next((row for row in each if row.code is not None), None))]
    named = tuple((row.path, str(row.code), str(row.error)) for row in bad)
    return Done(shard, len(rows), seconds, Counter(code for _, code, _ in named), named)
