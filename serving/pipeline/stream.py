"""Identification of a stream: chunks of samples in, an answer for each window, and at the end one for the whole.

The windows are those that `Identify` cuts from the same audio, however it is chunked, so the answers are the same.
Nothing is read ahead: the next chunk is requested when there is room for another window, and not while the client does
not read its answers.

A stream holds a place and its models for as long as it lasts, so its time without audio is limited by an idle budget.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from speakerlens.measures.windows import Windowing
from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.context import Stopwatch
from speakerlens.serving.errors import DeadlineError, InvalidArgumentError, Reason, UnavailableError
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.aggregate import SoundMeasures, WindowOutput
from speakerlens.serving.pipeline.answers import Identification, WindowAnswer, answer_of
from speakerlens.serving.pipeline.concurrency import RunInThread
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.observer import MonitoredAnswer, MonitoringScope
from speakerlens.serving.pipeline.query import QueryOptions
from speakerlens.serving.pipeline.samples import (
    SAMPLE_TYPES,
    AudioInfo,
    DurationLimit,
    Intake,
    check_form,
    check_minimum,
    check_no_header,
    floats,
)
from speakerlens.serving.pipeline.windows import Window, WindowCutter
from speakerlens.signatures import HEADER_BYTES

T = TypeVar("T")

# A large chunk is fed in pieces, so that it does not fill many windows at once.
PIECE_BYTES = 64 * 1024
# Below this size, feeding takes less time than handing the piece to a thread.
INLINE_BYTES = 8 * 1024
# Idle seconds granted for each second of audio: a client that sends only speech may be silent nine tenths of the time.
IDLE_PER_SECOND = 10.0


class IdleBudget:
    """Limit of the time that a stream's client may keep the server waiting.

    The client may take `idle_s` seconds, whether it sends nothing or does not read its answers. Every second of audio
    adds IDLE_PER_SECOND seconds, up to `idle_s` again. Messages without samples add nothing.

    Args:
        idle_s: the longest wait, in seconds.
        ending: done when the server ends its streams.
    """

    def __init__(self, idle_s: float, ending: "asyncio.Future[None]") -> None:
        self._idle_s = idle_s
        self._ending = ending
        self._left = idle_s
        self._waits = 0
        self._since = 0.0

    @property
    def left(self) -> float:
        """Return the seconds that the client may still keep the server waiting."""
        return self._left - (time.monotonic() - self._since if self._waits else 0.0)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting; where two blocks overlap, their time counts once."""
        if not self._waits:
            self._since = time.monotonic()
        self._waits += 1
        try:
            yield
        finally:
            self._left, self._waits = self.left, self._waits - 1
            self._since = time.monotonic()

    async def messages(self, messages: AsyncIterator[T]) -> AsyncIterator[T]:
        """Yield a client's messages while the budget lasts.

        Raises:
            DeadlineError: the budget is used up.
            UnavailableError: the server ends its streams.
        """
        while True:
            following = asyncio.ensure_future(anext(messages))
            # If the stream is cancelled, no code awaits it; asyncio would log its error.
            following.add_done_callback(lambda task: task.cancelled() or task.exception())
            awaited: set[asyncio.Future[Any]] = {following, self._ending}
            try:
                with self.waiting():
                    await asyncio.wait(awaited, timeout=max(0.0, self.left), return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not following.done():
                    following.cancel()
            if self.left <= 0:
                raise self._exhausted()
            if following.done() and not following.cancelled():
                try:
                    yield following.result()
                except StopAsyncIteration:
                    return
            elif self._ending.done():
                raise UnavailableError(
                    Reason.NOT_SERVING, "the server is draining; begin the stream again, or at another replica"
                )
            else:
                raise self._exhausted()

    async def credit(self, chunks: AsyncIterator[bytes], bytes_per_second: int) -> AsyncIterator[bytes]:
        """Yield chunks of audio, and add their duration to the budget."""
        async for chunk in chunks:
            self._left = min(self._idle_s, self._left + IDLE_PER_SECOND * len(chunk) / bytes_per_second)
            yield chunk

    def _exhausted(self) -> DeadlineError:
        return DeadlineError(
            Reason.IDLE,
            f"samples: less than a tenth of real time for {self._idle_s:g} s; send audio or silence as it is recorded, "
            "and read the answers, or end the stream",
        )


@dataclass(frozen=True)
class StreamFormat:
    """Format of a stream's samples, as of `RawAudio`."""

    sample_type: str
    sample_rate: int
    channels: int
    channel: int | None = None

    @property
    def bytes_per_second(self) -> int:
        """Return the bytes of one second of audio."""
        return SAMPLE_TYPES[self.sample_type].itemsize * self.channels * self.sample_rate


class LiveWindows:
    """Cut a stream of chunks into windows.

    Args:
        form: of the samples.
        limit: longest stream accepted.
        windowing: how to cut it.
        min_samples: shortest stream accepted, in samples at 16 kHz.

    Raises:
        InvalidArgumentError: the format is not accepted.
    """

    def __init__(self, form: StreamFormat, limit: DurationLimit, windowing: Windowing, min_samples: int) -> None:
        check_form("start.sample_rate", "start.channels", form.sample_rate, form.channels)
        self._type, self._channels = SAMPLE_TYPES[form.sample_type], form.channels
        self._sample_type = form.sample_type
        self._intake = Intake("samples", form.sample_rate, form.channels, limit, form.channel)
        self._cutter = WindowCutter(windowing)
        self._min_samples = min_samples
        self._rest = b""
        self._start: bytes | None = b""

    @property
    def info(self) -> AudioInfo:
        """Return what has arrived so far."""
        return self._intake.info

    async def windows(
        self, chunks: AsyncIterator[bytes], run_in_thread: RunInThread, stopwatch: Stopwatch
    ) -> AsyncIterator[Window]:
        """Yield the windows of these chunks, each as soon as it is filled.

        Raises:
            InvalidArgumentError: the samples are invalid, too many or too few, or end within a frame.
        """
        async for chunk in chunks:
            for start in range(0, len(chunk), PIECE_BYTES):
                piece = chunk[start : start + PIECE_BYTES]
                with stopwatch.decoding():
                    if len(piece) <= INLINE_BYTES:
                        filled = self._feed(piece)
                    else:
                        filled = await run_in_thread(lambda piece=piece: self._feed(piece))  # type: ignore[misc]
                for window in filled:
                    yield window
        with stopwatch.decoding():
            last = self._finish()
        for window in last:
            yield window

    def _feed(self, piece: bytes) -> list[Window]:
        self._check_start(piece)
        data = self._rest + piece
        whole = len(data) - len(data) % (self._type.itemsize * self._channels)
        self._rest = data[whole:]
        frames = np.frombuffer(data[:whole], self._type).reshape(-1, self._channels)
        return self._cutter.feed(self._intake.feed(floats(frames, self._sample_type)))

    def _check_start(self, piece: bytes) -> None:
        """Check the first bytes of the stream as they arrive: before their values are looked at."""
        if self._start is None:
            return
        self._start += piece[: HEADER_BYTES - len(self._start)]
        check_no_header("samples", self._start)
        if len(self._start) == HEADER_BYTES:
            self._start = None

    def _finish(self) -> list[Window]:
        if self._rest:
            raise InvalidArgumentError(
                Reason.NOT_AUDIO,
                f"samples: the stream ends within a frame: {len(self._rest)} of "
                f"{self._type.itemsize * self._channels} bytes",
            )
        windows = self._cutter.feed(self._intake.finish())
        check_minimum(self.info, self._cutter.total, self._min_samples)
        return windows + self._cutter.finish()


async def identify_stream(
    pipeline: Pipeline, query: QueryOptions, live: LiveWindows, models: Sequence[Model], chunks: AsyncIterator[bytes]
) -> AsyncGenerator[WindowAnswer | Identification, None]:
    """Yield the answer for each window of a stream with leased models, then the answer for the whole.

    Raises:
        RequestError: the query or the audio is invalid, or the server is overloaded.
    """
    in_real_time = arrival(pipeline.windowing(models))
    with (
        pipeline.admit(query, models, (), live=True) as admitted,
        pipeline.session(query, models, admitted) as session,
    ):
        windows = live.windows(chunks, pipeline.run_in_thread, session.stopwatch)
        async with aclosing(session.windows(windows, in_real_time)) as outputs:
            async for output in outputs:
                answer = await _window_answer(pipeline, query, models, output)
                pipeline.observer.record(monitored(query, models, output))
                yield answer
        # Its windows have been reported one by one, and a stream may end hours after them, or never.
        yield await pipeline.finish(replace(query, monitoring=MonitoringScope.NOTHING), models, session, live.info)


async def _window_answer(
    pipeline: Pipeline, query: QueryOptions, models: Sequence[Model], output: WindowOutput
) -> WindowAnswer:
    window = output.window
    outputs = output.outputs if output.speech else ()
    with output.stopwatch.encoding():
        answers = await pipeline.run_in_thread(
            lambda: tuple(
                answer_of(query, model, each, window.start)
                for model, each in zip(models, outputs, strict=bool(outputs))
            )
        )
    timings = output.stopwatch.timings()
    return WindowAnswer(window.start / SAMPLE_RATE, window.stop / SAMPLE_RATE, output.speech, answers, timings)


def arrival(windowing: Windowing) -> Callable[[Window], bool]:
    """Return a function that tells whether a stream's audio, from now on, arrives no faster than it is spoken.

    An upload of a file is bulk work. The first two windows may be early.
    """
    started = time.monotonic()
    return lambda window: window.stop <= (time.monotonic() - started) * SAMPLE_RATE + 2 * windowing.length


def monitored(query: QueryOptions, models: Sequence[Model], output: WindowOutput) -> MonitoredAnswer:
    """Return what is monitored of one window of a stream, which is an answer of its own."""
    sounds, seconds = SoundMeasures(), len(output.window.samples) / SAMPLE_RATE
    sounds.add(output.sound, output.speech)
    explained = query.explain is not None
    if output.speech:
        return MonitoredAnswer(query.monitoring, explained, models, output.outputs, sounds, seconds, output)
    return MonitoredAnswer(query.monitoring, explained, (), (), sounds, seconds, None)
