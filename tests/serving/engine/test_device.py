"""Turns on a device: priorities over all of its queues, and the next batch made ready while one runs."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from speakerlens.serving.engine.batcher import Batcher
from speakerlens.serving.engine.queue import JobResult, Priority, QueueLimits
from speakerlens.serving.engine.scheduler import INTERACTIVE_PER_BULK, Scheduler
from tests.serving.fakes import PATIENCE_SECONDS, Recorder, until, working

Answer = asyncio.Task[JobResult[int]]


class Steps:
    """Two queues of one device, which computes a batch for each permit; the log holds the batches as they begin."""

    def __init__(self, batch: int) -> None:
        self.log: list[list[int]] = []
        self.prepared: list[list[int]] = []
        self.running = False
        self.permits = threading.Semaphore(0)
        self.device = Scheduler("test")
        bounds = QueueLimits(max_waiting=1000, max_batch=batch, max_batch_cost=10**9)
        self.work = _Stepped(self)
        self.queues = [Batcher[int, int](name, self.work, self.device, bounds, self.work, working()) for name in "ab"]
        self.answers: dict[int, Answer] = {}
        self.arrived: dict[int, int] = {}
        self.priorities: dict[int, Priority] = {}

    async def submit(self, queue: int, priority: Priority) -> int:
        """Asks for something new; returns its number."""
        number = len(self.answers)
        self.answers[number] = asyncio.create_task(self.queues[queue].submit(number, priority=priority))
        self.arrived[number] = len(self.log) - self.running
        self.priorities[number] = priority
        await asyncio.sleep(0)
        return number

    async def step(self) -> None:
        """Lets a batch finish, and waits until the next has begun, if there is one."""
        # What the thread has computed is known to the loop only once that has had its turn.
        await asyncio.sleep(0)
        await until(lambda: self.running or not self.work.depth)
        if not self.running:
            return
        begun = len(self.log)
        self.permits.release()
        await until(lambda: len(self.log) > begun or not (self.running or self.work.depth))

    def batch_of(self, number: int) -> int:
        [index] = [index for index, batch in enumerate(self.log) if number in batch]
        return index

    def bulk_before(self, number: int) -> int:
        """How many batches of bulk work ran from a job's arrival to its own batch."""
        before = self.log[self.arrived[number] : self.batch_of(number)]
        return sum(self.priorities[batch[0]] is Priority.BULK for batch in before)

    async def close(self) -> None:
        for _ in range(1000):
            self.permits.release()
        for queue in self.queues:
            await queue.close()
        self.device.close()


class _Stepped(Recorder):
    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self.steps = steps

    def prepare(self, jobs: Sequence[int]) -> list[int]:
        self.steps.prepared.append(list(jobs))
        return list(jobs)

    def compute(self, feed: list[int]) -> Sequence[int]:
        self.steps.running = True
        self.steps.log.append(feed)
        assert self.steps.permits.acquire(timeout=PATIENCE_SECONDS)
        self.steps.running = False
        return [-number for number in feed]


def run(scenario: Callable[[Steps], Coroutine[Any, Any, None]], batch: int = 1) -> None:
    async def main() -> None:
        steps = Steps(batch)
        try:
            await asyncio.wait_for(scenario(steps), 60)
        finally:
            await steps.close()

    asyncio.run(main())


ARRIVAL = st.tuples(st.integers(0, 1), st.sampled_from(Priority))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(ARRIVAL, max_size=4), min_size=1, max_size=15), st.integers(1, 3))
def test_bulk_delays_interactive_by_one_batch_at_most(arrivals: list[list[tuple[int, Priority]]], batch: int) -> None:
    async def scenario(steps: Steps) -> None:
        for together in arrivals:
            for queue, priority in together:
                await steps.submit(queue, priority)
            await steps.step()
        while not all(answer.done() for answer in steps.answers.values()):
            await steps.step()
        for number, answer in steps.answers.items():
            assert (await answer).result == -number
            assert steps.priorities[number] is Priority.BULK or steps.bulk_before(number) <= 1
        for computed in steps.log:
            assert len(computed) <= batch
            assert len({steps.priorities[number] for number in computed}) == 1

    run(scenario, batch)


