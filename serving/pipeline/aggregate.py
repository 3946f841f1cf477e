"""What windows say together: the mean of their logits, an embedding, and who spoke when.

Windows without speech do not vote. The embedding is the mean of the windows' normalised embeddings, as speakers are
enrolled, times their mean length, so that it is like that of a single window in every way. What a single window says is
taken as it is.
"""

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import Bundle
from speakerlens.serving.engine.graphs import Prediction
from speakerlens.serving.pipeline.timeline import SpeakerTurn, Vote, WindowVote, speaker_turns
from speakerlens.serving.pipeline.windows import Window

TINY = float(np.finfo(np.float32).tiny)


class WindowAggregator:
    """The votes of one model's windows; they come in the order of the windows, and take no memory but their best."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._windows: list[WindowVote] = []
        self._votes = 0
        self._logits: NDArray[np.float64] | None = None
        self._directions: NDArray[np.float64] | None = None
        self._lengths = 0.0
        self._only: Prediction | None = None

    @property
    def votes(self) -> int:
        """Windows that have voted."""
        return self._votes

    def add(self, window: Window, prediction: Prediction | None) -> None:
        """Counts the next window; None is no speech."""
        if prediction is None:
            self._windows.append(WindowVote(window.start, window.stop, None))
            return
        logits, embedding = prediction.logits.astype(np.float64), prediction.embedding.astype(np.float64)
        label = int(logits.argmax())
        probability = float(softmax(prediction.logits / self._bundle.temperature)[label])
        self._windows.append(WindowVote(window.start, window.stop, Vote(label, probability, float(logits[label]))))
        length = max(float(np.linalg.norm(embedding)), TINY)
        direction = embedding / length
        self._logits = logits if self._logits is None else self._logits + logits
        self._directions = direction if self._directions is None else self._directions + direction
        self._lengths += length
        self._only = None if self._votes else prediction
        self._votes += 1

    def result(self) -> Prediction:
        """The vote of all; there must have been one."""
        if self._only is not None:
            return self._only
        assert self._logits is not None
        assert self._directions is not None
        embedding = self._directions / self._votes * (self._lengths / self._votes)
        return Prediction((self._logits / self._votes).astype(np.float32), embedding.astype(np.float32))

    def timeline(self) -> tuple[SpeakerTurn, ...]:
        """Who spoke when; nothing for a single window."""
        return speaker_turns(self._windows) if len(self._windows) > 1 else ()


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of logits [n], without overflow."""
    shifted: NDArray[np.float64] = np.exp(logits.astype(np.float64) - float(logits.max()))
    shifted /= shifted.sum()
    return shifted
