"""Clients that send slowly or do not read, and what calls may hold together, over real connections."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from protos.speakerlens.v1 import identification_pb2 as pb
from serving.errors import ResourceExhaustedError
from serving.transport.holding import Holdings
from serving.transport.transfer import Transfers
from tests.serving.harness import CALL_SECONDS, ServerProcess, raw, voice
from tests.serving.http2 import Misbehaving
from tests.serving.transport.test_rpc import LARGE_BYTES, PATH, Bench, _request, until

IDENTIFY = "/speakerlens.v1.SpeakerIdentification/Identify"
MEGABYTE = 2**20


def on_bench(test: Callable[[Bench], Awaitable[None]], transfers: Transfers) -> None:
    async def run() -> None:
        async with Bench(transfers) as bench:
            await asyncio.wait_for(test(bench), 60)

    asyncio.run(run())


def test_a_stream_that_nobody_reads_ends() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"large"

    async def test(bench: Bench) -> None:
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = bench.channel.stream_stream(
            PATH + "Stream", _request
        )
        call = method(endless(), metadata=(("x-request-id", "deaf"),))
        await until(lambda: bench.calls() == {"Stream da DEADLINE_EXCEEDED": 1})
        assert bench.behaviour.closed == ["deaf"], "what the stream held is free"
        assert await bench.gate.emptied(10), "and nobody who stops the server waits for it"
        assert bench.transfers.held.held >= LARGE_BYTES, "what gRPC keeps for the client counts"
        call.cancel()
        await until(lambda: bench.transfers.held.held == 0)

    on_bench(test, Transfers(1.0, 2**25, 2**30))


def test_a_client_that_reads_late_learns_why_it_was_cut_off() -> None:
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
        await until(lambda: bench.transfers.held.held == 0)

    on_bench(test, Transfers(1.0, 2**25, 2**30))


def test_a_single_answer_that_nobody_reads() -> None:
    """The client takes it for a stream, so that its side does not ask for the answer before it does."""

    async def test(bench: Bench) -> None:
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = bench.channel.unary_stream(PATH + "Single", _request)
        call = method(b"large")
        await until(lambda: bench.calls() == {"Single _none DEADLINE_EXCEEDED": 1})
        assert await bench.gate.emptied(10)
        call.cancel()
        await until(lambda: bench.transfers.held.held == 0)

    on_bench(test, Transfers(1.0, 2**25, 2**30))


def test_answers_that_are_not_read_leave_no_room_for_more() -> None:
    async def test(bench: Bench) -> None:
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = bench.channel.unary_stream(PATH + "Single", _request)
        deaf = method(b"large")
        await until(lambda: bench.transfers.held.held > LARGE_BYTES)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await bench.single(b"large")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "all calls together may hold" in (caught.value.details() or "")
        assert dict(caught.value.trailing_metadata())["retry-after-ms"] == "1000"
        assert (await bench.single(b"abc")).start_s == 3, "small ones go on"
        deaf.cancel()
        await until(lambda: bench.transfers.held.held == 0)
        assert (await bench.single(b"large")).ByteSize() > LARGE_BYTES

    on_bench(test, Transfers(60.0, 2**25, 3 * LARGE_BYTES // 2))


def test_a_share_is_given_back_once() -> None:
    async def test() -> None:
        holdings, unread = Holdings(10), asyncio.get_running_loop().create_future()
        with holdings.share() as share:
            part = share.part(5)
            part.__enter__()
        part.__exit__(None, None, None)
        assert holdings.held == 0
        with holdings.share() as share:
            share.take(3)
            with share.part(4), pytest.raises(ResourceExhaustedError):
                share.take(4)
            assert holdings.held == 3
            with share.part(4):
                share.keep(unread)
        assert holdings.held == 7
        unread.set_result(None)
        await asyncio.sleep(0)
        assert holdings.held == 0

    asyncio.run(test())


@pytest.fixture(scope="module")
def tight(toy_bundles: Path) -> Iterator[ServerProcess]:
    with ServerProcess(
        toy_bundles,
        "--transfer-seconds=4",
        f"--max-message-bytes={MEGABYTE}",
        f"--max-held-bytes={4 * MEGABYTE}",
        "--max-connections=6",
    ) as server:
        yield server


def refusals(server: ServerProcess, reason: str) -> float:
    return server.metrics()[f'speakerlens_rejections_total{{reason="{reason}"}}']


def test_not_even_health_waits_for_ever(tight: ServerProcess) -> None:
    method: grpc.StreamUnaryMultiCallable[bytes, bytes] = tight.channel.stream_unary("/grpc.health.v1.Health/Check")
    with ExitStack() as stack:
        slow = stack.enter_context(Misbehaving(tight.ready["grpc"]))
        stream = slow.call("/grpc.health.v1.Health/Check")
        slow.begin_message(stream, MEGABYTE - 100, 10_000)
        assert slow.ended(stream)
    with pytest.raises(grpc.RpcError) as caught:
        method(iter(()), timeout=CALL_SECONDS)
    assert caught.value.details() == "the call has no message"


def test_requests_that_trickle_in_are_few_and_end(tight: ServerProcess) -> None:
    """Two of a megabyte fit into half of what calls may hold; others are refused, and the two not waited for."""
    started = time.monotonic()
    with Misbehaving(tight.ready["grpc"]) as slow:
        for _ in range(5):
            slow.begin_message(slow.call(IDENTIFY), MEGABYTE - 100, 10_000)
        tight.wait_for_metric('speakerlens_rejections_total{reason="held"}', 3)
        assert tight.metrics()["speakerlens_requests_in_flight"] == 2
        request = pb.IdentifyRequest(audio=raw(voice(1.0)), models=[pb.ModelSelector(variant="da")])
        assert tight.identify(request).answers, "who sends at once is answered"
        tight.wait_for_metric('speakerlens_rejections_total{reason="arrival"}', 2)
        assert 3.5 < time.monotonic() - started < 20
        assert tight.metrics()["speakerlens_requests_in_flight"] == 0


def test_a_call_without_a_message(tight: ServerProcess) -> None:
    method: grpc.StreamUnaryMultiCallable[bytes, bytes] = tight.channel.stream_unary(IDENTIFY)
    with pytest.raises(grpc.RpcError) as caught:
        method(iter(()), timeout=CALL_SECONDS)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "the call has no message"


def test_connections_are_counted(tight: ServerProcess) -> None:
    with ExitStack() as stack:
        others = [stack.enter_context(Misbehaving(tight.ready["grpc"])) for _ in range(8)]
        assert [other.closed() for other in others[-2:]] == [True, True]
        assert tight.status() == "SERVING", "who is connected stays so"
    with grpc.insecure_channel(tight.ready["grpc"]) as channel:
        grpc.channel_ready_future(channel).result(30)
