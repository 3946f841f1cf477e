"""What the pipeline reports about the requests it answers; `serving.robustness` implements the observer."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.sound import Sound
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.aggregate import ModelOutput, SoundMeasures, WindowOutput


class MonitoringScope(Enum):
    """What of an answer is monitored: the sound and the predictions, the sound alone, or nothing.

    SOUND is for enrolment and verification, whose speakers are mostly out of set.
    """

    ANSWER = "answer"
    SOUND = "sound"
    NOTHING = "nothing"


@dataclass(frozen=True)
class MonitoredAnswer:
    """A request, or one window of a stream, that was answered.

    Attributes:
        scope: what to monitor.
        explained: whether the client asked for maps.
        models: the models asked.
        outputs: the output or error of each of them.
        sounds: measures of the audio.
        seconds: duration of the audio.
        kept: a window with speech, for later sampling; None without one.
        clipped_share: share of clipped samples as received, 0 to 1; None if `sounds` has it.
    """

    scope: MonitoringScope
    explained: bool
    models: Sequence[Model]
    outputs: Sequence[ModelOutput | Exception]
    sounds: SoundMeasures
    seconds: float
    kept: WindowOutput | None
    clipped_share: float | None = None


class Observer(Protocol):
    """Watches answers without delaying or failing any; called on the event loop."""

    @property
    def keeps_windows(self) -> bool:
        """Return whether `record` makes use of `MonitoredAnswer.kept`."""

    def measure_sound(self, samples: NDArray[np.float32], /) -> Sound | None:
        """Return the measures of a window, float32 [n] at 16 kHz; None if that failed. Thread-safe."""

    def record(self, answer: MonitoredAnswer, /) -> None:
        """Take an answered request, to measure and count it later; called within its call."""
