"""Outputs for the windows of a recording, and how they combine into one: scores, timeline, maps, and sound measures.

Windows without speech have no vote, unless none holds speech. Logits are averaged; a shorter last window counts by its
length. The embedding is the mean of the windows' length-normalised embeddings, as in enrolment, times their mean norm.
A single window's output is taken as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.evidence import Evidence, evidence_of
from speakerlens.measures.sound import Sound, join
from speakerlens.serving.bundle import Bundle
from speakerlens.serving.context import Stopwatch
from speakerlens.serving.engine.graphs import Mapped, Prediction, mapped_stages
from speakerlens.serving.pipeline.timeline import SpeakerTurn, Timeline
from speakerlens.serving.pipeline.windows import Window

MappedT_co = TypeVar("MappedT_co", bound=Mapped, covariant=True)

# A last window that counts less, and in which no speech is found, is too short to end a turn.
LEAST_PAUSE_WEIGHT = 0.5

TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class ModelOutput:
    """Output of one model for a stretch of audio.

    Attributes:
        prediction: of the stretch.
        timeline: of the whole; empty for a single window, and without speech.
        turn: of a window with speech: the turn that it is part of, from the windows so far.
    """

    prediction: Prediction
    timeline: tuple[SpeakerTurn, ...] = ()
    turn: SpeakerTurn | None = None


@dataclass(frozen=True)
class WindowOutput:
    """One window and the output or error of each model for it.

    Attributes:
        window: the samples and where they lie.
        speech: whether the window holds speech.
        outputs: one for each model; empty if nothing was computed.
        stopwatch: the window's phases.
        sound: measures of the window; None if they were not taken, or that failed.
    """

    window: Window
    speech: bool
    outputs: tuple[ModelOutput | Exception, ...]
    stopwatch: Stopwatch
    sound: Sound | None


class Piece(NamedTuple, Generic[MappedT_co]):
    """Maps of the window that begins `start` samples into the audio, and what its vote counted, 0 without a vote."""

    start: int
    prediction: MappedT_co
    vote: float


class SoundMeasures:
    """Measures of the sound of one request's windows, in memory that does not grow with them.

    Attributes:
        whole: of all windows; None without any.
    """

    def __init__(self) -> None:
        self.whole: Sound | None = None
        self._spoken: Sound | None = None

    def add(self, sound: Sound | None, speech: bool) -> None:
        """Add the next window, and whether it holds speech."""
        if sound is not None:
            self.whole = _with(self.whole, sound)
            if speech:
                self._spoken = _with(self._spoken, sound)

    def evidence(self, seconds: float, clipped_share: float | None = None) -> Evidence | None:
        """Return the evidence in the windows that hold speech; where none does, no speech and the sound of all.

        Args:
            seconds: duration of the recording, whose windows may overlap.
            clipped_share: share of clipped samples as received; None for that of the windows.
        """
        if self.whole is None:
            return None
        if self._spoken is None:
            return evidence_of(replace(self.whole, speech_share=0.0), seconds, clipped_share)
        return evidence_of(self._spoken, seconds * self._spoken.seconds / self.whole.seconds, clipped_share)


def _with(joined: Sound | None, sound: Sound) -> Sound:
    return sound if joined is None else join([joined, sound])


class _Mean:
    """Weighted mean of predictions."""

    def __init__(self) -> None:
        self.count = 0
        self._weights = 0.0
        self._logits: NDArray[np.float64] | None = None
        self._directions: NDArray[np.float64] | None = None
        self._norms = 0.0
        self._only: Prediction | None = None

    def add(self, prediction: Prediction, weight: float) -> None:
        logits, embedding = weight * prediction.logits.astype(np.float64), prediction.embedding.astype(np.float64)
        norm = max(float(np.linalg.norm(embedding)), TINY)
        direction = embedding * (weight / norm)
        self._logits = logits if self._logits is None else self._logits + logits
        self._directions = direction if self._directions is None else self._directions + direction
        self._norms += weight * norm
        self._weights += weight
        self._only = None if self.count else prediction
        self.count += 1

    def result(self) -> Prediction:
        """Return the mean; that of a single prediction is the prediction itself."""
        if self._only is not None:
            return self._only
        assert self._logits is not None
        assert self._directions is not None
        embedding = self._directions / self._weights * (self._norms / self._weights)
        return Prediction((self._logits / self._weights).astype(np.float32), embedding.astype(np.float32))


class WindowAggregator:
    """Combine the outputs of one model, window by window, in memory that grows only with the speaker turns."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._spoken, self._silent = _Mean(), _Mean()
        self._timeline = Timeline()
        self._windows = 0
        # The first window, until another follows: most audio has a single one, whose output is taken as it is.
        self._first: tuple[Window, Prediction | None, bool] | None = None

    @property
    def votes(self) -> int:
        """Return the number of windows with a vote."""
        self._settle()
        return self._spoken.count

    def add(self, window: Window, prediction: Prediction | None, speech: bool) -> None:
        """Add the next window in time; its prediction may be None where the window does not hold speech."""
        self._windows += 1
        if self._windows == 1:
            self._first = window, prediction, speech
            return
        self._settle()
        self._add(window, prediction, speech)

    def _settle(self) -> None:
        if self._first is not None:
            first, self._first = self._first, None
            self._add(*first)

    def _add(self, window: Window, prediction: Prediction | None, speech: bool) -> None:
        if not speech or prediction is None:
            if window.weight < LEAST_PAUSE_WEIGHT:
                self._timeline.extend(window.stop)
            else:
                self._timeline.add_pause(window.start, window.stop)
            if prediction is not None and not self.votes:
                self._silent.add(prediction, window.weight)
            return
        self._spoken.add(prediction, window.weight)
        if not self._bundle.has_classifier:
            return
        probabilities = softmax(prediction.logits / self._bundle.temperature)
        scores = self._bundle.open_set_scores(prediction.logits, prediction.embedding)
        self._timeline.add(window.start, window.stop, probabilities, scores, window.weight)

    def result(self) -> Prediction:
        """Return logits [classes] and embedding [size], float32, of all windows with a vote.

        Where none has one, all windows that have a prediction count; at least one must.
        """
        if self._first is not None and self._first[1] is not None:
            return self._first[1]
        return (self._spoken if self.votes else self._silent).result()

    def turn(self) -> SpeakerTurn | None:
        """Return the current turn; None in a pause."""
        self._settle()
        return self._timeline.current()

    def timeline(self) -> tuple[SpeakerTurn, ...]:
        """Return the speaker turns; empty for a single window."""
        return self._timeline.turns() if self._windows > 1 else ()


