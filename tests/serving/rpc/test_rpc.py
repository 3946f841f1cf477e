"""The interceptor over a real connection: streams and single calls."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.context import current_context
from speakerlens.serving.engine.admission import Admission
from speakerlens.serving.errors import InvalidArgumentError, Reason, ResourceExhaustedError
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.rpc.interceptor import CallGate, CallInterceptor
from speakerlens.serving.rpc.transfer import MessageTransfer

SERVICE = "test.Service"
PATH = f"/{SERVICE}/"
# More than gRPC buffers for a client that does not read.
LARGE_BYTES = 30_000_000


class Behaviour:
    """A streamed and a single method; the content of a request says what they do."""

    def __init__(self) -> None:
        self.closed: list[str] = []

    async def stream(self, requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:
        current_context.get().variant = "da"
        try:
            async for request in requests:
                fail(request.samples)
                yield pb.IdentifyStreamResponse(window=answer(request.samples))
            yield pb.IdentifyStreamResponse(whole=pb.IdentifyResponse())
        finally:
            self.closed.append(current_context.get().id)

    async def gather(self, requests: AsyncIterator[Any], _context: Any) -> Any:
        sizes = [len(request.samples) async for request in requests]
        return pb.WindowAnswer(start_s=sum(sizes))

    async def single(self, request: Any, _context: Any) -> Any:
        fail(request.samples)
        return answer(request.samples)


def answer(word: bytes) -> pb.WindowAnswer:
    plane = pb.Plane(values=bytes(LARGE_BYTES if word == b"large" else 0))
    return pb.WindowAnswer(
        start_s=len(word), answers=[pb.ModelAnswer(explanation=pb.Explanation(log_mel=plane))] if plane.values else []
    )


def fail(word: bytes) -> None:
    if word == b"invalid":
        raise InvalidArgumentError(Reason.ARGUMENT, "samples: not these")
    if word == b"full":
        raise ResourceExhaustedError(Reason.QUEUE_FULL, "try again later", retry_after_s=0.25)
    if word == b"bug":
        raise ZeroDivisionError("secret")


class Bench:
    """The server under test and a channel to it."""

    def __init__(self, transfers: MessageTransfer | None = None) -> None:
        self.behaviour = Behaviour()
        self.transfers = transfers or MessageTransfer(60, 2**25, 2**30)
        self.gate, self.metrics = CallGate(), Metrics()
        self.gate.closed = None

    def calls(self) -> dict[str, float]:
        samples = next(f for f in self.metrics.registry.collect() if f.name == "speakerlens_requests").samples
        return {
            f"{s.labels['method']} {s.labels['variant']} {s.labels['code']}": s.value
            for s in samples
            if s.name.endswith("_total")
        }

    async def __aenter__(self) -> "Bench":
        services = (SERVICE, "test.Other")
        interceptor = CallInterceptor(services, self.gate, Admission(9, 1), self.metrics, self.transfers)
        self._server = grpc.aio.server(interceptors=[interceptor])
        plain: dict[str, Any] = {
            "request_deserializer": pb.IdentifyStreamRequest.FromString,
            "response_serializer": pb.IdentifyStreamResponse.SerializeToString,
        }
        handlers: dict[str, Any] = {
            "Stream": grpc.stream_stream_rpc_method_handler(self.behaviour.stream, **plain),
            "Gather": grpc.stream_unary_rpc_method_handler(self.behaviour.gather, **plain),
            "Single": grpc.unary_unary_rpc_method_handler(self.behaviour.single, **plain),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self._server.stop(0)

    def stream(self, *chunks: bytes, **fields: Any) -> Any:
        method = self.channel.stream_stream(
            PATH + "Stream", _request, response_deserializer=pb.IdentifyStreamResponse.FromString
        )
        return method(iter(chunks), **fields) if chunks else method(**fields)

    def single(self, chunk: bytes, **fields: Any) -> Any:
        method = self.channel.unary_unary(PATH + "Single", _request, pb.WindowAnswer.FromString)
        return method(chunk, **fields)


def _request(chunk: bytes) -> bytes:
    return chunk if chunk == b"\xff" else pb.IdentifyStreamRequest(samples=chunk).SerializeToString()


def on_bench(test: Callable[[Bench], Awaitable[None]]) -> None:
    async def run() -> None:
        async with Bench() as bench:
            await asyncio.wait_for(test(bench), 60)

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_stream_counts_as_one_call() -> None:
    async def test(bench: Bench) -> None:
        call = bench.stream(b"a", b"bcd")
        sizes = [answer.window.start_s async for answer in call if answer.HasField("window")]
        assert sizes == [1, 3]
        assert await call.code() is grpc.StatusCode.OK
        assert dict(await call.trailing_metadata()).keys() == {"x-request-id"}
        gathered = bench.channel.stream_unary(PATH + "Gather", _request, pb.WindowAnswer.FromString)
        assert (await gathered(iter([b"a", b"bcd"]))).start_s == 4
        assert bench.calls() == {"Stream da OK": 1, "Gather _none OK": 1}

    on_bench(test)


@pytest.mark.parametrize(
    ("chunk", "code", "detail"),
    [
        (b"invalid", "INVALID_ARGUMENT", "samples: not these"),
        (b"full", "RESOURCE_EXHAUSTED", "try again later"),
        (b"bug", "INTERNAL", "internal error; the server's log has it under my-id"),
        (b"\xff", "INVALID_ARGUMENT", "the message is not of the method's request type"),
    ],
)
def test_errors_have_a_status_in_streams_and_single_calls(chunk: bytes, code: str, detail: str) -> None:
    async def test(bench: Bench) -> None:
        metadata = (("x-request-id", "my-id"),)
        stream, single = bench.stream(b"a", chunk, metadata=metadata), bench.single(chunk, metadata=metadata)
        answers = []
        with pytest.raises(grpc.aio.AioRpcError) as streamed:
            async for answer in stream:
                answers.append(answer)  # noqa: PERF401 - what came before the error counts
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await single
        assert len(answers) == 1, "answers before the error arrive"
        for error in (streamed.value, caught.value):
            assert (error.code().name, error.details()) == (code, detail)
            trailing = dict(error.trailing_metadata())
            assert trailing["x-request-id"] == "my-id"
            assert trailing.get("retry-after-ms") == ("250" if chunk == b"full" else None)
        assert bench.calls() == {f"Stream da {code}": 1, f"Single _none {code}": 1}
        assert bench.behaviour.closed == ["my-id"]

    on_bench(test)


def test_a_stream_is_inside_the_gate_until_it_ends() -> None:
    async def test(bench: Bench) -> None:
        call = bench.stream()
        await call.write(b"a")
        assert (await call.read()).window.start_s == 1
        bench.gate.closed = "the server is draining"
        assert not await bench.gate.emptied(0.05)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await bench.single(b"a")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await call.done_writing()
        assert (await call.read()).HasField("whole")
        assert await bench.gate.emptied(30)
        assert bench.calls() == {"Stream da OK": 1, "Single _none UNAVAILABLE": 1}

    on_bench(test)


def test_cancelling_a_stream_closes_its_handler() -> None:
    async def test(bench: Bench) -> None:
        call = bench.stream(metadata=(("x-request-id", "gone"),))
        await call.write(b"a")
        await call.read()
        call.cancel()
        await until(lambda: bench.behaviour.closed == ["gone"])
        await until(lambda: bench.calls() == {"Stream da CANCELLED": 1})
        assert await bench.gate.emptied(30)

    on_bench(test)


def test_cancelling_during_a_write_is_counted_once() -> None:
    """The client does not read, so the server waits in a write when the call is cancelled."""

    async def test(bench: Bench) -> None:
        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield bytes(100_000)

        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = bench.channel.stream_stream(
            PATH + "Stream", _request
        )
        call = method(endless())
        await until(lambda: bench.metrics.in_flight._value.get() == 1)
        await asyncio.sleep(0.2)
        call.cancel()
        await until(lambda: bench.calls() == {"Stream da CANCELLED": 1})
        assert len(bench.behaviour.closed) == 1

    on_bench(test)


@pytest.mark.parametrize(
    ("sent", "kept"), [("trace-7/a", True), ("x" * 64, True), ("x" * 65, False), ("two words", False), ("", False)]
)
def test_a_clients_id_is_kept_if_it_is_safe(sent: str, kept: bool) -> None:
    async def test(bench: Bench) -> None:
        call = bench.single(b"a", metadata=(("x-request-id", sent),))
        await call
        back = dict(await call.trailing_metadata())["x-request-id"]
        assert (back == sent) is kept
        assert back

    on_bench(test)


def test_unknown_methods_are_not_counted() -> None:
    async def test(bench: Bench) -> None:
        for path in (PATH + "Nonsense", "/no.Service/Single", "/test.Other/Single"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = bench.channel.unary_unary(path)
                await method(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert bench.calls() == {}

    on_bench(test)


def test_a_finished_call_frees_its_messages() -> None:
    """Without a garbage collection, which may come after thousands of calls."""

    async def test(bench: Bench) -> None:
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                await bench.single(b"x" * 1000)
                with pytest.raises(grpc.aio.AioRpcError):
                    await bench.single(b"invalid")
                assert [answer async for answer in bench.stream(b"one", b"two")]
            await until(lambda: not bench.metrics.in_flight._value.get())
            receivers = [each for each in gc.get_objects() if type(each).__name__ == "_MessageReceiver"]
        finally:
            gc.enable()
        assert len(receivers) < 5

    on_bench(test)
