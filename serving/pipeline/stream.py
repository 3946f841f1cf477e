"""Live audio: chunks in, an answer for each window as it is filled, and in the end the answer for the whole.

The windows are those that `Identify` would cut of the same audio, however it is chunked, so the answers are the same.
Nothing is read ahead: a client is asked for its next chunk when there is room for another window, and a client that
does not read its answers is not asked at all, until it does.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import numpy as np

from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.errors import InvalidArgumentError, Reason
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.answers import Identification, WindowAnswer, answer_of
from speakerlens.serving.pipeline.decode import (
    SAMPLE_TYPES,
    AudioInfo,
    DurationLimit,
    Intake,
    check_form,
    check_minimum,
    floats,
)
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.observer import MonitoredAnswer
from speakerlens.serving.pipeline.query import MonitoringScope, QueryOptions
from speakerlens.serving.pipeline.session import RunInThread, SoundMeasures, WindowOutput
from speakerlens.serving.pipeline.timing import Stopwatch
from speakerlens.serving.pipeline.windows import Window, WindowCutter, Windowing

# A large chunk is taken in pieces, so that it does not become a crowd of windows at once.
PIECE_BYTES = 64 * 1024
# What takes less than handing it to a thread is done on the loop.
INLINE_BYTES = 8 * 1024


@dataclass(frozen=True)
class Form:
    """What the samples of a stream are; `sample_type` is a key of `SAMPLE_TYPES`, `sample_rate` in Hz."""

    sample_type: str
    sample_rate: int
    channels: int

    @property
    def bytes_per_second(self) -> int:
        """Of sound."""
        return SAMPLE_TYPES[self.sample_type].itemsize * self.channels * self.sample_rate


class LiveWindows:
    """Cuts a stream of chunks into windows.

    Args:
        form: of the samples.
        longest: the longest stream accepted.
        shape: how to cut it.
        min_samples: fewer in the whole stream are refused.

    Raises:
        InvalidArgumentError: the form is not accepted.
    """

    def __init__(self, form: Form, longest: DurationLimit, shape: Windowing, min_samples: int) -> None:
        check_form("start.sample_rate", "start.channels", form.sample_rate, form.channels)
        self._kind, self._channels = SAMPLE_TYPES[form.sample_type], form.channels
        self._intake = Intake("samples", form.sample_rate, form.channels, longest)
        self._cutter = WindowCutter(shape)
        self._min_samples = min_samples
        self._rest = b""

    @property
    def info(self) -> AudioInfo:
        """What has come so far."""
        return self._intake.info

    async def windows(
        self, chunks: AsyncIterator[bytes], run_in_thread: RunInThread, watch: Stopwatch
    ) -> AsyncIterator[Window]:
        """The windows of these chunks, each as soon as it is filled.

        Raises:
            InvalidArgumentError: what came is not sound, too much, too little, or ends within a frame.
        """
        async for chunk in chunks:
            for start in range(0, len(chunk), PIECE_BYTES):
                piece = chunk[start : start + PIECE_BYTES]
                with watch.decoding():
                    if len(piece) <= INLINE_BYTES:
                        filled = self._feed(piece)
                    else:
                        filled = await run_in_thread(lambda piece=piece: self._feed(piece))  # type: ignore[misc]
                for window in filled:
                    yield window
        with watch.decoding():
            last = self._finish()
        for window in last:
            yield window

    def _feed(self, piece: bytes) -> list[Window]:
        data = self._rest + piece
        whole = len(data) - len(data) % (self._kind.itemsize * self._channels)
        self._rest = data[whole:]
        frames = np.frombuffer(data[:whole], self._kind).reshape(-1, self._channels)
        return self._cutter.feed(self._intake.feed(floats(frames)))

    def _finish(self) -> list[Window]:
        if self._rest:
            raise InvalidArgumentError(
                Reason.NOT_AUDIO,
                f"samples: the stream ends within a frame: {len(self._rest)} of "
                f"{self._kind.itemsize * self._channels} bytes",
            )
        windows = self._cutter.feed(self._intake.finish())
        check_minimum(self.info, self._cutter.total, self._min_samples)
        return windows + self._cutter.finish()


async def identify_stream(
    core: Pipeline, question: QueryOptions, live: LiveWindows, models: Sequence[Model], chunks: AsyncIterator[bytes]
) -> AsyncGenerator[WindowAnswer | Identification, None]:
    """Answers each window of a stream to leased models, and at last the whole.

    Raises:
        RequestError: whatever is wrong with the question or the audio, or too much for the server now.
    """
    started = time.monotonic()
    ahead = 2 * core.shape(models).length

    def keeps_pace(window: Window) -> bool:
        """Whether the audio comes no faster than it is spoken; a file that is poured in is bulk work."""
        return window.stop <= (time.monotonic() - started) * SAMPLE_RATE + ahead

    with core.hearing(question, models, live=True) as hearing:
        windows = live.windows(chunks, core.run_in_thread, hearing.watch)
        async with aclosing(hearing.windows(windows, keeps_pace)) as heard:
            async for each in heard:
                with hearing.watch.encoding():
                    answer = await _answered(core, question, models, each)
                _tell(core, question, models, each)
                yield answer
        # It says nothing new of audio whose windows have been counted, and may come hours after them, or never.
        yield await core.whole(replace(question, monitoring=MonitoringScope.NOTHING), models, hearing, live.info)


async def _answered(
    core: Pipeline, question: QueryOptions, models: Sequence[Model], heard: WindowOutput
) -> WindowAnswer:
    window, watch = heard.window, heard.watch
    said = heard.said if heard.speech else ()
    with watch.encoding():
        answers = await core.run_in_thread(
            lambda: tuple(
                answer_of(question, model, each, window.start) for model, each in zip(models, said, strict=bool(said))
            )
        )
    return WindowAnswer(window.start / SAMPLE_RATE, window.stop / SAMPLE_RATE, heard.speech, answers, watch.timings())


def _tell(core: Pipeline, question: QueryOptions, models: Sequence[Model], heard: WindowOutput) -> None:
    sounds, seconds = SoundMeasures(), len(heard.window.samples) / SAMPLE_RATE
    sounds.add(heard.sound)
    if heard.speech:
        answered = MonitoredAnswer(models, heard.said, sounds, seconds, heard)
    else:
        answered = MonitoredAnswer((), (), sounds, seconds, None)
    core.observer.record(question, answered)