def stitched(
    bundle: Bundle, pieces: Sequence[Piece[Mapped]], samples: int
) -> tuple[NDArray[np.float32], tuple[NDArray[np.float32], ...]]:
    """Join the maps of overlapping windows.

    Overlaps are cross-faded: a column is the mean over the windows that cover it, weighted by its distance from the
    window's edge, where the network sees less context. Maps count as their window's vote does: a network that averages
    over time has larger gradients in shorter windows. A window without a vote has no part in the score, so its maps
    count as zero; its features are shown.

    Args:
        bundle: of the model.
        pieces: the windows, which together cover the audio.
        samples: length of the audio at 16 kHz.

    Returns:
        Log-mel features [mel, frames] and the raw map [rows, columns] of each stage that the windows have, float32.
    """
    frames = bundle.frames(samples)
    features = _joined(frames, [(piece.start // bundle.frame_shift, piece.prediction.features) for piece in pieces])
    maps = []
    for index, (stage, _) in enumerate(mapped_stages(bundle, pieces[0].prediction)):
        step = bundle.frame_shift * stage.stride
        parts = [(piece.start // step, piece.prediction.saliency[index] * np.float32(piece.vote)) for piece in pieces]
        maps.append(_joined(-(-frames // stage.stride), parts))
    return features, tuple(maps)


def _joined(columns: int, parts: Sequence[tuple[int, NDArray[np.float32]]]) -> NDArray[np.float32]:
    rows = parts[0][1].shape[0]
    total, weights = np.zeros((rows, columns), np.float32), np.zeros(columns, np.float32)
    for first, values in parts:
        count = values.shape[1]
        # Half a column at the edge, and one more for each column further in.
        weight = np.minimum(np.arange(count), np.arange(count)[::-1]).astype(np.float32) + np.float32(0.5)
        total[:, first : first + count] += values * weight
        weights[first : first + count] += weight
    return total / weights


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probabilities, float64 [n], of logits [n], without overflow."""
    shifted: NDArray[np.float64] = np.exp(logits.astype(np.float64) - float(logits.max()))
    shifted /= shifted.sum()
    return shifted
