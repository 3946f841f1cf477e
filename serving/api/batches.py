"""Calls of many requests, each with an answer or an error of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Final, TypeVar

from google.protobuf.message import Message

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.api.messages import failure_of
from speakerlens.serving.config import Config
from speakerlens.serving.context import current_context, variant_label
from speakerlens.serving.errors import InvalidArgumentError, Reason, RequestError, ResourceExhaustedError
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.concurrency import map_concurrent, retry_when_full

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT", bound=Message)
Leased = Sequence[Model] | RequestError

# Most requests in one call.
MAX_REQUESTS: Final = 256
# Largest answer of one call, so that a few of them leave room to others.
MAX_ANSWER_BYTES: Final = 2**26


class BatchRunner:
    """Answer the requests of such calls, a few at a time.

    Args:
        metrics: counts requests that are refused.
        config: size of a batch of the device, and of a queue.
    """

    def __init__(self, metrics: Metrics, config: Config) -> None:
        self._metrics = metrics
        self._at_once = config.max_batch
        # All calls together fill at most half of a queue, and two batches of the device.
        self._slots = asyncio.Semaphore(max(1, min(2 * config.max_batch, config.queue_size // 2)))

    async def run(
        self,
        requests: Sequence[RequestT],
        lease: Callable[[RequestT], AbstractContextManager[Sequence[Model]]],
        answer: Callable[[RequestT, Sequence[Model]], Awaitable[ResponseT]],
    ) -> list[ResponseT | pb.Failure]:
        """Return the response or failure of each request, all with the models that are loaded now.

        Args:
            requests: 1 to MAX_REQUESTS.
            lease: leases the models of a request.
            answer: answers a request with them; called again while the queues are full.

        Raises:
            InvalidArgumentError: there are too many requests, or none.
        """
        if not 1 <= len(requests) <= MAX_REQUESTS:
            raise InvalidArgumentError(
                Reason.ARGUMENT, f"requests: {len(requests)}; send 1 to {MAX_REQUESTS}, and more in further calls"
            )
        size = 0

        async def answered(request: RequestT, models: Leased) -> ResponseT:
            nonlocal size
            if isinstance(models, RequestError):
                raise models
            response = await retry_when_full(lambda: answer(request, models))
            added = response.ByteSize()
            if size + added > MAX_ANSWER_BYTES:
                raise ResourceExhaustedError(
                    Reason.ANSWER_SIZE, f"the answer would be above {MAX_ANSWER_BYTES} bytes; ask for fewer in one call"
                )
            current_context.get().reserve_answer(added)
            size += added
            return response

        async def result_of(item: tuple[RequestT, Leased]) -> ResponseT | pb.Failure:
            try:
                return await answered(*item)
            except Exception as error:  # noqa: BLE001 - becomes this request's failure
                if isinstance(error, RequestError):
                    self._metrics.rejections.labels(error.reason).inc()
                return failure_of(error)

        with ExitStack() as leases:
            leased = [_leased(lease, each, leases) for each in requests]
            found = [model for models in leased if not isinstance(models, RequestError) for model in models]
            current_context.get().variant = variant_label(model.bundle.variant for model in found)
            items = list(zip(requests, leased, strict=True))
            return await map_concurrent(items, result_of, self._at_once, self._slots)


def _leased(
    lease: Callable[[RequestT], AbstractContextManager[Sequence[Model]]], request: RequestT, leases: ExitStack
) -> Leased:
    """Return the models of one request, leased until `leases` end, or the error."""
    try:
        return leases.enter_context(lease(request))
    except RequestError as error:
        return error
