"""One utterance of an enrolment: its embeddings, the evidence in it, and the audio to keep."""

import io
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import soundfile
from numpy.typing import NDArray

from speakerlens.measures.evidence import Evidence
from speakerlens.measures.sound import measure_sound
from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.context import Stopwatch
from speakerlens.serving.engine.admission import Admitted
from speakerlens.serving.gallery.exemplar import KeptRecording, unit
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.aggregate import ModelOutput, SoundMeasures, WindowOutput
from speakerlens.serving.pipeline.answers import Answer
from speakerlens.serving.pipeline.concurrency import RunInThread
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.query import QueryOptions
from speakerlens.serving.pipeline.samples import AudioInfo
from speakerlens.serving.pipeline.vad import SpeechMeter, holds_speech, speech_seconds
from speakerlens.serving.pipeline.windows import Window, WindowReader

Vector = NDArray[np.float32]

# Speech in a window whose embedding is compared with those of others.
PIECE_SECONDS = 0.8
# What the last window must hold that no piece before does, to be compared as well.
LEAST_NEW_SAMPLES = SAMPLE_RATE


@dataclass(frozen=True)
class Reference:
    """What was made of an utterance.

    Attributes:
        info: the audio as received, with the evidence.
        embeddings: of length one, float32 [size], one a model; none where it was only checked.
        pieces: of length one, of the first model: those of windows with enough speech that do not overlap.
        stretches: of length one, of the first model: of each two successive windows with speech, their mean direction.
        problems: what is wrong with the embeddings, in phrases.
        detected_s: seconds of which the speech detector is sure.
        samples: float32 [n] at 16 kHz; empty unless they are kept.
    """

    info: AudioInfo
    embeddings: tuple[Vector, ...]
    pieces: tuple[Vector, ...]
    stretches: tuple[Vector, ...]
    problems: list[str]
    detected_s: float
    samples: Vector

    @property
    def evidence(self) -> Evidence:
        """Return that of the audio."""
        assert self.info.evidence is not None, "the sound was measured"
        return self.info.evidence


@dataclass
class _Progress:
    """What is collected while the windows of an utterance are read."""

    meter: SpeechMeter = field(default_factory=SpeechMeter)
    samples: list[Vector] = field(default_factory=list)
    stop: int = 0

    def fresh(self, window: Window) -> Vector:
        """Return the samples of a window that no window before it had."""
        new = window.samples[self.stop - window.start :] if window.start < self.stop else window.samples
        self.stop = window.stop
        return new


class _Pieces:
    """Embeddings of the first model, of windows with enough speech that do not overlap, and of the last window.

    Attributes:
        found: of length one, float32 [size].
        stretches: mean directions of each two successive windows with speech, likewise.
    """

    def __init__(self, run_in_thread: RunInThread) -> None:
        self.found: list[Vector] = []
        self.stretches: list[Vector] = []
        self._before: Vector | None = None
        self._run_in_thread = run_in_thread
        self._reached = 0
        self._left_out: WindowOutput | None = None

    async def add(self, output: WindowOutput) -> None:
        """Add the next window: to the stretches, and to the pieces unless it overlaps the last of them."""
        self._add_stretch(output)
        await self._add_piece(output)

    def _add_stretch(self, output: WindowOutput) -> None:
        first = output.outputs[0] if output.outputs else None
        now = unit(first.prediction.embedding) if output.speech and isinstance(first, ModelOutput) else None
        if now is not None and self._before is not None:
            self.stretches.append(unit(now + self._before))
        self._before = now

    async def _add_piece(self, output: WindowOutput) -> None:
        if output.window.start < self._reached:
            self._left_out = output
            return
        self._left_out = None
        self._reached = output.window.stop
        first = output.outputs[0] if output.outputs else None
        if not output.speech or not isinstance(first, ModelOutput):
            return
        if await self._run_in_thread(partial(speech_seconds, output.window.samples)) >= PIECE_SECONDS:
            self.found.append(unit(first.prediction.embedding))

    async def end(self) -> None:
        """Add the last window as well, if a good part of it is new."""
        last = self._left_out
        if last is not None and last.window.stop - self._reached >= LEAST_NEW_SAMPLES:
            self._reached = last.window.start
            await self._add_piece(last)


