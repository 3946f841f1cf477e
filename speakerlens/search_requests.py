"""Build the messages of searches; independent of gRPC channels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.requests import (
    AudioSource,
    ExplainChoice,
    RawEncoding,
    audio_message,
    channel_number,
    explain_options,
    selectors,
)
from speakerlens.stream_requests import StreamMessages


@dataclass(frozen=True)
class SearchStreamOptions:
    """The format of a stream, and what to search for; the other fields as in `SpeakerClient.search`."""

    rate: int
    """Hz"""
    channels: int = 1
    variant: str | None = None
    speakers: Sequence[str] = ()
    top_k: int | None = None
    explain: ExplainChoice = False
    channel: int | None = None
    """The channel to use, from 1; None: the mean of all"""
    encoding: RawEncoding = "int16"
    """Of chunks that are bytes"""


def search(
    audio: AudioSource,
    rate: int | None,
    variant: str | None,
    speakers: Sequence[str],
    top_k: int | None,
    explain: ExplainChoice,
) -> pb.SearchRequest:
    """Build the request for one utterance; the arguments are those of `SpeakerClient.search`.

    Raises:
        OSError: the file cannot be read.
        ValueError: an argument is not valid.
    """
    if top_k == 0:
        raise ValueError("top_k: 0 is not a number of candidates; pass 1 or more")
    if isinstance(speakers, str):
        raise ValueError(f"speakers: pass a sequence of names, such as [{speakers!r}]")  # noqa: TRY004, as of all arguments
    request = pb.SearchRequest(
        audio=audio_message(audio, rate),
        speakers=speakers,
        top_k=top_k or 0,  # 0 leaves the number to the server
        explain=explain_options(explain),
        with_outlook=True,
    )
    if variant is not None:
        [model] = selectors([variant])
        request.model.CopyFrom(model)
    return request


def search_batch(audios: Iterable[AudioSource], *options: Any) -> pb.SearchBatchRequest:
    """Build the request for many utterances with the same options; arguments and errors as of `search`."""
    return pb.SearchBatchRequest(requests=[search(audio, *options) for audio in audios])


def search_stream(options: SearchStreamOptions) -> StreamMessages[pb.SearchStreamRequest]:
    """Return the messages of a stream; errors as of `search`."""
    checked = search(
        b"", None, options.variant, options.speakers, options.top_k, options.explain
    )  # the same fields as of a single request
    start = pb.SearchStreamStart(
        sample_rate=options.rate,
        channels=options.channels,
        channel=channel_number(options.channel),
        model=checked.model if checked.HasField("model") else None,
        speakers=checked.speakers,
        top_k=checked.top_k,
        explain=checked.explain if checked.HasField("explain") else None,
        with_outlook=True,
    )
    return StreamMessages(pb.SearchStreamRequest, start, options.encoding)
