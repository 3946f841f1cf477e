"""What a map keeps and removes of the audio, as sound, and what the model answers for it."""

import asyncio
import io
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import soundfile
from numpy.typing import NDArray

from speakerlens.measures.listening import kept
from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.errors import InvalidArgumentError, Reason
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.answers import Answer, Failed, Identification
from speakerlens.serving.pipeline.decode import RawAudio
from speakerlens.serving.pipeline.explain import Explanation, Listening, StageName
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.observer import MonitoringScope
from speakerlens.serving.pipeline.query import Query


async def identify_with_sound(pipeline: Pipeline, query: Query, models: Sequence[Model]) -> Identification:
    """Answer a query for maps and their sound, as `Pipeline.identify` answers it for maps alone.

    The sound is computed as bulk work, in the batches of other requests.

    Raises:
        RequestError: as for `Pipeline.identify`.
    """
    samples: list[tuple[int, NDArray[np.float32]]] = []
    result = await pipeline.identify(query, models, samples)
    started = time.monotonic()
    whole = _joined(samples)
    answers = await asyncio.gather(
        *(
            _with_sound(pipeline, query, model, answer, whole)
            for model, answer in zip(models, result.answers, strict=True)
        )
    )
    timings = replace(result.timings, encode=result.timings.encode + time.monotonic() - started)
    return replace(result, answers=tuple(answers), timings=timings)


async def _with_sound(
    pipeline: Pipeline, query: Query, model: Model, answer: Answer | Failed, whole: NDArray[np.float32]
) -> Answer | Failed:
    if not isinstance(answer, Answer) or answer.explanation is None or query.explain is None:
        return answer
    explanation = answer.explanation
    listening = await asyncio.gather(
        *(
            _listening(pipeline, query, model, explanation, (stage, shown), whole)
            for stage, shown in zip(query.explain.stages, explanation.displayed, strict=True)
        )
    )
    return replace(answer, explanation=replace(explanation, displayed=(), listening=tuple(listening)))


async def _listening(
    pipeline: Pipeline,
    query: Query,
    model: Model,
    explanation: Explanation,
    shown: tuple[StageName, NDArray[np.float32]],
    whole: NDArray[np.float32],
) -> Listening:
    bundle, (stage, saliency) = model.bundle, shown
    centres = np.asarray(bundle.mel_centres_hz)
    part = await pipeline.run_in_thread(
        partial(kept, whole, saliency, centres, bundle.frame_length, bundle.frame_shift)
    )
    rest = whole - part
    scores = await asyncio.gather(
        *(_score(pipeline, query, model, explanation.target_speaker, sound) for sound in (whole, part, rest))
    )
    keeps, removes = [await pipeline.run_in_thread(partial(_flac, sound)) for sound in (part, rest)]
    return Listening(stage, keeps, removes, *scores)


async def _score(pipeline: Pipeline, query: Query, model: Model, speaker: str, samples: NDArray[np.float32]) -> float:
    """Return the probability of a speaker for samples; 0 where the server refuses them as silence."""
    again = Query(
        audio=RawAudio(samples.tobytes(), "float32", SAMPLE_RATE, 1, None),
        top_k=len(model.bundle.speakers),
        priority=Priority.BULK,
        deadline=query.deadline,
        monitoring=MonitoringScope.NOTHING,
    )
    try:
        [answer] = (await pipeline.identify(again, [model], counted=False)).answers
    except InvalidArgumentError as error:
        if error.reason is not Reason.SILENT:
            raise
        return 0.0
    assert isinstance(answer, Answer), "a single model that fails raises"
    return next(each.probability for each in answer.speakers if each.speaker == speaker)


def _joined(windows: Sequence[tuple[int, NDArray[np.float32]]]) -> NDArray[np.float32]:
    """Return the audio that overlapping windows, each with its first sample, were cut from."""
    joined = np.zeros(max(start + len(samples) for start, samples in windows), np.float32)
    for start, samples in windows:
        joined[start : start + len(samples)] = samples
    return joined


def _flac(samples: NDArray[np.float32]) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.clip(-1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
