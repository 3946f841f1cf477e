"""One request's audio before its models, window by window: what each window says, and what all of them say together.

Windows are computed several at a time, but never many: a long recording is to leave the device to others. Their answers
are taken in order, so that the whole does not depend on which was ready first. A model that fails is asked no further,
and its error stands for its answer.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.sound import Sound, join
from speakerlens.serving.engine.graphs import PREDICTED, ExplainedPrediction, Job, Prediction
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.errors import InvalidArgumentError, Reason, RequestError, ResourceExhaustedError
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.aggregate import WindowAggregator
from speakerlens.serving.pipeline.concurrency import ConcurrencyLimit
from speakerlens.serving.pipeline.ordered import map_ordered
from speakerlens.serving.pipeline.query import QueryOptions
from speakerlens.serving.pipeline.stitching import Piece, stitched
from speakerlens.serving.pipeline.timeline import SpeakerTurn
from speakerlens.serving.pipeline.timing import Stopwatch
from speakerlens.serving.pipeline.vad import holds_speech
from speakerlens.serving.pipeline.windows import Window

log = logging.getLogger(__name__)

T = TypeVar("T")

# Of one request, in the queues or on the device at once.
WINDOWS_AT_ONCE = 4
# Measuring how a window sounds begins this much later than its computing: handing that over needs the interpreter's
# lock, too.
HEAD_START_SECONDS = 0.002
# How long a window of a recording that is being answered waits for room in a full queue before it asks again.
NO_ROOM_SECONDS = 0.1


class RunInThread(Protocol):
    """Runs a function in a thread."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]:
        """Its result."""
        ...


class MeasureSound(Protocol):
    """Measures samples, float32 [n] at 16 kHz, in a thread."""

    def __call__(self, samples: NDArray[np.float32], /) -> "Future[Sound | None] | None":
        """What they sound like; None where that is not measured or failed, as it never fails the request."""
        ...


@dataclass(frozen=True)
class ModelOutput:
    """What one model says of a stretch of audio; the timeline is empty for a single window."""

    prediction: Prediction
    timeline: tuple[SpeakerTurn, ...] = ()


@dataclass(frozen=True)
class WindowOutput:
    """A window, how it sounds, whether somebody speaks in it, and if so what each model says, or how it failed."""

    window: Window
    speech: bool
    said: tuple[ModelOutput | Exception, ...]
    watch: Stopwatch
    sound: "Future[Sound | None] | None"


class SoundMeasures:
    """How the windows of one request sound, in memory that does not grow with them."""

    def __init__(self) -> None:
        self._joined: list[Sound] = []
        self._coming: deque[Future[Sound | None]] = deque()

    def add(self, sound: "Future[Sound | None] | None") -> None:
        """Joins those that have come so far; on the event loop."""
        if sound is not None:
            self._coming.append(sound)
        while self._coming and self._coming[0].done():
            self._join(self._coming.popleft())

    def whole(self) -> Sound | None:
        """How all of it sounds, or None where nothing is known; waits, so it is to be called in a thread."""
        while self._coming:
            self._join(self._coming.popleft())
        return self._joined[0] if self._joined else None

    def _join(self, sound: "Future[Sound | None]") -> None:
        result = sound.result()
        if result is not None:
            self._joined = [join([*self._joined, result])]


@dataclass
class _ModelState:
    """One model's part: what it has heard so far."""

    model: Model
    target: int
    aggregator: WindowAggregator
    pieces: list[tuple[Window, Piece[ExplainedPrediction]]] = field(default_factory=list)
    failed: Exception | None = None


def _is_first(window: Window) -> bool:
    return window.start == 0


