"""Live audio as the messages of a stream, and its answers; knows nothing of channels."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speakerlens import response
from speakerlens.errors import ServerFailureError
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.request import Explain, identify_request
from speakerlens.results import Identification, WindowResult

Chunk = bytes | NDArray[Any]
"""Samples, interleaved: bytes of 16-bit little-endian PCM, or an array [samples] or [samples, channels]."""


@dataclass(frozen=True)
class StreamOptions:
    """What a stream is of, and what is asked of it; the rest as in `SpeakerClient.identify`."""

    rate: int
    """Hz"""
    channels: int = 1
    variants: str | Sequence[str] = "all"
    top_k: int | None = None
    explain: bool | Explain = False
    with_embedding: bool = False


class Outgoing:
    """The messages of a stream; remembers what went wrong in making them, which gRPC would swallow."""

    def __init__(self, options: StreamOptions) -> None:
        # Checked before anything is sent; the request's other fields are those of the start.
        request = identify_request(
            b"",
            None,
            variants=options.variants,
            top_k=options.top_k,
            explain=options.explain,
            with_embedding=options.with_embedding,
        )
        self._start = pb.StreamStart(
            sample_rate=options.rate,
            channels=options.channels,
            models=request.models,
            top_k=request.top_k,
            explain=request.explain if request.HasField("explain") else None,
            with_embedding=request.with_embedding,
        )
        self._begun = False
        self.error: Exception | None = None

    def messages(self, chunks: Iterable[Chunk]) -> Iterator[pb.IdentifyStreamRequest]:
        """The start, once the first chunk says what the samples are, and the chunks."""
        try:
            for chunk in chunks:
                yield from self._messages(chunk)
        except Exception as error:
            self.error = error
            raise

    async def messages_async(self, chunks: AsyncIterable[Chunk]) -> AsyncIterator[pb.IdentifyStreamRequest]:
        """The same for chunks that are awaited."""
        try:
            async for chunk in chunks:
                for message in self._messages(chunk):
                    yield message
        except Exception as error:
            self.error = error
            raise

    def _messages(self, chunk: Chunk) -> Iterator[pb.IdentifyStreamRequest]:
        sample_format, data = _samples(chunk)
        if not self._begun:
            self._begun = True
            self._start.format = sample_format
            yield pb.IdentifyStreamRequest(start=self._start)
        elif sample_format != self._start.format:
            raise ValueError("chunks: all must be floats, or all 16-bit integers")
        yield pb.IdentifyStreamRequest(samples=data)


def answer_of(message: pb.IdentifyStreamResponse) -> WindowResult | Identification:
    """Read one answer of a stream.

    Raises:
        ServerFailureError: the message contradicts itself or the contract.
    """
    kind = message.WhichOneof("answer")
    if kind == "whole":
        return response.identification(message.whole)
    if kind == "window":
        return response.window(message.window)
    raise ServerFailureError("the server sent an answer of a kind that this client does not know")


def _samples(chunk: Chunk) -> tuple[pb.SampleFormat.ValueType, bytes]:
    if isinstance(chunk, bytes):
        return pb.SAMPLE_FORMAT_INT16, chunk
    if chunk.dtype == np.int16:
        return pb.SAMPLE_FORMAT_INT16, chunk.astype("<i2").tobytes()
    if np.issubdtype(chunk.dtype, np.floating):
        return pb.SAMPLE_FORMAT_FLOAT32, chunk.astype("<f4").tobytes()
    raise ValueError(f"chunks must be bytes, floats in [-1, 1] or int16, not {chunk.dtype}")
