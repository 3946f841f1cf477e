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
    from speakerlens.enrolment_results import (
        EnrolledModel,
        EnrolledSpeaker,
        EnrolledUtterance,
        GalleryImport,
        GalleryMigration,
    )
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
    from speakerlens.model_results import (
        Calibration,
        Catalogue,
        Limits,
        ModelInfo,
        Outlook,
        SearchCalibration,
        StageInfo,
    )
    from speakerlens.requests import Channel, Explain, RawSamples
    from speakerlens.results import (
        Answer,
        AudioInfo,
        Comparison,
        Embeddings,
        Evidence,
        Explanation,
        Listening,
        Mismatch,
        ModelFailure,
        Plane,
        Segment,
        SpeakerScore,
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
    "AsyncSpeakerClient": "aio",
    "Balancing": "balancing",
    "Calibration": "model_results",
    "Candidate": "search_results",
    "Catalogue": "model_results",
    "Channel": "requests",
    "Decision": "search_results",
    "EnrolledModel": "enrolment_results",
    "EnrolledSpeaker": "enrolment_results",
    "EnrolledUtterance": "enrolment_results",
    "Explain": "requests",
    "GalleryImport": "enrolment_results",
    "GalleryMigration": "enrolment_results",
    "Identification": "identification",
    "Limits": "model_results",
    "ModelInfo": "model_results",
    "Outlook": "model_results",
    "RawSamples": "requests",
    "SearchAnswer": "search_results",
    "SearchCalibration": "model_results",
    "SearchReason": "search_results",
    "SearchResult": "search_results",
    "SearchStreamOptions": "search_requests",
    "SearchWindow": "search_results",
    "SpeakerClient": "client",
    "StageInfo": "model_results",
    "StreamOptions": "stream_requests",
    "Tls": "channel",
}
"""Where public names are defined that are neither errors nor in `results`."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use: the server and the command line's help need neither gRPC nor numpy."""
    if name not in __all__:
        raise AttributeError(f"module 'speakerlens' has no attribute {name!r}")
    module = _MODULES.get(name) or ("errors" if name.endswith("Error") else "results")
    value = globals()[name] = getattr(import_module(f"speakerlens.{module}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
