"""Verification, independent of any protocol: whether two voices belong to one speaker, and the maps of that score.

The score is the cosine of the two embeddings. The embedding of several windows is their mean direction. The gradient of
the cosine with respect to one window's embedding is then, up to a factor that all windows share, that of the window's
cosine with the part of the reference orthogonal to the mean; so each window is compared with that part.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import Bundle, ThresholdBasis
from speakerlens.serving.context import Stopwatch, Timings
from speakerlens.serving.engine.admission import Admitted
from speakerlens.serving.engine.graphs import ComparedJob, Comparison, check_finite
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.errors import FailedPreconditionError, InvalidArgumentError, Reason, quoted
from speakerlens.serving.gallery.asynchronous import AsyncSpeakerStore
from speakerlens.serving.gallery.exemplar import Exemplar, mean_embedding
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.aggregate import Piece, stitched
from speakerlens.serving.pipeline.answers import Answer
from speakerlens.serving.pipeline.concurrency import map_concurrent
from speakerlens.serving.pipeline.decode import AudioInfo, EncodedAudio, RawAudio
from speakerlens.serving.pipeline.enroll import checked_name, direction, not_enrolled
from speakerlens.serving.pipeline.explain import ExplainOptions, Explanation, encoded
from speakerlens.serving.pipeline.identify import Pipeline, explained_label, extent_of
from speakerlens.serving.pipeline.observer import MonitoringScope
from speakerlens.serving.pipeline.query import QueryOptions
from speakerlens.serving.pipeline.session import WINDOWS_AT_ONCE
from speakerlens.serving.pipeline.windows import Window, WindowReader

Audio = EncodedAudio | RawAudio


@dataclass(frozen=True, kw_only=True)
class VerificationRequest:
    """Audio, and what to compare it with: other audio, or the name of an enrolled speaker."""

    audio: Audio
    against: Audio | str
    explain: ExplainOptions | None = None
    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None


@dataclass(frozen=True)
class VerificationResult:
    """Cosine and threshold; fields named `other` are of the second audio, None against an enrolled speaker."""

    variant: str
    version: int
    score: float
    threshold: float
    explanation: Explanation | None
    other_explanation: Explanation | None
    audio: AudioInfo
    other: AudioInfo | None
    timings: Timings
    threshold_basis: ThresholdBasis

    @property
    def same(self) -> bool:
        """Return whether the score reaches the threshold."""
        return self.score >= self.threshold


@dataclass
class _Utterance:
    """Direction of an utterance's embedding, float64 [size]; its windows, if kept, and whether each had a vote."""

    direction: NDArray[np.float64]
    info: AudioInfo
    windows: list[tuple[Window, bool]] = field(default_factory=list)


@dataclass(frozen=True)
class _Maps:
    """Stitched features [mel, frames] and maps [rows, columns] of a score."""

    features: NDArray[np.float32]
    saliency: tuple[NDArray[np.float32], ...]


