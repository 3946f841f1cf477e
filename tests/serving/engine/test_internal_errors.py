"""Internal errors in the scheduler, in handling a batch, and in the listeners of a recovery."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.engine.batcher import Batcher
from speakerlens.serving.engine.queue import PriorityQueue, QueuedJob, QueueLimits
from speakerlens.serving.engine.recovery import EngineRecovery
from speakerlens.serving.engine.scheduler import MAX_FAULTS, Scheduler
from speakerlens.serving.errors import UnavailableError
from tests.serving.fakes import Recorder, until, working
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice

LIMITS = QueueLimits(max_waiting=9, max_batch=1, max_batch_cost=100)


class Faults:
    """Stands in for a method and raises `left` times."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        self.left = 0

    def __call__(self, *arguments: Any) -> Any:
        if self.left:
            self.left -= 1
            raise ZeroDivisionError("an internal error")
        return self.method(*arguments)


def run(scenario: Callable[[Scheduler, Batcher[int, int], Faults], Any], owner: type, method: str) -> None:
    faults = Faults(getattr(owner, method))

    async def main() -> None:
        scheduler, work = Scheduler("test"), Recorder()
        queue = Batcher[int, int]("q", work, scheduler, LIMITS, work, working())
        await asyncio.wait_for(scenario(scheduler, queue, faults), 60)
        await queue.close()
        scheduler.close()

    def faulty(*arguments: Any) -> Any:  # a function, which becomes a method
        return faults(*arguments)

    with mock.patch.object(owner, method, faulty):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("owner", "method"), [(Scheduler, "_run_next"), (PriorityQueue, "form_batch"), (PriorityQueue, "remove")]
)
def test_single_scheduler_errors_are_survived(owner: type, method: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(scheduler: Scheduler, queue: Batcher[int, int], faults: Faults) -> None:
        for _ in range(2 * MAX_FAULTS):
            faults.left = 1
            with pytest.raises((UnavailableError, ZeroDivisionError)):
                await queue.submit(1)
            assert (await queue.submit(2)).result == -2
        assert not scheduler.failed.done()

    run(scenario, owner, method)
    assert "the scheduler failed unexpectedly" in caplog.text


def test_scheduler_errors_in_a_row_set_failed() -> None:
    async def scenario(scheduler: Scheduler, queue: Batcher[int, int], faults: Faults) -> None:
        faults.left = 1000
        for _ in range(MAX_FAULTS):
            assert not scheduler.failed.done()
            with pytest.raises(UnavailableError):
                await queue.submit(1)
        assert isinstance(await scheduler.failed, ZeroDivisionError)
        with pytest.raises(UnavailableError):
            await queue.submit(1)

    run(scenario, PriorityQueue, "form_batch")


def test_an_error_in_handling_a_failed_batch_fails_its_jobs() -> None:
    class Failing(Recorder):
        def compute(self, feed: list[int]) -> Sequence[int]:
            raise ArithmeticError

        def probe(self) -> None:
            raise ArithmeticError

    async def main() -> None:
        scheduler, work = Scheduler("test"), Failing()
        recovery = EngineRecovery("test", lambda: None, lambda _: None)
        queue = Batcher[int, int]("q", work, scheduler, LIMITS, work, recovery)
        with (
            mock.patch.object(EngineRecovery, "start", side_effect=ZeroDivisionError),
            pytest.raises(ZeroDivisionError),
        ):
            await asyncio.wait_for(queue.submit(1), 30)
        await queue.close()
        scheduler.close()

    asyncio.run(main())


def test_errors_of_listeners_do_not_end_a_recovery(caplog: pytest.LogCaptureFixture) -> None:
    notified: list[bool] = []

    async def main() -> None:
        recovery = EngineRecovery("test", lambda: None, mock.Mock(side_effect=ZeroDivisionError))
        recovery.subscribe(mock.Mock(side_effect=ZeroDivisionError))
        recovery.subscribe(notified.append)
        recovery.start()
        await until(lambda: not recovery.broken)

    asyncio.run(main())
    assert notified == [False, True]
    assert "failed unexpectedly" in caplog.text


def test_a_job_fails_once() -> None:
    async def main() -> None:
        entry = QueuedJob[int, int](1, 1, None)
        entry.fail(ArithmeticError())
        entry.fail(ZeroDivisionError())
        assert isinstance(entry.future.exception(), ArithmeticError)

    asyncio.run(main())


PATCH = """
import pathlib, speakerlens.serving.engine.queue as queue
form = queue.PriorityQueue.form_batch
def faulty(self):
    if pathlib.Path({trigger!r}).exists():
        raise ZeroDivisionError("an internal error")
    return form(self)
queue.PriorityQueue.form_batch = faulty
"""


def test_a_server_whose_scheduler_failed_ends(
    toy_bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor restarts it; otherwise it would be SERVING and answer no call."""
    trigger = tmp_path / "now"
    (tmp_path / "sitecustomize.py").write_text(PATCH.format(trigger=str(trigger)), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    server = ServerProcess(toy_bundles, fresh=True)  # PYTHONPATH is read at the start
    request = pb.IdentifyRequest(audio=raw(voice(1.0)), models=[pb.ModelSelector(variant="da")])
    assert server.identify(request).answers
    trigger.touch()
    for _ in range(MAX_FAULTS):
        with pytest.raises(grpc.RpcError) as caught:
            server.identify(request, timeout=CALL_SECONDS)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert server.wait() == 1
    assert "an internal error" in server.log
    assert "error: the scheduler has failed" in server.log
    server.channel.close()