def test_bulk_is_not_starved_by_interactive_work_without_end() -> None:
    waiting, bulk_jobs = 3, 4

    async def scenario(steps: Steps) -> None:
        bulk = [await steps.submit(0, Priority.BULK) for _ in range(bulk_jobs)]
        interactive = [await steps.submit(number % 2, Priority.INTERACTIVE) for number in range(waiting)]
        rounds = 0
        while not all(steps.answers[number].done() for number in bulk):
            interactive.append(await steps.submit(rounds % 2, Priority.INTERACTIVE))
            await steps.step()
            rounds += 1
            assert rounds <= bulk_jobs * (INTERACTIVE_PER_BULK + waiting + 2)
        assert max(steps.bulk_before(number) for number in interactive if steps.answers[number].done()) == 1

    run(scenario)


def test_interactive_work_comes_before_a_bulk_batch_that_is_ready() -> None:
    async def scenario(steps: Steps) -> None:
        await steps.submit(0, Priority.BULK)
        second = await steps.submit(0, Priority.BULK)
        await until(lambda: [second] in steps.prepared)
        assert steps.log == [[0]], "the second is not running yet"
        urgent = await steps.submit(1, Priority.INTERACTIVE)
        for _ in range(3):
            await steps.step()
        assert steps.log == [[0], [urgent], [second]]

    run(scenario)


def test_the_next_batch_is_made_ready_while_one_runs() -> None:
    async def scenario(steps: Steps) -> None:
        await steps.submit(0, Priority.INTERACTIVE)
        await until(lambda: steps.running)
        await steps.submit(1, Priority.INTERACTIVE)
        await until(lambda: [1] in steps.prepared)
        assert steps.log == [[0]]
        await steps.step()
        await steps.step()
        assert steps.log == steps.prepared == [[0], [1]], "what was ready was made again"

    run(scenario)


def test_who_arrives_after_a_batch_was_made_ready_still_joins_it() -> None:
    async def scenario(steps: Steps) -> None:
        await steps.submit(0, Priority.INTERACTIVE)
        await steps.submit(0, Priority.INTERACTIVE)
        await until(lambda: [1] in steps.prepared)
        await steps.submit(0, Priority.INTERACTIVE)
        steps.answers[1].cancel()
        await steps.submit(0, Priority.INTERACTIVE)
        await steps.step()
        await steps.step()
        assert steps.log == [[0], [2, 3]]

    run(scenario, batch=2)


def test_a_request_waits_for_company_as_long_as_it_may() -> None:
    async def scenario(steps: Steps) -> None:
        bounds = QueueLimits(max_waiting=9, max_batch=2, max_batch_cost=100, max_wait_s=PATIENCE_SECONDS)
        work = Recorder()
        queue = Batcher[int, int]("patient", work, steps.device, bounds, work, working())
        first = asyncio.create_task(queue.submit(1))
        await asyncio.sleep(0.02)
        assert not work.batches
        assert (await queue.submit(2)).result == -2
        assert (await first).result == -1
        assert work.batches == [[1, 2]], "a full batch waits for nobody"
        loop = asyncio.get_running_loop()
        assert (await queue.submit(3, loop.time() + PATIENCE_SECONDS / 2)).queue_s < PATIENCE_SECONDS / 2
        await queue.close()

    run(scenario)


def test_padding_is_bounded_and_whoever_does_not_fit_comes_next() -> None:
    async def scenario(steps: Steps) -> None:
        bounds = QueueLimits(max_waiting=99, max_batch=8, max_batch_cost=1000, max_padding=0.25)
        work = Recorder()
        work.gate.clear()
        queue = Batcher[int, int]("thrifty", work, steps.device, bounds, work, working())
        answers = [asyncio.create_task(queue.submit(number)) for number in (0, 99, 9, 89, 8)]
        await until(lambda: work.depth == 4)
        work.gate.set()
        await asyncio.gather(*answers)
        assert work.batches == [[0], [99, 89], [9, 8]]
        await queue.close()

    run(scenario)


def test_rows_that_only_fill_up_count_for_the_budget() -> None:
    async def scenario(steps: Steps) -> None:
        bounds = QueueLimits(
            max_waiting=99, max_batch=8, max_batch_cost=40, rows=lambda count: 1 << (count - 1).bit_length()
        )
        work = Recorder()
        work.gate.clear()
        queue = Batcher[int, int]("doubling", work, steps.device, bounds, work, working())
        first = asyncio.create_task(queue.submit(9))
        await until(lambda: work.deepest > 0 and not work.depth)
        answers = [asyncio.create_task(queue.submit(9)) for _ in range(5)]
        await until(lambda: work.depth == 5)
        work.gate.set()
        await asyncio.gather(first, *answers)
        assert [len(batch) for batch in work.batches] == [1, 4, 1]
        await queue.close()

    run(scenario)
