"""Client of a speakerlens server: `SpeakerClient`, `AsyncSpeakerClient`, and the command `speakerlens`.

>>> from speakerlens import SpeakerClient
>>> with SpeakerClient("127.0.0.1:50051") as client:  # doctest: +SKIP
...     result = client.identify("call.flac", explain=True)
...     print(result["act-da"].best.speaker, result["act-da"].explanation.maps["fused"].values.shape)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from speakerlens._version import __version__

if TYPE_CHECKING:
    from speakerlens.aio import AsyncSpeakerClient
    from speakerlens.balancing import Balancing
    from speakerlens.channel import Tls
    from speakerlens.client import SpeakerClient
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
    from speakerlens.identification import Identification
    from speakerlens.requests import Channel, Explain, RawSamples
    from speakerlens.results import (
        Answer,
        AudioInfo,
        Calibration,
        Catalogue,
        Comparison,
        Embeddings,
        EnrolledModel,
        EnrolledSpeaker,
        Evidence,
        Explanation,
        Limits,
        Listening,
        Mismatch,
        ModelFailure,
        ModelInfo,
        Outlook,
        Plane,
        SearchCalibration,
        Segment,
        SpeakerScore,
        StageInfo,
        ThresholdBasis,
        Timings,
        WindowResult,
    )
    from speakerlens.search_requests import SearchStreamOptions
    from speakerlens.search_results import (
        Candidate,
        Decision,
        SearchAnswer,
        SearchReason,
        SearchResult,
        SearchWindow,
    )
    from speakerlens.stream_requests import StreamOptions

__all__ = [
    "Answer",
    "AsyncSpeakerClient",
    "AudioInfo",
    "Balancing",
    "Calibration",
    "Candidate",
    "Catalogue",
    "Channel",
    "ClientError",
    "Comparison",
    "DeadlineExceededError",
    "Decision",
    "Embeddings",
    "EnrolledModel",
    "EnrolledSpeaker",
    "EnrolledUtterance",
    "Evidence",
    "Explain",
    "Explanation",
    "GalleryImport",
    "GalleryMigration",
    "Identification",
    "InvalidRequestError",
    "Limits",
    "Listening",
    "Mismatch",
    "ModelFailure",
    "ModelInfo",
    "NotFoundError",
    "NotPossibleError",
    "Outlook",
    "OverloadedError",
    "Plane",
    "RawSamples",
    "SearchAnswer",
    "SearchCalibration",
    "SearchReason",
    "SearchResult",
    "SearchStreamOptions",
    "SearchWindow",
    "Segment",
    "ServerFailureError",
    "ServerUnavailableError",
    "SpeakerClient",
    "SpeakerScore",
    "StageInfo",
    "StreamOptions",
    "ThresholdBasis",
    "Timings",
    "Tls",
    "UnauthenticatedError",
    "WindowResult",
    "__version__",
]

_MODULES = {
    "SearchWindow": "search_results",
    "SearchStreamOptions": "search_requests",
    "SearchResult": "search_results",
    "SearchReason": "search_results",
    "SearchAnswer": "search_results",
    "Decision": "search_results",
    "Candidate": "search_results",
    "AsyncSpeakerClient": "aio",
    "Balancing": "balancing",
    "Channel": "requests",
    "Explain": "requests",
    "Identification": "identification",
    "RawSamples": "requests",
    "SpeakerClient": "client",
    "StreamOptions": "stream_requests",
    "Tls": "channel",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the server and the command line's help need neither gRPC nor numpy."""
    if name not in __all__:
        raise AttributeError(f"module 'speakerlens' has no attribute {name!r}")
    module = _MODULES.get(name) or ("errors" if name.endswith("Error") else "results")
    value = globals()[name] = getattr(import_module(f"speakerlens.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