class ReferenceReader:
    """Reads the utterances of one enrolment.

    Args:
        pipeline: decodes and computes.
        models: leased.
        admitted: the call.
        keep: whether to keep the samples.
    """

    def __init__(self, pipeline: Pipeline, models: Sequence[Model], admitted: Admitted, keep: bool) -> None:
        self._pipeline = pipeline
        self._models = models
        self._admitted = admitted
        self._keep = keep

    async def read(self, audio: EncodedAudio | RawAudio, query: QueryOptions, compute: bool) -> Reference:
        """Return what is in an utterance.

        Args:
            audio: the utterance.
            query: with the name of its field.
            compute: whether to compute embeddings; else the audio is checked and measured.

        Raises:
            RequestError: the audio is invalid, or a model failed.
        """
        pipeline, progress = self._pipeline, _Progress()
        least = max(pipeline.min_samples(model) for model in self._models)
        # Windows are compared with each other, so all are full ones.
        shape, limit = pipeline.windowing(self._models).with_full_last, pipeline.duration_limit(query)
        reader = WindowReader(audio, limit, shape, least, query.field, query.deadline)
        if not compute:
            return await self._checked(reader, audio, progress)
        pieces = _Pieces(pipeline.run_in_thread)
        with pipeline.session(query, self._models, self._admitted) as session:
            windows = self._noted(pipeline.read(reader, audio, self._admitted, session.stopwatch), progress)
            async for output in session.windows(windows):
                await pieces.add(output)
            await pieces.end()
            result = await pipeline.finish(query, self._models, session, reader.info)
            for _, error in session.failures:
                raise error  # a speaker is enrolled for all models or for none
        embeddings = [each.embedding for each in result.answers if isinstance(each, Answer)]
        problems = [
            f"{model.bundle.name} makes an embedding of length zero of it; send other speech"
            for model, embedding in zip(self._models, embeddings, strict=True)
            if embedding is None or not embedding.any()
        ]
        directions = tuple(unit(each) for each in embeddings if each is not None)
        return Reference(
            result.audio,
            directions,
            tuple(pieces.found) or directions[:1],
            tuple(pieces.stretches),
            problems,
            progress.meter.seconds(),
            _joined(progress.samples),
        )

    async def _checked(self, reader: WindowReader, audio: EncodedAudio | RawAudio, progress: _Progress) -> Reference:
        sounds = SoundMeasures()
        async for window in self._noted(self._pipeline.read(reader, audio, self._admitted, Stopwatch()), progress):
            sound = await self._pipeline.run_in_thread(partial(measure_sound, window.samples))
            speech = await self._pipeline.run_in_thread(partial(holds_speech, window.samples))
            sounds.add(sound, speech)
        info = replace(reader.info, evidence=sounds.evidence(reader.info.seconds, reader.info.clipped_share))
        return Reference(info, (), (), (), [], progress.meter.seconds(), _joined([]))

    async def _noted(self, windows: AsyncIterator[Window], progress: _Progress) -> AsyncIterator[Window]:
        """Yield the windows, and collect what they add."""
        async for window in windows:
            new = progress.fresh(window)
            await self._pipeline.run_in_thread(partial(progress.meter.feed, new))
            if self._keep:
                progress.samples.append(new)
            yield window


def kept_recording(speaker: str, enrolled: str, samples: Vector) -> KeptRecording:
    """Return samples, float32 [n] at 16 kHz, as a recording to keep, in 16 bits."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1.0, 1.0), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return KeptRecording(secrets.token_hex(16), speaker, enrolled, file.getvalue())


def _joined(samples: Sequence[Vector]) -> Vector:
    return np.concatenate(samples) if samples else np.zeros(0, np.float32)
