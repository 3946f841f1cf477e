"""Client of a speakerlens server: `SpeakerClient`, its asyncio sibling, and the command `speakerlens`.

>>> from serving.client import SpeakerClient
>>> with SpeakerClient("127.0.0.1:50051") as client:  # doctest: +SKIP
...     result = client.identify("call.flac", explain=True)
...     print(result["act-da"].best.speaker, result["act-da"].explanation.maps["fused"].values.shape)
"""

from serving.client.aio import AsyncSpeakerClient
from serving.client.client import SpeakerClient
from serving.client.credentials import Tls
from serving.client.errors import (
    ClientError,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    NotPossibleError,
    OverloadedError,
    ServerFailureError,
    ServerUnavailableError,
    UnauthenticatedError,
)
from serving.client.request import Explain
from serving.client.results import (
    Answer,
    AudioInfo,
    Catalogue,
    Explanation,
    Identification,
    Limits,
    ModelFailure,
    ModelInfo,
    Plane,
    Segment,
    SpeakerScore,
    StageInfo,
    Timings,
    WindowResult,
)
from serving.client.stream import StreamOptions
from serving.client.voices import Comparison, Embeddings, EnrolledModel, EnrolledSpeaker

__all__ = [
    "Answer",
    "AsyncSpeakerClient",
    "AudioInfo",
    "Catalogue",
    "ClientError",
    "Comparison",
    "DeadlineExceededError",
    "Embeddings",
    "EnrolledModel",
    "EnrolledSpeaker",
    "Explain",
    "Explanation",
    "Identification",
    "InvalidRequestError",
    "Limits",
    "ModelFailure",
    "ModelInfo",
    "NotFoundError",
    "NotPossibleError",
    "OverloadedError",
    "Plane",
    "Segment",
    "ServerFailureError",
    "ServerUnavailableError",
    "SpeakerClient",
    "SpeakerScore",
    "StageInfo",
    "StreamOptions",
    "Timings",
    "Tls",
    "UnauthenticatedError",
    "WindowResult",
]
