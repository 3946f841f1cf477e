"""Failed batches: halved while the engine works, kept waiting while it is broken."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from speakerlens.serving.engine import recovery as recovery_module
from speakerlens.serving.engine.batcher import Batcher
from speakerlens.serving.engine.queue import Priority, QueueLimits
from speakerlens.serving.engine.recovery import EngineRecovery
from speakerlens.serving.engine.scheduler import Scheduler
from speakerlens.serving.errors import DeadlineError, Reason, ResourceExhaustedError, UnavailableError
from tests.serving.fakes import PATIENCE_SECONDS, Recorder, until


class Breakable(Recorder):
    """Poison breaks it: everything fails then until it is reopened, which fails `refusals` times."""

    def __init__(self, poison: frozenset[int] = frozenset(), refusals: int = 0) -> None:
        super().__init__(poison)
        self.sticky = True
        self.broken = False
        self.refusals = refusals
        self.opening = threading.Event()
        self.opening.set()
        self.attempts: list[bool] = []
        self.notified: list[bool] = []

    def compute(self, inputs: list[int]) -> Sequence[int]:
        if self.broken:
            raise OSError("broken")
        try:
            return super().compute(inputs)
        except ArithmeticError:
            self.broken = self.sticky
            raise

    def probe(self) -> None:
        if self.broken:
            raise OSError("broken")

    def reopen(self) -> None:
        assert self.opening.wait(PATIENCE_SECONDS)
        if self.refusals:
            self.refusals -= 1
            raise OSError("still broken")
        self.broken = False


def run(work: Breakable, scenario: Callable[["Batcher[int, int]", EngineRecovery], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        scheduler = Scheduler("test")
        recovery = EngineRecovery("test", work.reopen, work.attempts.append)
        recovery.subscribe(work.notified.append)
        batcher = Batcher[int, int]("test", work, scheduler, QueueLimits(100, 8, 10**9), work, recovery)
        try:
            await asyncio.wait_for(scenario(batcher, recovery), PATIENCE_SECONDS)
        finally:
            work.gate.set()
            work.opening.set()
            await recovery.close()
            await batcher.close()
            scheduler.close()

    asyncio.run(main())


async def together(work: Breakable, batcher: "Batcher[int, int]", numbers: Sequence[int]) -> list[Any]:
    """Return what each job gets, submitted so that they are one batch."""
    work.gate.clear()
    first = asyncio.create_task(batcher.submit(0))
    await until(lambda: work.deepest > 0 and not work.depth)
    tasks = [asyncio.create_task(batcher.submit(number)) for number in numbers]
    await until(lambda: work.depth == len(numbers))
    work.gate.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_a_bad_job_is_found_by_halving_its_batch() -> None:
    work = Breakable(frozenset({6}))
    work.sticky = False

    async def scenario(batcher: "Batcher[int, int]", recovery: EngineRecovery) -> None:
        outcomes = await together(work, batcher, range(1, 9))
        for number, outcome in zip(range(1, 9), outcomes, strict=True):
            assert isinstance(outcome, ArithmeticError) if number == 6 else outcome.result == -number
        assert work.batches[1:] == [[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4], [5, 6, 7, 8], [5, 6], [5], [6], [7, 8]]
        assert work.depth == 0
        assert not work.notified

    run(work, scenario)


def test_all_bad_jobs_are_found_at_bounded_cost() -> None:
    work = Breakable(frozenset(range(1, 9)))
    work.sticky = False

    async def scenario(batcher: "Batcher[int, int]", recovery: EngineRecovery) -> None:
        outcomes = await together(work, batcher, range(1, 9))
        assert all(isinstance(outcome, ArithmeticError) for outcome in outcomes)
        assert len(work.batches) - 1 == 15, "each is in one batch of every size: 8, 4, 2 and 1"

    run(work, scenario)


def test_a_broken_engine_is_reopened_and_others_are_answered() -> None:
    work = Breakable(frozenset({3}))

    async def scenario(batcher: "Batcher[int, int]", recovery: EngineRecovery) -> None:
        outcomes = await together(work, batcher, range(1, 5))
        for number, outcome in zip(range(1, 5), outcomes, strict=True):
            assert isinstance(outcome, ArithmeticError) if number == 3 else outcome.result == -number
        await until(lambda: not recovery.broken)
        assert work.notified == [False, True] * (len(work.notified) // 2)
        assert work.attempts == [True] * (len(work.notified) // 2)
        assert 1 <= len(work.attempts) <= 4, "a batch of 4, of 2, and the bad one alone, twice"

    run(work, scenario)


def test_a_job_alone_on_a_broken_engine_is_retried() -> None:
    work = Breakable()
    work.broken = True

    async def scenario(batcher: "Batcher[int, int]", recovery: EngineRecovery) -> None:
        assert (await batcher.submit(7)).result == -7
        assert work.attempts == [True]

    run(work, scenario)


def test_jobs_wait_for_recovery_until_their_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_module, "FIRST_PAUSE_SECONDS", 0.01)
    work = Breakable(refusals=2)
    work.broken = True
    work.opening.clear()

    async def scenario(batcher: "Batcher[int, int]", recovery: EngineRecovery) -> None:
        waiting = asyncio.create_task(batcher.submit(1))
        await until(lambda: recovery.broken)
        assert work.notified == [False]
        with pytest.raises(DeadlineError):
            await batcher.submit(2, time.monotonic() + 0.05)
        late = asyncio.create_task(batcher.submit(3))
        work.opening.set()
        assert (await waiting).result == -1
        assert (await late).result == -3
        assert work.attempts == [False, False, True]
        assert work.notified == [False, True]
        assert 2 not in {number for batch in work.batches for number in batch}

    run(work, scenario)


def test_jobs_are_refused_after_several_failed_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_module, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(recovery_module, "MAX_PAUSE_SECONDS", 0.01)
    work = Breakable(refusals=10**9)
    work.broken = True

    async def scenario(batcher: "Batcher[int, int]", recovery: EngineRecovery) -> None:
        waiting = [batcher.submit(1), batcher.submit(2, None, Priority.BULK)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(outcome, UnavailableError) for outcome in outcomes)
        assert outcomes[0] is not outcomes[1]
        assert len(work.attempts) >= recovery_module.ATTEMPTS_BEFORE_REFUSING
        assert recovery.broken
        with pytest.raises(UnavailableError, match="the engine of test is broken"):
            batcher.check_room()
        for due in (None, 1e9):  # of an admitted call: as well
            with pytest.raises(UnavailableError, match="the engine of test is broken"):
                await batcher.submit(3, due=due)
        assert work.depth == 0
        work.refusals = 0
        await until(lambda: not recovery.broken)
        assert (await batcher.submit(4)).result == -4
        assert set(work.notified[:-1]) == {False}
        assert work.notified[-1]

    run(work, scenario)


def test_a_broken_engine_does_not_delay_another() -> None:
    work = Breakable()
    work.broken = True
    work.opening.clear()

    async def scenario(batcher: "Batcher[int, int]", recovery: EngineRecovery) -> None:
        waiting = asyncio.create_task(batcher.submit(1))
        await until(lambda: recovery.broken)
        sound = Breakable()
        other_recovery = EngineRecovery("other", sound.reopen, sound.attempts.append)
        other = Batcher[int, int]("other", sound, batcher._scheduler, QueueLimits(9, 9, 9), sound, other_recovery)
        assert (await other.submit(2)).result == -2
        assert not waiting.done()
        work.opening.set()
        assert (await waiting).result == -1
        await other.close()

    run(work, scenario)


def test_a_job_that_needs_too_much_memory_is_refused_by_name() -> None:
    class Small(Breakable):
        def compute(self, inputs: list[int]) -> Sequence[int]:
            if sum(inputs) > 5:
                raise MemoryError("no more")
            return super().compute(inputs)

    work = Small()

    async def scenario(batcher: "Batcher[int, int]", recovery: EngineRecovery) -> None:
        *fitting, large = await together(work, batcher, (1, 2, 3, 4, 6))
        assert [outcome.result for outcome in fitting] == [-1, -2, -3, -4]
        assert isinstance(large, ResourceExhaustedError)
        assert large.reason is Reason.MEMORY
        assert "test needs more memory" in str(large)

    run(work, scenario)