class Verifier:
    """Compare voices.

    Args:
        pipeline: computes the embeddings.
        speakers: the enrolled ones.
    """

    def __init__(self, pipeline: Pipeline, speakers: AsyncSpeakerStore) -> None:
        self._pipeline = pipeline
        self._speakers = speakers

    async def verify(self, request: VerificationRequest, model: Model) -> VerificationResult:
        """Compare with one model, which must be leased.

        Raises:
            RequestError: the audio is invalid, or the speaker is not enrolled, or not with this bundle.
        """
        _check(request, model)
        exemplars, sides = [], [(request.audio, "audio")]
        if isinstance(request.against, str):
            exemplars = await self._exemplars(request.against, model.bundle)
        else:
            sides.append((request.against, "other"))
        options = QueryOptions(explain=request.explain, priority=request.priority, deadline=request.deadline)
        extents = [extent_of(audio) for audio, _ in sides]
        with self._pipeline.admit(options, [model], extents, compared=True) as admitted:
            return await self._compared(request, model, sides, exemplars, admitted)

    async def _compared(
        self,
        request: VerificationRequest,
        model: Model,
        sides: Sequence[tuple[Audio, str]],
        exemplars: Sequence[Exemplar],
        admitted: Admitted,
    ) -> VerificationResult:
        """Compare the sides with each other, or the only one with a speaker's exemplars."""
        stopwatch = Stopwatch()
        utterance, *others = await map_concurrent(
            sides, lambda side: self._embed(request, *side, model, admitted, stopwatch), len(sides)
        )
        other = others[0] if others else None
        if other is None:
            reference = direction(mean_embedding(exemplars))
            threshold = _threshold(model.bundle, sum(each.utterances for each in exemplars))
        else:
            reference, threshold = other.direction, _threshold(model.bundle, 1)
        score = float(np.clip(utterance.direction @ reference, -1.0, 1.0))
        explanation = other_explanation = None
        if request.explain is not None:
            name = request.against if isinstance(request.against, str) else ""
            explanation = await self._explain(request.explain, utterance, reference, model, name, admitted, stopwatch)
            if other is not None:
                other_explanation = await self._explain(
                    request.explain, other, utterance.direction, model, "", admitted, stopwatch
                )
        return VerificationResult(
            model.bundle.variant,
            model.bundle.version,
            score,
            threshold,
            explanation,
            other_explanation,
            utterance.info,
            None if other is None else other.info,
            stopwatch.timings(),
            model.bundle.calibration.verification_basis,
        )

    async def _exemplars(self, speaker: str, bundle: Bundle) -> list[Exemplar]:
        """Return the exemplars of a speaker for a bundle, at least one."""
        name = checked_name(speaker, "enrolled_speaker")
        stored = await self._speakers.run(lambda store: store.find(name))
        if not stored:
            raise not_enrolled(name, "enrolled_speaker")
        found = [each for each in stored if each.bundle == bundle.digest]
        intact = [each for each in found if len(each.embedding) == bundle.embedding_size]
        if intact:
            return intact
        if found:
            raise FailedPreconditionError(
                Reason.STORE,
                f"enrolled_speaker: the reference of {quoted(name)} for {bundle.name} is damaged in the speakers' "
                "store; enrol the speaker again",
            )
        others = ", ".join(sorted({f"{each.variant}/{each.version}" for each in stored}))
        raise FailedPreconditionError(
            Reason.OTHER_BUNDLE,
            f"enrolled_speaker: {quoted(name)} is enrolled with another bundle ({others}) than the {bundle.name} that "
            "is loaded, and embeddings of two cannot be compared; enrol the speaker again",
        )

    async def _embed(
        self,
        request: VerificationRequest,
        audio: Audio,
        name: str,
        model: Model,
        admitted: Admitted,
        stopwatch: Stopwatch,
    ) -> _Utterance:
        pipeline = self._pipeline
        query = QueryOptions(
            with_embedding=True,
            priority=request.priority,
            deadline=request.deadline,
            monitoring=MonitoringScope.SOUND,
            field=name,
        )
        limit = pipeline.duration_limit(QueryOptions(explain=request.explain))
        with pipeline.session(query, [model], admitted, stopwatch) as session:
            shape, least = pipeline.windowing([model]), pipeline.min_samples(model)
            reader = WindowReader(audio, limit, shape, least, name, request.deadline)
            outputs = session.windows(pipeline.read(reader, audio, admitted, session.stopwatch))
            # Windows are kept only where maps of them are asked for.
            windows = [(each.window, each.speech) async for each in outputs if request.explain is not None]
            result = await pipeline.finish(query, [model], session, reader.info)
        [answer] = result.answers
        assert isinstance(answer, Answer), "a single model fails by raising"
        assert answer.embedding is not None, "the query asks for it"
        if not any(votes for _, votes in windows):
            windows = [(window, True) for window, _ in windows]  # where none holds speech, all vote
        return _Utterance(direction(answer.embedding), result.audio, windows)

    async def _explain(
        self,
        options: ExplainOptions,
        utterance: _Utterance,
        reference: NDArray[np.float64],
        model: Model,
        speaker: str,
        admitted: Admitted,
        stopwatch: Stopwatch,
    ) -> Explanation:
        """Return the maps of the cosine between an utterance and a reference of length one."""
        orthogonal = reference - (utterance.direction @ reference) * utterance.direction
        single = len(utterance.windows) == 1
        target = (reference if single else orthogonal).astype(np.float32)

        async def compare(item: tuple[Window, bool]) -> Comparison:
            return await _compare(model, ComparedJob(item[0].samples, target), admitted, stopwatch)

        try:
            comparisons = await map_concurrent(utterance.windows, compare, WINDOWS_AT_ONCE)
        except Exception as error:
            self._pipeline.count_failure(model, error)
            raise
        with stopwatch.encoding():
            return await self._pipeline.run_in_thread(
                lambda: encoded(
                    model.bundle, _joined(model.bundle, utterance, comparisons, orthogonal), options, speaker
                )
            )


def _check(request: VerificationRequest, model: Model) -> None:
    if request.explain is not None and request.explain.target_speaker is not None:
        raise InvalidArgumentError(
            Reason.ARGUMENT, "explain.target_speaker: the score of a comparison is explained, not a speaker's; leave it"
        )
    explained_label(QueryOptions(explain=request.explain), model)


def _threshold(bundle: Bundle, utterances: int) -> float:
    """Return the calibrated threshold for a reference of that many utterances."""
    return [threshold for size, threshold in bundle.verification_thresholds if size <= utterances][-1]


async def _compare(model: Model, job: ComparedJob, admitted: Admitted, stopwatch: Stopwatch) -> Comparison:
    done = await model.verify.submit(job, admitted.latest, admitted.priority, admitted.due)
    admitted.advance()
    stopwatch.computed(done.queue_s, done.inference_s)
    check_finite(model.bundle.name, done.result)
    return done.result


def _joined(
    bundle: Bundle, utterance: _Utterance, comparisons: Sequence[Comparison], orthogonal: NDArray[np.float64]
) -> Comparison | _Maps:
    """Join the maps of the windows."""
    if len(comparisons) == 1:
        return comparisons[0]
    pieces = [
        Piece(window.start, comparison, votes)
        for (window, votes), comparison in zip(utterance.windows, comparisons, strict=True)
    ]
    features, saliency = stitched(bundle, pieces, utterance.windows[-1][0].stop)
    # The graph normalises its reference to length one, and does not divide by the norm of the windows' mean.
    votes = [direction(each.embedding) for each, piece in zip(comparisons, pieces, strict=True) if piece.votes]
    factor = np.float32(np.linalg.norm(orthogonal) / np.linalg.norm(np.sum(votes, axis=0)))
    return _Maps(features, tuple(stage_map * factor for stage_map in saliency))