class RequestSession:
    """What the models of one request hear.

    Args:
        models: each with the label it explains, or PREDICTED.
        question: what is wanted. Where that is maps, all windows are kept until the end.
        off_loop: runs a function in a thread.
        watch: notes where the time goes.
        listen: measures how the windows sound, while they are computed; None where nobody wants to know.
        keep: whether the first window that is spoken in is kept, for what is looked into later.

    Attributes:
        computed_at: when the device gave its last answer, on the clock of `time.monotonic`.
    """

    def __init__(
        self,
        models: Sequence[tuple[Model, int]],
        question: QueryOptions,
        run_in_thread: RunInThread,
        watch: Stopwatch,
        listen: MeasureSound | None = None,
        keep: bool = False,
    ) -> None:
        self._states = [_ModelState(model, target, WindowAggregator(model.bundle)) for model, target in models]
        self._explained = question.explain is not None
        self._question = question
        self._run_in_thread = run_in_thread
        self._urgent: Callable[[Window], bool] = _is_first
        self._windows = 0
        self._last: Window | None = None
        self._listen = listen
        self._keep = keep
        self.watch = watch
        self.sounds = SoundMeasures()
        self.kept: WindowOutput | None = None
        self.computed_at: float | None = None

    @property
    def failures(self) -> list[tuple[Model, Exception]]:
        """The models that failed so far, and how."""
        return [(state.model, state.failed) for state in self._states if state.failed is not None]

    async def windows(
        self, windows: AsyncIterator[Window], urgent: Callable[[Window], bool] = _is_first
    ) -> AsyncGenerator[WindowOutput, None]:
        """What each window says, in order, as soon as it and those before it are answered.

        Args:
            windows: the next is asked for when there is room for it.
            urgent: whether a window has the question's priority; all others are bulk.

        Raises:
            RequestError: from `windows`, or where every model has failed; then that of the first.
        """
        self._urgent = urgent
        async with aclosing(map_ordered(windows, self._hear, WINDOWS_AT_ONCE)) as heard:
            async for each in heard:
                self._take(each)
                yield each

    async def whole(self) -> list[ModelOutput | Exception]:
        """What each model says of everything it has heard.

        Raises:
            InvalidArgumentError: nobody speaks in any of the windows.
            RequestError: every model has failed.
        """
        silent = not any(state.aggregator.votes for state in self._states if state.failed is None)
        if silent and self._windows == 1 and self._last is not None:
            self._revote(await self._computed(self._last, Stopwatch()))
        elif silent:
            raise InvalidArgumentError(Reason.NO_SPEECH, "audio: nobody speaks in it, in no window of it")
        return [await self._said(state) for state in self._states]

    async def _hear(self, window: Window) -> WindowOutput:
        watch = Stopwatch()
        speech = window.whole or bool(await self._run_in_thread(lambda: self._speech(window, watch)))
        sounds: list[Future[Sound | None] | None] = []

        def listen() -> None:
            sounds.append(None if self._listen is None else self._listen(window.samples))

        timer = asyncio.get_running_loop().call_later(HEAD_START_SECONDS, listen)
        try:
            # The features of a window without a vote are shown all the same.
            said = await self._computed(window, watch) if speech or self._explained else ()
        finally:
            timer.cancel()
        if not sounds:
            listen()
        return WindowOutput(window, speech, said, watch, sounds[0])

    def _speech(self, window: Window, watch: Stopwatch) -> bool:
        with self.watch.decoding(), watch.decoding():
            return holds_speech(window.samples)

    async def _computed(self, window: Window, watch: Stopwatch) -> tuple[ModelOutput | Exception, ...]:
        return tuple(await asyncio.gather(*(self._ask(state, window, watch) for state in self._states)))

    async def _ask(self, state: _ModelState, window: Window, watch: Stopwatch) -> ModelOutput | Exception:
        if state.failed is not None:
            return state.failed
        try:
            return ModelOutput(await self._compute(state, window, state.target, watch))
        except Exception as error:
            return self._fail(state, error)

    def _fail(self, state: _ModelState, error: Exception) -> Exception:
        """Notes that a model failed, and why; where it was the last, the request fails as the first did."""
        state.failed = error
        if not isinstance(error, RequestError) and len(self._states) > 1:
            log.error("%s failed", state.model.bundle.name, exc_info=error)
        if all(each.failed for each in self._states):
            raise self._states[0].failed or error
        return error

    async def _compute(self, state: _ModelState, window: Window, target: int, watch: Stopwatch) -> Prediction:
        queue = state.model.explain if self._explained else state.model.predict
        priority = self._question.priority if self._urgent(window) else Priority.BULK
        while True:
            try:
                done = await queue.submit(Job(window.samples, target), self._question.deadline, priority)
                break
            except ResourceExhaustedError as error:
                # Before anything has been done for a request, its caller decides whether to wait.
                begun = self._windows > 0 or not _is_first(window)
                if not begun or error.reason is not Reason.QUEUE_FULL:
                    raise
                await asyncio.sleep(error.retry_after_s or NO_ROOM_SECONDS)
        self.computed_at = time.monotonic()
        for each in (self.watch, watch):
            each.computed(done.queue_s, done.inference_s)
        check_finite(state.model.bundle.name, done.result)
        return done.result

    def _take(self, heard: WindowOutput) -> None:
        self._windows += 1
        self._last = heard.window
        self.sounds.add(heard.sound)
        if self._keep and self.kept is None and heard.speech:
            self.kept = heard
        for state, said in zip(self._states, heard.said or [None] * len(self._states), strict=True):
            prediction = said.prediction if isinstance(said, ModelOutput) else None
            state.aggregator.add(heard.window, prediction if heard.speech else None)
            if isinstance(prediction, ExplainedPrediction):
                state.pieces.append((heard.window, Piece(heard.window.start, prediction, heard.speech)))

    def _revote(self, said: Sequence[ModelOutput | Exception]) -> None:
        """A single window is answered whether somebody speaks in it or not."""
        assert self._last is not None
        self._windows = 0
        for state in self._states:
            state.aggregator, state.pieces = WindowAggregator(state.model.bundle), []
        self._take(WindowOutput(self._last, True, tuple(said), self.watch, None))

    async def _said(self, state: _ModelState) -> ModelOutput | Exception:
        if state.failed is not None:
            return state.failed
        prediction = state.aggregator.result()
        if self._explained and self._windows > 1:
            try:
                prediction = await self._explained_whole(state, prediction)
            except Exception as error:
                return self._fail(state, error)
        return ModelOutput(prediction, state.aggregator.timeline())

    async def _explained_whole(self, state: _ModelState, prediction: Prediction) -> ExplainedPrediction:
        """The maps of the whole's best speaker: windows that explained another are asked again."""
        target = int(prediction.logits.argmax()) if state.target == PREDICTED else state.target

        async def again(index: int) -> None:
            window, piece = state.pieces[index]
            answer = await self._compute(state, window, target, self.watch)
            assert isinstance(answer, ExplainedPrediction)
            state.pieces[index] = (window, piece._replace(prediction=answer))

        others = [
            index for index, (_, piece) in enumerate(state.pieces) if piece.votes and piece.prediction.target != target
        ]
        await ConcurrencyLimit(WINDOWS_AT_ONCE, WINDOWS_AT_ONCE).map_concurrent(others, again)
        assert self._last is not None
        pieces, samples = [piece for _, piece in state.pieces], self._last.stop

        def stitch() -> ExplainedPrediction:
            with self.watch.encoding():
                features, maps = stitched(state.model.bundle, pieces, samples)
            return ExplainedPrediction(prediction.logits, prediction.embedding, target, features, maps)

        answer = await self._run_in_thread(stitch)
        assert isinstance(answer, ExplainedPrediction)
        return answer


def check_finite(name: str, prediction: Prediction) -> None:
    """Whether a model's answer can be used.

    Raises:
        FloatingPointError: it holds NaN or infinity.
    """
    if not all(np.isfinite(value).all() for value in prediction.arrays()):
        raise FloatingPointError(f"{name} answered with NaN or infinity")
