"""Client of a speakerlens server: `SpeakerClient`, its asyncio sibling, and the command `speakerlens`.

>>> from speakerlens import SpeakerClient
>>> with SpeakerClient("127.0.0.1:50051") as client:  # doctest: +SKIP
...     result = client.identify("call.flac", explain=True)
...     print(result["act-da"].best.speaker, result["act-da"].explanation.maps["fused"].values.shape)
"""

from speakerlens._version import __version__
from speakerlens.aio import AsyncSpeakerClient
from speakerlens.client import SpeakerClient
from speakerlens.credentials import Tls
from speakerlens.errors import (
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
from speakerlens.request import Explain
from speakerlens.results import (
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
from speakerlens.stream import StreamOptions
from speakerlens.voices import Comparison, Embeddings, EnrolledModel, EnrolledSpeaker

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
    "__version__",
]
