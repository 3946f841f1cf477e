"""A pause of the machine must not make the server refuse callers who have time."""

import asyncio
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.engine.batcher import Batcher
from speakerlens.serving.engine.queue import QueueLimits
from speakerlens.serving.engine.scheduler import Scheduler
from tests.serving.fakes import Recorder, working
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice
from tests.serving.virtual_time import current_loop, run_virtual

PAUSE_SECONDS = 4.0


class Timed(Recorder):
    """Work that takes 2 ms of virtual time a batch."""

    def compute(self, feed: list[int]) -> Sequence[int]:
        current_loop().spend(0.002)
        return super().compute(feed)


@pytest.mark.parametrize("batches_before", [0, 1, 50])
def test_jobs_with_time_are_accepted_after_a_pause(batches_before: int) -> None:
    async def main() -> None:
        work, scheduler = Timed(), Scheduler("test")
        batcher = Batcher[int, int]("test", work, scheduler, QueueLimits(1000, 1, 10**9), work, working())
        for _ in range(batches_before):
            await batcher.submit(0)
        waiting = [asyncio.create_task(batcher.submit(0)) for _ in range(100)]
        await asyncio.sleep(0.001)
        current_loop().advance(PAUSE_SECONDS)
        await asyncio.sleep(0.001)
        after = [asyncio.create_task(batcher.submit(0, current_loop().time() + 60)) for _ in range(100)]
        results = await asyncio.gather(*waiting, *after, return_exceptions=True)
        assert not [result for result in results if isinstance(result, Exception)]
        await batcher.close()
        scheduler.close()

    run_virtual(main())


def test_calls_with_a_minute_are_answered_after_a_pause(toy_bundles: Path) -> None:
    with ServerProcess(toy_bundles, "--max-in-flight=200") as server:
        request = pb.IdentifyRequest(audio=raw(voice(1.0)), models=[pb.ModelSelector(variant="da")])

        def send(count: int) -> list[object]:
            return [server.stub.Identify.future(request, timeout=CALL_SECONDS) for _ in range(count)]

        for call in send(20):
            assert call.result().answers  # type: ignore[attr-defined]
        before = send(60)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(PAUSE_SECONDS)
        server.process.send_signal(signal.SIGCONT)
        after = send(60)
        refused = [call.code() for call in (*before, *after) if call.exception() is not None]  # type: ignore[attr-defined]
        assert not refused
