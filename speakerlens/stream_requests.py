"""Build the messages of live audio; independent of gRPC channels."""

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.requests import (
    SAMPLE_FORMATS,
    Chunk,
    ExplainChoice,
    RawEncoding,
    channel_number,
    choice,
    identify,
    sample_bytes,
)
from speakerlens.samples import as_array

_MessageT = TypeVar("_MessageT")


@dataclass(frozen=True)
class StreamOptions:
    """The format of a stream, and what to return for it; the other fields as in `SpeakerClient.identify`."""

    rate: int
    """Hz"""
    channels: int = 1
    variants: str | Sequence[str] = "all"
    top_k: int | None = None
    explain: ExplainChoice = False
    with_embedding: bool = False
    channel: int | None = None
    """The channel to use, from 1; None: the mean of all"""
    encoding: RawEncoding = "int16"
    """Of chunks that are bytes"""


class StreamMessages(Generic[_MessageT]):
    """The messages of one stream of audio: a start, then samples.

    gRPC replaces an exception of the iterator that it sends from by a cancelled call; `error` keeps it.

    Args:
        message: their type.
        start: of the stream, complete but for the sample format.
        encoding: of chunks that are bytes.

    Raises:
        ValueError: the encoding is not valid.
    """

    def __init__(self, message: Callable[..., _MessageT], start: Any, encoding: RawEncoding) -> None:
        self._message = message
        self._start = start
        self._bytes_format = choice(SAMPLE_FORMATS, encoding, "encoding")
        self._started = False
        self.error: Exception | None = None

    def messages(self, chunks: Iterable[Chunk]) -> Iterator[_MessageT]:
        """Yield the start, once the first chunk tells the sample format, and then the chunks."""
        try:
            for chunk in chunks:
                yield from self._messages(chunk)
        except Exception as error:
            self.error = error
            raise

    async def messages_async(self, chunks: AsyncIterable[Chunk]) -> AsyncIterator[_MessageT]:
        """Yield the messages of chunks from an asynchronous iterator."""
        try:
            async for chunk in chunks:
                for message in self._messages(chunk):
                    yield message
        except Exception as error:
            self.error = error
            raise

    def _messages(self, chunk: Chunk) -> Iterator[_MessageT]:
        if isinstance(chunk, bytes):
            sample_format, data = self._bytes_format, chunk
        elif (samples := as_array(chunk)) is not None:
            sample_format, data = sample_bytes(samples)
        else:
            raise ValueError(f"chunks: {type(chunk).__name__} is neither bytes nor samples")
        if not self._started:
            self._started = True
            self._start.format = sample_format
            yield self._message(start=self._start)
        elif sample_format != self._start.format:
            raise ValueError("chunks: all must be floats, or all 16-bit integers, or all bytes")
        yield self._message(samples=data)


def stream(options: StreamOptions) -> StreamMessages[pb.IdentifyStreamRequest]:
    """Return the messages of a stream; errors as of `identify`."""
    checked = identify(
        b"", None, options.variants, options.top_k, options.explain, options.with_embedding
    )  # the same fields as of a single request
    start = pb.StreamStart(
        sample_rate=options.rate,
        channels=options.channels,
        channel=channel_number(options.channel),
        models=checked.models,
        top_k=checked.top_k,
        explain=checked.explain if checked.HasField("explain") else None,
        with_embedding=checked.with_embedding,
    )
    return StreamMessages(pb.IdentifyStreamRequest, start, options.encoding)
