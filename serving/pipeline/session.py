"""Run the windows of one request through its models, and combine what they put out.

A few windows are in work at a time, so that a long recording leaves the device to others. Their outputs are taken in
order, so that the result does not depend on which was ready first. A model that fails is not asked again; its error
takes the place of its output.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.sound import Sound
from speakerlens.serving.context import Stopwatch
from speakerlens.serving.engine.admission import Admitted
from speakerlens.serving.engine.batcher import Batcher
from speakerlens.serving.engine.graphs import PREDICTED, ExplainedPrediction, Job, Prediction, check_finite
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.errors import RequestError
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.aggregate import (
    ModelOutput,
    Piece,
    SoundMeasures,
    WindowAggregator,
    WindowOutput,
    stitched,
)
from speakerlens.serving.pipeline.concurrency import RunInThread, map_concurrent
from speakerlens.serving.pipeline.query import QueryOptions
from speakerlens.serving.pipeline.vad import holds_speech
from speakerlens.serving.pipeline.windows import Window

log = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# Windows of one request in the queues or on the device.
WINDOWS_AT_ONCE = 4

MeasureSound = Callable[[NDArray[np.float32]], Sound | None]
"""Measures samples, float32 [n] at 16 kHz; None if that failed. Thread-safe."""


@dataclass
class _ModelState:
    """One model's part of a request: the label it explains, and what it has put out so far."""

    model: Model
    target: int
    aggregator: WindowAggregator
    pieces: list[tuple[Window, Piece[ExplainedPrediction]]] = field(default_factory=list)
    error: Exception | None = None


def _is_first(window: Window) -> bool:
    return window.start == 0


