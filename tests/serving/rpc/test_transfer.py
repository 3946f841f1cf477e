"""Clients that send slowly or do not read, and the byte budget of all calls, over real connections."""

import asyncio
import signal
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.errors import DeadlineError, ResourceExhaustedError, UnavailableError
from speakerlens.serving.rpc import transfer
from speakerlens.serving.rpc.transfer import ByteBudget, MessageTransfer
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice
from tests.serving.http2 import Misbehaving
from tests.serving.rpc.test_rpc import LARGE_BYTES, PATH, Bench, _request, until

IDENTIFY = "/speakerlens.v1.SpeakerIdentification/Identify"
MEGABYTE = 2**20
# Of requests to the server that is tight; on the slowest line it takes 2 s.
LARGEST = 2**18


@pytest.fixture(autouse=True)
def _fast_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the wait for large answers; server processes keep the slowest speed."""
    monkeypatch.setattr(transfer, "SLOWEST_SPEED", 2**40)


def on_bench(test: Callable[[Bench], Awaitable[None]], transfers: MessageTransfer) -> None:
    async def run() -> None:
        async with Bench(transfers) as bench:
            await asyncio.wait_for(test(bench), 60)

    asyncio.run(run())


def test_an_unread_stream_ends() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"large"

    async def test(bench: Bench) -> None:
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = bench.channel.stream_stream(
            PATH + "Stream", _request
        )
        call = method(endless(), metadata=(("x-request-id", "unread"),))
        await until(lambda: bench.calls() == {"Stream da DEADLINE_EXCEEDED": 1})
        assert bench.behaviour.closed == ["unread"], "the stream's resources are free"
        assert await bench.gate.emptied(10), "a stop does not wait for it"
        assert bench.transfers.budget.held >= LARGE_BYTES, "bytes that gRPC keeps for the client count"
        call.cancel()
        await until(lambda: bench.transfers.budget.held == 0)

    on_bench(test, MessageTransfer(1.0, 2**25, 2**30))


def test_a_client_that_reads_late_gets_the_status() -> None:
    async def test(bench: Bench) -> None:
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = bench.channel.stream_stream(
            PATH + "Stream", _request
        )
        call = method(iter([b"large"] * 3))
        await until(lambda: bench.calls() == {"Stream da DEADLINE_EXCEEDED": 1})
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert caught.value.details() == "the answer has not been read within 1 s; read answers as they come"
        await until(lambda: bench.transfers.budget.held == 0)

    on_bench(test, MessageTransfer(1.0, 2**25, 2**30))


def test_an_unread_answer_is_reserved_until_it_is_read() -> None:
    """The client calls it as a stream, so that gRPC does not read the answer before the test does."""

    async def test(bench: Bench) -> None:
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = bench.channel.unary_stream(PATH + "Single", _request)
        call = method(b"large")
        await until(lambda: bench.calls() == {"Single _none OK": 1})
        assert not await bench.gate.emptied(0.1), "it is on its way"
        assert await bench.gate.emptied(10), "a stop does not wait for it without limit"
        assert bench.transfers.budget.held >= LARGE_BYTES
        assert [len(answer) > LARGE_BYTES async for answer in call] == [True], "late, but whole"
        await until(lambda: bench.transfers.budget.held == 0)
        gone = method(b"large")
        await until(lambda: bench.transfers.budget.held >= LARGE_BYTES)
        gone.cancel()
        await until(lambda: bench.transfers.budget.held == 0)

    on_bench(test, MessageTransfer(1.0, 2**25, 2**30))


def test_unread_answers_use_up_the_budget() -> None:
    async def test(bench: Bench) -> None:
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = bench.channel.unary_stream(PATH + "Single", _request)
        unread = method(b"large")
        await until(lambda: bench.transfers.budget.held > LARGE_BYTES)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await bench.single(b"large")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "all calls together may hold" in (caught.value.details() or "")
        assert dict(caught.value.trailing_metadata())["retry-after-ms"] == "1000"
        assert (await bench.single(b"abc")).start_s == 3, "small ones go on"
        unread.cancel()
        await until(lambda: bench.transfers.budget.held == 0)
        assert (await bench.single(b"large")).ByteSize() > LARGE_BYTES

    on_bench(test, MessageTransfer(60.0, 2**25, 3 * LARGE_BYTES // 2))


async def arriving(after_s: float) -> AsyncIterator[bytes]:
    await asyncio.sleep(after_s)
    yield b"request"


def test_large_messages_get_time_for_a_slow_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    class Line:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        async def send_initial_metadata(self, _metadata: object) -> None:
            pass

        async def write(self, _payload: bytes) -> None:
            await asyncio.sleep(self.seconds)

    async def test() -> None:
        transfers = MessageTransfer(0.1, 2 * MEGABYTE, 2**30)
        assert await transfers.receive(arriving(0.5)) == b"request"
        with transfers.budget.reservation() as share:
            await transfers.deliver(Line(0.5), bytes(2 * MEGABYTE), share, True)
            with pytest.raises(DeadlineError, match=r"has not been read within 0\.1 s"):
                await transfers.deliver(Line(5), b"answer", share, False)
        with pytest.raises(DeadlineError, match=r"has not arrived within 2\.1 s"):
            await transfers.receive(arriving(30))

    monkeypatch.setattr(transfer, "SLOWEST_SPEED", MEGABYTE)
    asyncio.run(test())


def test_a_slow_request_counts_what_may_have_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen of the largest fill the budget, as would many more that are only a little late."""

    async def test() -> None:
        transfers = MessageTransfer(60, 2**25, 2**30)
        soon = [transfers.receive(arriving(0.05)) for _ in range(60)]
        assert await asyncio.gather(*soon) == [b"request"] * 60
        late = [transfers.receive(arriving(2.5)) for _ in range(20)]
        results = await asyncio.gather(*late, return_exceptions=True)
        refused = [each for each in results if isinstance(each, ResourceExhaustedError)]
        assert len(refused) == 4
        assert str(refused[0]).startswith("the request arrives slowly, and too many others do")
        assert await transfers.receive(arriving(0.05)) == b"request", "their bytes are released"

    monkeypatch.setattr(transfer, "SLOW_SECONDS", 0.02)
    monkeypatch.setattr(transfer, "COUNT_SECONDS", 0.2)
    monkeypatch.setattr(transfer, "COUNTED_SPEED", 2**25)
    asyncio.run(test())


