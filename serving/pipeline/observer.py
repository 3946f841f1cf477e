"""What the pipeline reports of each answered request; `serving.robustness` implements it."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.sound import Sound
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.query import QueryOptions
from speakerlens.serving.pipeline.session import ModelOutput, SoundMeasures, WindowOutput


@dataclass(frozen=True)
class MonitoredAnswer:
    """One utterance that was answered.

    Attributes:
        models: that were asked.
        said: their outputs, or how each one failed.
        sounds: sound measures of the windows.
        seconds: duration of the audio.
        kept: a window that holds speech, if the observer keeps windows.
        clipped_share: of the audio as it was received; None to take it from `sounds`.
    """

    models: Sequence[Model]
    said: Sequence[ModelOutput | Exception]
    sounds: SoundMeasures
    seconds: float
    kept: WindowOutput | None
    clipped_share: float | None = None


class Observer(Protocol):
    """Receives the audio and the answers of requests; never delays or fails one. Event-loop only."""

    @property
    def keeps_windows(self) -> bool:
        """Whether answers should come with a window of their audio."""

    def measure_sound(self, samples: NDArray[np.float32], /) -> "Future[Sound | None] | None":
        """Measure the sound of a window, float32 [n] at 16 kHz, in a thread.

        Returns:
            None if it is not measured; the future holds None if measuring failed.
        """

    def record(self, question: QueryOptions, answer: MonitoredAnswer) -> None:
        """Measure and count an answer later, in a thread; to be called within the call that is answered."""