class RequestSession:
    """One request's run through its models.

    Args:
        models: each with the label to explain, or PREDICTED, and why it is not asked, None if it is.
        query: what to compute. With maps, all windows are kept until the end.
        admitted: the request that it belongs to.
        run_in_thread: runs a function in a thread.
        stopwatch: records the phases.
        measure: measures the sound of the windows; None if that is not wanted.
        keep: whether to keep a window for sampling: the first with speech, else the first.

    Attributes:
        computed_at: arrival of the last result, on the clock of `time.monotonic`; None before the first.
        detected: windows in which speech was looked for, and the seconds that this and measuring their sound took.
        kept: the window that was kept.
        sounds: measures of the windows so far.
        speech: whether any window so far holds speech.
    """

    def __init__(
        self,
        models: Sequence[tuple[Model, int, Exception | None]],
        query: QueryOptions,
        admitted: Admitted,
        run_in_thread: RunInThread,
        stopwatch: Stopwatch,
        *,
        measure: MeasureSound | None = None,
        keep: bool = False,
    ) -> None:
        self._states = [
            _ModelState(model, target, WindowAggregator(model.bundle), error=error) for model, target, error in models
        ]
        self._query = query
        self._admitted = admitted
        self._run_in_thread = run_in_thread
        self._urgent: Callable[[Window], bool] = _is_first
        self._windows = 0
        self._last: Window | None = None
        self._measure = measure
        self._keep = keep
        self.stopwatch = stopwatch
        self.sounds = SoundMeasures()
        self.kept: WindowOutput | None = None
        self.computed_at: float | None = None
        self.speech = False
        self.detected = (0, 0.0)

    @property
    def failures(self) -> list[tuple[Model, Exception]]:
        """Return the models that failed so far, each with its error."""
        return [(state.model, state.error) for state in self._states if state.error is not None]

    async def windows(
        self, windows: AsyncIterator[Window], urgent: Callable[[Window], bool] = _is_first
    ) -> AsyncGenerator[WindowOutput, None]:
        """Yield the output for each window, in order, as soon as it and those before it are computed.

        Args:
            windows: the next one is requested when there is room for it.
            urgent: whether a window has the query's priority; all others are bulk.

        Raises:
            RequestError: from `windows`, or the first model's error when every model has failed.
        """
        self._urgent = urgent
        async with aclosing(map_ordered(windows, self._compute_window, WINDOWS_AT_ONCE)) as outputs:
            async for output in outputs:
                yield self._take(output)

    async def single(self, window: Window) -> WindowOutput:
        """Return the output for the only window of a recording.

        Raises:
            RequestError: the first model's error when every model has failed.
        """
        return self._take(await self._compute_window(window))

    async def whole(self) -> list[ModelOutput | Exception]:
        """Return the output or error of each model for all windows together.

        Raises:
            RequestError: every model has failed.
        """
        return [await self._whole_output(state) for state in self._states]

    async def _compute_window(self, window: Window) -> WindowOutput:
        """Detect speech in a window, measure its sound, and compute the models' outputs where they are needed.

        Until speech is found, every window is computed, as all count where none has speech. With maps, a window without
        speech is computed for its features.
        """
        stopwatch = Stopwatch(self.stopwatch)
        if self.speech and self._query.explain is None:
            speech, sound = await self._listen(window, stopwatch)
            outputs = await self._compute_models(window, stopwatch) if speech else ()
        else:
            # The device comes first: submitting to it needs the interpreter's lock, too.
            outputs, (speech, sound) = await asyncio.gather(
                self._compute_models(window, stopwatch), self._listen(window, stopwatch)
            )
            self.speech = self.speech or speech
        return WindowOutput(window, speech, outputs, stopwatch, sound)

    async def _listen(self, window: Window, stopwatch: Stopwatch) -> tuple[bool, Sound | None]:
        """Return whether a window holds speech, and the measures of its sound, both in one run of a thread."""

        def listen() -> tuple[bool, Sound | None]:
            return holds_speech(window.samples), None if self._measure is None else self._measure(window.samples)

        with stopwatch.decoding():
            async with self._admitted.turn():
                started = time.monotonic()
                found = await self._run_in_thread(listen)
                windows, seconds = self.detected
                self.detected = windows + 1, seconds + time.monotonic() - started
        return found

    async def _compute_models(self, window: Window, stopwatch: Stopwatch) -> tuple[ModelOutput | Exception, ...]:
        if len(self._states) == 1:
            return (await self._try_model(self._states[0], window, stopwatch),)
        return tuple(await asyncio.gather(*(self._try_model(state, window, stopwatch) for state in self._states)))

    async def _try_model(self, state: _ModelState, window: Window, stopwatch: Stopwatch) -> ModelOutput | Exception:
        if state.error is not None:
            return state.error
        try:
            return ModelOutput(await self._compute(state, window, state.target, stopwatch))
        except Exception as error:  # noqa: BLE001 - stands for this model's answer
            return self._fail(state, error)

    def _fail(self, state: _ModelState, error: Exception) -> Exception:
        """Record and return the error of a model.

        Raises:
            Exception: the first model's error, when every model has failed.
        """
        state.error = error
        if not isinstance(error, RequestError) and len(self._states) > 1:
            log.error("%s failed", state.model.bundle.name, exc_info=error)
        if all(each.error for each in self._states):
            raise self._states[0].error or error
        return error

    async def _compute(self, state: _ModelState, window: Window, target: int, stopwatch: Stopwatch) -> Prediction:
        explain = self._query.explain
        queue: Batcher[Job, Any] = state.model.predict if explain is None else state.model.explaining(explain.stages)
        admitted, urgent = self._admitted, self._urgent(window)
        priority = self._query.priority if urgent or not (admitted.long or admitted.live) else Priority.BULK
        done = await queue.submit(Job(window.samples, target), admitted.latest, priority, admitted.due)
        self.computed_at = time.monotonic()
        stopwatch.computed(done.queue_s, done.inference_s)
        prediction: Prediction = done.result
        check_finite(state.model.bundle.name, prediction)
        return prediction

    def _take(self, output: WindowOutput) -> WindowOutput:
        """Add a window's outputs to those before, and return it with the turns that it is part of."""
        self._windows += 1
        self._last = output.window
        self._admitted.advance()
        self.sounds.add(output.sound, output.speech)
        if self._keep and output.outputs and (self.kept is None or (output.speech and not self.kept.speech)):
            self.kept = output
        outputs: list[ModelOutput | Exception] = []
        for state, each in zip(self._states, output.outputs or [None] * len(self._states), strict=True):
            prediction = each.prediction if isinstance(each, ModelOutput) else None
            state.aggregator.add(output.window, prediction, output.speech)
            if isinstance(prediction, ExplainedPrediction):
                vote = output.window.weight * output.speech
                state.pieces.append((output.window, Piece(output.window.start, prediction, vote)))
            if each is not None:
                if self._admitted.live and isinstance(each, ModelOutput):
                    each = replace(each, turn=state.aggregator.turn())  # noqa: PLW2901
                outputs.append(each)
        return replace(output, outputs=tuple(outputs))

    async def _whole_output(self, state: _ModelState) -> ModelOutput | Exception:
        if state.error is not None:
            return state.error
        prediction = state.aggregator.result()
        if self._query.explain is not None and self._windows > 1:
            try:
                prediction = await self._explain_whole(state, prediction)
            except Exception as error:  # noqa: BLE001 - stands for this model's answer
                return self._fail(state, error)
        return ModelOutput(prediction, state.aggregator.timeline())

    async def _explain_whole(self, state: _ModelState, prediction: Prediction) -> ExplainedPrediction:
        """Return the maps of the whole's top-1 speaker; windows that explained another are computed again."""
        target = int(prediction.logits.argmax()) if state.target == PREDICTED else state.target

        async def compute_again(index: int) -> None:
            window, piece = state.pieces[index]
            answer = await self._compute(state, window, target, self.stopwatch)
            assert isinstance(answer, ExplainedPrediction)
            state.pieces[index] = (window, piece._replace(prediction=answer))

        if not state.aggregator.votes:
            state.pieces = [(window, piece._replace(vote=window.weight)) for window, piece in state.pieces]
        others = [
            index for index, (_, piece) in enumerate(state.pieces) if piece.vote and piece.prediction.target != target
        ]
        await map_concurrent(others, compute_again, WINDOWS_AT_ONCE)
        assert self._last is not None
        pieces, samples = [piece for _, piece in state.pieces], self._last.stop

        def stitch() -> ExplainedPrediction:
            with self.stopwatch.encoding():
                features, maps = stitched(state.model.bundle, pieces, samples)
            return ExplainedPrediction(prediction.logits, prediction.embedding, target, features, maps)

        return await self._run_in_thread(stitch)


async def map_ordered(
    items: AsyncIterator[ItemT], work: Callable[[ItemT], Awaitable[ResultT]], at_once: int
) -> AsyncGenerator[ResultT, None]:
    """Yield the results of `work` in the order of the items.

    At most `at_once` items are in work or finished and not yet taken; the next item is requested only when there is
    room for it, so a slow consumer stops the source. When the generator is closed or anything fails, the work in
    progress is cancelled.
    """
    room, ready = asyncio.Semaphore(at_once), asyncio.Event()
    tasks: deque[asyncio.Task[ResultT]] = deque()

    async def start(item: ItemT) -> ResultT:
        return await work(item)

    async def fill() -> None:
        try:
            await room.acquire()
            async for item in items:
                tasks.append(asyncio.create_task(start(item)))
                ready.set()
                await room.acquire()
        finally:
            ready.set()

    filling = asyncio.create_task(fill())
    try:
        while True:
            await ready.wait()
            if not tasks:
                if filling.done():
                    await filling
                    return
                ready.clear()
                continue
            result = await tasks[0]
            tasks.popleft()
            yield result
            room.release()
    finally:
        for task in (filling, *tasks):
            task.cancel()
        await asyncio.gather(filling, *tasks, return_exceptions=True)
