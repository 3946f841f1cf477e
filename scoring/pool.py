"""The processes of an archive: each has shards ahead, and what a process that ends had in work goes to another."""

import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from speakerlens.scoring.inputs import SHARD_SOURCES, Shard
from speakerlens.scoring.worker import At, Done, Plan, Started, Stopped, Task, work

# Recordings of one worker at least: one shard is computed, and more follow than a scorer reads ahead.
AHEAD = 2 * SHARD_SOURCES
# A shard during which a process has ended this often is scored recording by recording.
ENDINGS = 2
# So often a process may end before it could begin.
STARTS = 3
WAIT_SECONDS = 1.0
ENDING_SECONDS = 10.0


class ScoringError(Exception):
    """Scoring cannot go on: one sentence."""


@dataclass
class _Worker:
    """A process and what it has in work, in order.

    Attributes:
        started: whether its scorer is open.
        flushing: whether it was told that nothing follows what it has: it reads ahead, and would wait for more.
        at: the recording that it scores singly.
    """

    process: Any
    connection: Connection
    number: int
    tasks: deque[Task] = field(default_factory=deque)
    started: bool = False
    flushing: bool = False
    at: int | None = None


class Pool:
    """Score shards in several processes.

    Args:
        plan: what to score, and with what.
        environments: variables of each process; as many processes as these.
        shards: what is left to do.
    """

    def __init__(self, plan: Plan, environments: list[dict[str, str]], shards: Iterator[Shard]) -> None:
        self._plan = plan
        self._environments = environments
        self._waiting: deque[Task] = deque()
        self._shards = shards
        self._workers: list[_Worker] = []
        self._endings: Counter[int] = Counter()
        self._false_starts = 0
        self.restarts = 0
        self.provider = ""

    def run(self) -> Iterator[Done | None]:
        """Yield each shard that is done, in any order, and None about every second.

        Raises:
            ScoringError: nothing can be scored or written any more. What is done stays so.
        """
        try:
            while True:
                self._feed()
                if not any(each.tasks for each in self._workers):
                    return
                ready = wait([each.connection for each in self._workers], WAIT_SECONDS)
                for worker in [each for each in self._workers if each.connection in ready]:
                    yield from self._receive(worker)
                yield None
        finally:
            self.close()

    def close(self) -> None:
        """End all processes at once."""
        for each in self._workers:
            each.process.kill()
            each.process.join()
            each.connection.close()
        self._workers.clear()

    @property
    def pids(self) -> list[int]:
        """Return the processes' ids."""
        return [each.process.pid for each in self._workers]

    def _feed(self) -> None:
        """Start the processes that are missing, and give each its next shards."""
        used = {each.number for each in self._workers}
        for number in range(len(self._environments)):
            if number not in used and self._next() is not None:
                self._start(number)
        while any([self._give(each) for each in self._workers]):  # in turn  # noqa: C419
            pass

    def _give(self, worker: _Worker) -> bool:
        """Give a process its next shard, if it can have one now; return whether it did."""
        task = self._next()
        if worker.tasks and (task is None or task.singly or worker.flushing or worker.tasks[0].singly):
            if not worker.flushing and not worker.tasks[0].singly:
                worker.flushing = True
                self._send(worker, None)
            return False
        if task is None or sum(each.shard.count for each in worker.tasks) >= AHEAD:
            return False
        self._waiting.popleft()
        worker.flushing = False
        worker.tasks.append(task)
        self._send(worker, task)
        return True

    def _next(self) -> Task | None:
        """Return the next task, which stays where it is."""
        if not self._waiting and (shard := next(self._shards, None)) is not None:
            self._waiting.append(Task(shard))
        return self._waiting[0] if self._waiting else None

    def _start(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, self._plan), name=f"score-{number}", daemon=True)
        with _variables(self._environments[number]):
            process.start()
        theirs.close()  # so that its end is seen
        self._workers.append(_Worker(process, ours, number))

    def _send(self, worker: _Worker, task: Task | None) -> None:
        with suppress(BrokenPipeError):  # it has ended, which is seen when it is read from
            worker.connection.send(task)

    def _receive(self, worker: _Worker) -> Iterator[Done]:
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._ended(worker)
            return
        match message:
            case Started(provider):
                worker.started, self.provider = True, provider
            case At(index):
                worker.at = index
            case Stopped(reason):
                raise ScoringError(reason)
            case Done(shard):
                worker.tasks = deque(each for each in worker.tasks if each.shard != shard)
                worker.at = None
                yield message

    def _ended(self, worker: _Worker) -> None:
        """Put what a process had in work back; the first of it may be why it ended."""
        self._workers.remove(worker)
        worker.process.join(ENDING_SECONDS)
        worker.connection.close()
        self.restarts += 1
        if not worker.started:
            self._false_starts += 1
            if self._false_starts == STARTS:
                raise ScoringError(f"the process that scores ends before it begins: {_ending(worker.process.exitcode)}")
        elif worker.tasks:
            worker.tasks[0] = self._blamed(worker.tasks[0], worker.at)
        self._waiting.extendleft(reversed(worker.tasks))

    def _blamed(self, task: Task, at: int | None) -> Task:
        if task.singly and at is not None:
            return replace(task, skipped=task.skipped | {at})
        self._endings[task.shard.number] += 1
        return replace(task, singly=self._endings[task.shard.number] >= ENDINGS)


@contextmanager
def _variables(changes: dict[str, str]) -> Iterator[None]:
    """Change the variables of this process, which one that is started then begins with."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit status {code}"