def test_requests_still_arriving_are_refused_at_the_end() -> None:
    async def test() -> None:
        transfers = MessageTransfer(60, 2**25, 2**30)
        waiting = [asyncio.create_task(transfers.receive(arriving(30))) for _ in range(2)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        transfers.end()
        with pytest.raises(UnavailableError, match="draining"):
            await waiting[1]
        assert waiting[0].cancelled()
        transfers.end()

    asyncio.run(test())


def test_a_reservation_is_released_once() -> None:
    async def test() -> None:
        budget, unread = ByteBudget(10), asyncio.get_running_loop().create_future()
        with budget.reservation() as share:
            part = share.part(5)
            part.__enter__()
        part.__exit__(None, None, None)
        assert budget.held == 0
        with budget.reservation() as share:
            share.take(3)
            with share.part(4), pytest.raises(ResourceExhaustedError):
                share.take(4)
            assert budget.held == 3
            with share.part(4):
                share.keep(unread)
        assert budget.held == 7
        unread.set_result(None)
        await asyncio.sleep(0)
        assert budget.held == 0

    asyncio.run(test())


@pytest.fixture(scope="module")
def tight(toy_bundles: Path) -> Iterator[ServerProcess]:
    with ServerProcess(
        toy_bundles,
        "--transfer-seconds=2",
        f"--max-message-bytes={LARGEST}",
        f"--max-held-bytes={4 * LARGEST}",
        "--max-connections=6",
    ) as server:
        yield server


def refusals(server: ServerProcess, reason: str) -> float:
    return server.metrics()[f'speakerlens_rejections_total{{reason="{reason}"}}']


def test_a_slow_health_request_ends(tight: ServerProcess) -> None:
    method: grpc.StreamUnaryMultiCallable[bytes, bytes] = tight.channel.stream_unary("/grpc.health.v1.Health/Check")
    with ExitStack() as stack:
        slow = stack.enter_context(Misbehaving(tight.ready["grpc"]))
        stream = slow.call("/grpc.health.v1.Health/Check")
        slow.begin_message(stream, LARGEST - 100, 10_000)
        assert slow.ended(stream)
    with pytest.raises(grpc.RpcError) as caught:
        method(iter(()), timeout=CALL_SECONDS)
    assert caught.value.details() == "the call has no message"


def test_a_slow_later_message_of_reflection_ends(tight: ServerProcess) -> None:
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    asked = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    with Misbehaving(tight.ready["grpc"]) as slow:
        stream = slow.call(path)
        slow.send(stream, struct.pack(">BI", 0, len(asked)) + asked)
        assert slow.ended(stream), "the head of the answer"
        slow.begin_message(stream, LARGEST - 100, 10_000)
        started = time.monotonic()
        assert slow.ended(stream)
        assert time.monotonic() - started < 20, "it was the limit that ended it, and no keepalive"


def test_slow_health_requests_have_their_own_budget(tight: ServerProcess) -> None:
    """Health needs no token."""
    before = tight.metrics().get('speakerlens_rejections_total{reason="held"}', 0)
    with Misbehaving(tight.ready["grpc"]) as slow:
        for _ in range(6):
            slow.begin_message(slow.call("/grpc.health.v1.Health/Check"), LARGEST - 100, 10_000)
        time.sleep(1)
        slow.begin_message(slow.call(IDENTIFY), LARGEST - 100, 10_000)
        time.sleep(2.5)
        assert tight.metrics()["speakerlens_requests_in_flight"] == 1
        assert tight.metrics().get('speakerlens_rejections_total{reason="held"}', 0) == before


def test_a_stopping_server_refuses_requests_still_arriving(toy_bundles: Path) -> None:
    with ServerProcess(toy_bundles, "--drain-seconds=4") as server, Misbehaving(server.ready["grpc"]) as slow:
        stream = slow.call(IDENTIFY)
        slow.begin_message(stream, MEGABYTE, 10_000)
        server.wait_for_metric("speakerlens_requests_in_flight", 1)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0, "no call was aborted"
        assert "method=Identify variant=_none code=UNAVAILABLE" in server.log


def test_slow_requests_are_limited_and_end(tight: ServerProcess) -> None:
    """Two of the largest fit into half of the budget; others are refused, and the two time out."""
    started = time.monotonic()
    with Misbehaving(tight.ready["grpc"]) as slow:
        for _ in range(5):
            slow.begin_message(slow.call(IDENTIFY), LARGEST - 100, 10_000)
        tight.wait_for_metric('speakerlens_rejections_total{reason="held"}', 3)
        assert tight.metrics()["speakerlens_requests_in_flight"] == 2
        request = pb.IdentifyRequest(audio=raw(voice(1.0)), models=[pb.ModelSelector(variant="da")])
        assert tight.identify(request).answers, "a fast request is answered"
        tight.wait_for_metric('speakerlens_rejections_total{reason="arrival"}', 2)
        assert 3.5 < time.monotonic() - started < 20
        assert tight.metrics()["speakerlens_requests_in_flight"] == 0


def test_disconnect_while_sending_is_cancelled(tight: ServerProcess) -> None:
    """The server sees a request without a message, and the end of the connection shortly after."""
    cancelled = 'speakerlens_requests_total{code="CANCELLED",method="Embed",variant="_none"}'
    for number in range(1, 4):
        with Misbehaving(tight.ready["grpc"]) as gone:
            gone.begin_message(gone.call("/speakerlens.v1.SpeakerIdentification/Embed"), LARGEST - 100, 10_000)
            tight.wait_for_metric("speakerlens_requests_in_flight", 1)
        tight.wait_for_metric(cancelled, number)


def test_a_too_large_request_is_refused_by_grpc(tight: ServerProcess) -> None:
    cancelled = 'speakerlens_requests_total{code="CANCELLED",method="GetModel",variant="_none"}'
    method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = tight.channel.unary_unary(
        "/speakerlens.v1.SpeakerIdentification/GetModel"
    )
    with pytest.raises(grpc.RpcError) as caught:
        method(bytes(LARGEST + 1), timeout=CALL_SECONDS)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(LARGEST) in (caught.value.details() or ""), "gRPC names the limit"
    tight.wait_for_metric(cancelled, 1)
    assert refusals(tight, "malformed") == 0


def test_a_call_without_a_message_is_refused(tight: ServerProcess) -> None:
    method: grpc.StreamUnaryMultiCallable[bytes, bytes] = tight.channel.stream_unary(IDENTIFY)
    with pytest.raises(grpc.RpcError) as caught:
        method(iter(()), timeout=CALL_SECONDS)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "the call has no message"


def test_connections_beyond_the_limit_are_closed(tight: ServerProcess) -> None:
    with ExitStack() as stack:
        others = [stack.enter_context(Misbehaving(tight.ready["grpc"])) for _ in range(8)]
        assert [other.closed() for other in others[-2:]] == [True, True]
        assert tight.status() == "SERVING", "open connections stay open"
    with grpc.insecure_channel(tight.ready["grpc"]) as channel:
        grpc.channel_ready_future(channel).result(30)
