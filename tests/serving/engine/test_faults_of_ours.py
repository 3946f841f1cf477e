"""Faults where nobody foresaw any: in giving out turns, in answering a batch, in who is told of a repair."""

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

BOUNDS = QueueLimits(max_waiting=9, max_batch=1, max_batch_cost=100)


class Faults:
    """Raises as often as it is told to, in the place of a method."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method = method
        self.left = 0

    def __call__(self, *arguments: Any) -> Any:
        if self.left:
            self.left -= 1
            raise ZeroDivisionError("a fault of ours")
        return self.method(*arguments)


def run(scenario: Callable[[Scheduler, Batcher[int, int], Faults], Any], owner: type, method: str) -> None:
    faults = Faults(getattr(owner, method))

    async def main() -> None:
        device, work = Scheduler("test"), Recorder()
        queue = Batcher[int, int]("q", work, device, BOUNDS, work, working())
        await asyncio.wait_for(scenario(device, queue, faults), 60)
        await queue.close()
        device.close()

    def at_fault(*arguments: Any) -> Any:  # a function, which becomes a method
        return faults(*arguments)

    with mock.patch.object(owner, method, at_fault):
        asyncio.run(main())


@pytest.mark.parametrize("method", ["ready_at", "form_batch", "remove"])
def test_a_fault_in_giving_out_turns_stops_nobody_for_good(method: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(device: Scheduler, queue: Batcher[int, int], faults: Faults) -> None:
        for _ in range(2 * MAX_FAULTS):
            faults.left = 1
            with pytest.raises((UnavailableError, ZeroDivisionError)):
                await queue.submit(1)
            assert (await queue.submit(2)).result == -2
        assert not device.failed.done()

    run(scenario, PriorityQueue, method)
    assert "the scheduler failed unexpectedly" in caplog.text


def test_a_fault_that_stays_is_told() -> None:
    async def scenario(device: Scheduler, queue: Batcher[int, int], faults: Faults) -> None:
        faults.left = 1000
        for _ in range(MAX_FAULTS):
            with pytest.raises(UnavailableError):
                await queue.submit(1)
        assert isinstance(await device.failed, ZeroDivisionError)
        with pytest.raises(UnavailableError):
            await queue.submit(1)

    run(scenario, PriorityQueue, "form_batch")


def test_a_batch_that_cannot_be_answered_is_answered_with_the_error() -> None:
    class Ill(Recorder):
        def compute(self, feed: list[int]) -> Sequence[int]:
            raise ArithmeticError

        def probe(self) -> None:
            raise ArithmeticError

    async def main() -> None:
        device, work = Scheduler("test"), Ill()
        repair = EngineRecovery("test", lambda: None, lambda _: None)
        queue = Batcher[int, int]("q", work, device, BOUNDS, work, repair)
        with (
            mock.patch.object(EngineRecovery, "start", side_effect=ZeroDivisionError),
            pytest.raises(ZeroDivisionError),
        ):
            await asyncio.wait_for(queue.submit(1), 30)
        await queue.close()
        device.close()

    asyncio.run(main())


def test_a_listener_at_fault_does_not_end_a_repair(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[bool] = []

    async def main() -> None:
        repair = EngineRecovery("test", lambda: None, mock.Mock(side_effect=ZeroDivisionError))
        repair.subscribe(mock.Mock(side_effect=ZeroDivisionError))
        repair.subscribe(heard.append)
        repair.start()
        await until(lambda: not repair.broken)

    asyncio.run(main())
    assert heard == [False, True]
    assert "failed unexpectedly" in caplog.text


def test_an_entry_is_answered_once() -> None:
    async def main() -> None:
        entry = QueuedJob[int, int](1, 1, None)
        entry.fail(ArithmeticError())
        entry.fail(ZeroDivisionError())
        assert isinstance(entry.future.exception(), ArithmeticError)

    asyncio.run(main())


AT_FAULT = """
import pathlib, speakerlens.serving.engine.queue as queue
form = queue.PriorityQueue.form_batch
def at_fault(self):
    if pathlib.Path({trigger!r}).exists():
        raise ZeroDivisionError("a fault of ours")
    return form(self)
queue.PriorityQueue.form_batch = at_fault
"""


def test_a_server_that_cannot_compute_ends(toy_bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than stay, be SERVING, and answer nobody: whoever runs it starts it anew."""
    trigger = tmp_path / "now"
    (tmp_path / "sitecustomize.py").write_text(AT_FAULT.format(trigger=str(trigger)), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[3]}")
    server = ServerProcess(toy_bundles)
    request = pb.IdentifyRequest(audio=raw(voice(1.0)), models=[pb.ModelSelector(variant="da")])
    assert server.identify(request).answers
    trigger.touch()
    for _ in range(MAX_FAULTS):
        with pytest.raises(grpc.RpcError) as caught:
            server.identify(request, timeout=CALL_SECONDS)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert server.wait() == 1
    assert "a fault of ours" in server.log
    assert "error: the scheduler has failed" in server.log
    server.channel.close()
