"""`speakerlens.v1.SpeakerIdentification` over gRPC: asks the core, and does nothing else."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any, Final

from protos.speakerlens.v1 import identification_pb2 as pb
from protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationServicer
from serving.audio import MODEL_RATE
from serving.config import Config
from serving.identification import Identifier
from serving.messages import model_of, query_of, response_of, start_of, stream_of, stream_response_of
from serving.metrics import variant_label
from serving.models import Selector
from serving.rpc import current_call
from serving.streaming import LiveWindows, Patience, listen, patient

SERVICE: Final = pb.DESCRIPTOR.services_by_name["SpeakerIdentification"].full_name


class Service(SpeakerIdentificationServicer):
    """The servicer; errors are `serving.rpc`'s matter.

    Args:
        core: answers queries; None until models are loaded, and not asked before.
        config: the limits that ListModels tells.
        codec: threads for building large answers.
    """

    def __init__(self, config: Config, codec: ThreadPoolExecutor) -> None:
        self.core: Identifier | None = None
        self._config = config
        self._codec = codec
        self._streams_end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def Identify(self, request: pb.IdentifyRequest, context: Any) -> pb.IdentifyResponse:  # noqa: N802
        """Names the speaker of one utterance."""
        core = self._core()
        query = query_of(request, deadline_of(context))
        with core.models.lease(query.models) as models:
            current_call.get().variant = variant_label(model.bundle.variant for model in models)
            result = await core.identify(query, models)
        return await asyncio.get_running_loop().run_in_executor(self._codec, response_of, result)

    async def IdentifyBatch(  # noqa: N802
        self, request: pb.IdentifyBatchRequest, context: Any
    ) -> pb.IdentifyBatchResponse:
        """Names the speakers of many utterances."""
        raise NotImplementedError

    async def IdentifyStream(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.IdentifyStreamRequest], context: Any
    ) -> AsyncIterator[pb.IdentifyStreamResponse]:
        """Names the speakers of live audio."""
        core, patience = self._core(), Patience(self._config.stream_idle_seconds, self._streams_end)
        start, chunks = await stream_of(patient(request_iterator, patience))
        question, form = start_of(start, deadline_of(context))
        with core.models.lease(question.models) as models:
            current_call.get().variant = variant_label(model.bundle.variant for model in models)
            least = max(core.min_samples(model) for model in models)
            live = LiveWindows(form, core.longest(question), core.shape(models), least)
            async with aclosing(listen(core, question, live, models, chunks)) as answers:
                async for answer in answers:
                    yield await core.off_loop(partial(stream_response_of, answer))

    def end_streams(self) -> None:
        """Ends the streams whose clients go on sending."""
        if not self._streams_end.done():
            self._streams_end.set_result(None)

    async def Embed(self, request: pb.EmbedRequest, context: Any) -> pb.EmbedResponse:  # noqa: N802
        """Embeds one utterance."""
        raise NotImplementedError

    async def Verify(self, request: pb.VerifyRequest, context: Any) -> pb.VerifyResponse:  # noqa: N802
        """Compares two voices."""
        raise NotImplementedError

    async def Enroll(self, request: pb.EnrollRequest, context: Any) -> pb.EnrollResponse:  # noqa: N802
        """Stores a speaker."""
        raise NotImplementedError

    async def ListSpeakers(self, request: pb.ListSpeakersRequest, context: Any) -> pb.ListSpeakersResponse:  # noqa: N802
        """Lists the stored speakers."""
        raise NotImplementedError

    async def RemoveSpeaker(  # noqa: N802
        self, request: pb.RemoveSpeakerRequest, context: Any
    ) -> pb.RemoveSpeakerResponse:
        """Forgets a speaker."""
        raise NotImplementedError

    async def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:  # noqa: N802
        """Describes one loaded model."""
        core = self._core()
        [model] = core.models.select([Selector(request.model.variant, request.model.version)])
        current_call.get().variant = model.bundle.variant
        return pb.GetModelResponse(model=model_of(model))

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:  # noqa: N802
        """Describes what is loaded."""
        core = self._core()
        shortest = max(core.min_samples(model) for model in core.models)
        return pb.ListModelsResponse(
            models=[model_of(model) for model in core.models],
            provider=core.models.provider,
            limits=pb.Limits(
                max_bytes=self._config.max_message_bytes,
                min_seconds=shortest / MODEL_RATE,
                max_seconds=self._config.max_seconds,
            ),
        )

    def _core(self) -> Identifier:
        assert self.core is not None, "the gate opens after the models are loaded"
        return self.core


def deadline_of(context: Any) -> float | None:
    """The caller's deadline on the clock of `time.monotonic`, or None."""
    remaining = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining
