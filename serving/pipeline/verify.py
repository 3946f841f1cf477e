"""Verification, free of any transport: whether two voices are one, and the maps of that score.

The score is the cosine of the embeddings that `Embed` gives. Of audio of several windows that is their mean direction,
and so are the maps those of that cosine: its gradient by one window's embedding is, but for a factor that all windows
share, that of the cosine to the part of the reference that lies across the mean; so each window is compared with that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import Bundle
from speakerlens.serving.engine.graphs import ComparedJob, Comparison
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.errors import FailedPreconditionError, InvalidArgumentError, Reason, quoted
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.answers import Answer
from speakerlens.serving.pipeline.concurrency import ConcurrencyLimit, retry_when_full
from speakerlens.serving.pipeline.decode import AudioInfo, EncodedAudio, RawAudio
from speakerlens.serving.pipeline.enroll import AsyncSpeakerStore, checked_name, direction, named, unknown
from speakerlens.serving.pipeline.explain import ExplainOptions, Explanation, encoded
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.query import MonitoringScope, QueryOptions, target_of
from speakerlens.serving.pipeline.session import WINDOWS_AT_ONCE
from speakerlens.serving.pipeline.stitching import Piece, stitched
from speakerlens.serving.pipeline.store import Enrolment
from speakerlens.serving.pipeline.timing import Stopwatch, Timings
from speakerlens.serving.pipeline.windows import Window, WindowReader

Audio = EncodedAudio | RawAudio


@dataclass(frozen=True, kw_only=True)
class VerificationRequest:
    """Two voices that may be one: of `audio`, and of `against`, which is other audio or an enrolled speaker's name."""

    audio: Audio
    against: Audio | str
    explain: ExplainOptions | None = None
    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None


@dataclass(frozen=True)
class VerificationResult:
    """Cosine and threshold; the same voice if the one reaches the other. `other` things belong to the other audio."""

    variant: str
    version: int
    score: float
    threshold: float
    explanation: Explanation | None
    other_explanation: Explanation | None
    audio: AudioInfo
    other: AudioInfo | None
    timings: Timings

    @property
    def same(self) -> bool:
        """Whether it is one voice."""
        return self.score >= self.threshold


@dataclass
class _Utterance:
    """An utterance's direction [size]; its windows, where they are wanted, and which of them had a vote."""

    direction: NDArray[np.float64]
    info: AudioInfo
    windows: list[tuple[Window, bool]] = field(default_factory=list)


@dataclass(frozen=True)
class _Maps:
    """Stitched maps of a score."""

    features: NDArray[np.float32]
    saliency: tuple[NDArray[np.float32], ...]


class Verifier:
    """Compares voices.

    Args:
        identifier: gives the embeddings.
        speakers: those enrolled.
    """

    def __init__(self, identifier: Pipeline, speakers: AsyncSpeakerStore) -> None:
        self._identifier = identifier
        self._speakers = speakers

    async def verify(self, claim: VerificationRequest, model: Model) -> VerificationResult:
        """Compares with one model, which is leased.

        Raises:
            RequestError: something is wrong with the audio, nobody of that name is enrolled, or not with this bundle.
        """
        _check(claim, model)
        watch = Stopwatch()
        if isinstance(claim.against, str):
            enrolment = await self._enrolled(claim.against, model.bundle)
            heard = await self._embed(claim, claim.audio, "audio", model, watch)
            reference, other = direction(enrolment.embedding), None
            threshold = _threshold(model.bundle, enrolment.utterances)
        else:
            sides = ((claim.audio, "audio"), (claim.against, "other"))
            heard, other = await ConcurrencyLimit(2, 2).map_concurrent(
                sides, lambda side: self._embed(claim, *side, model, watch)
            )
            reference, threshold = other.direction, _threshold(model.bundle, 1)
        score = float(np.clip(heard.direction @ reference, -1.0, 1.0))
        explanation = other_explanation = None
        if claim.explain is not None:
            name = claim.against if isinstance(claim.against, str) else ""
            explanation = await self._explain(claim, claim.explain, heard, reference, model, name, watch)
            if other is not None:
                other_explanation = await self._explain(claim, claim.explain, other, heard.direction, model, "", watch)
        return VerificationResult(
            model.bundle.variant,
            model.bundle.version,
            score,
            threshold,
            explanation,
            other_explanation,
            heard.info,
            None if other is None else other.info,
            watch.timings(),
        )

    async def _enrolled(self, speaker: str, bundle: Bundle) -> Enrolment:
        """What is stored of a speaker for a bundle."""
        name = checked_name(speaker, "enrolled_speaker")
        stored = await self._speakers.ask(lambda store: store.find(name))
        if not stored:
            raise unknown(name, "enrolled_speaker")
        for enrolment in stored:
            if enrolment.bundle == bundle.digest:
                return enrolment
        others = ", ".join(f"{each.variant}/{each.version}" for each in stored)
        raise FailedPreconditionError(
            Reason.OTHER_BUNDLE,
            f"enrolled_speaker: {quoted(name)} is enrolled with another bundle ({others}) than the {bundle.name} that "
            "is loaded, and embeddings of two cannot be compared; enrol the speaker again",
        )

    async def _embed(
        self, claim: VerificationRequest, audio: Audio, name: str, model: Model, watch: Stopwatch
    ) -> _Utterance:
        core, windows = self._identifier, []
        question = QueryOptions(
            with_embedding=True, priority=claim.priority, deadline=claim.deadline, monitoring=MonitoringScope.SOUND
        )
        longest = core.longest(QueryOptions(explain=claim.explain))
        with named(name), core.hearing(question, [model], watch) as hearing:
            reader = WindowReader(audio, longest, core.shape([model]), core.min_samples(model))
            async for each in hearing.windows(core.read(reader, hearing.watch)):
                if claim.explain is not None:
                    windows.append((each.window, each.speech))
            result = await core.whole(question, [model], hearing, reader.info)
        [answer] = result.answers
        assert isinstance(answer, Answer), "a single model fails by raising"
        assert answer.embedding is not None, "it was asked for"
        if not any(votes for _, votes in windows):
            windows = [(window, True) for window, _ in windows]  # a single window votes in any case
        return _Utterance(direction(answer.embedding), reader.info, windows)

    async def _explain(
        self,
        claim: VerificationRequest,
        options: ExplainOptions,
        heard: _Utterance,
        reference: NDArray[np.float64],
        model: Model,
        speaker: str,
        watch: Stopwatch,
    ) -> Explanation:
        """The maps of the cosine between what was heard and a reference of length one."""
        across = reference - (heard.direction @ reference) * heard.direction
        single = len(heard.windows) == 1
        target = (reference if single else across).astype(np.float32)

        async def compared(window: Window) -> Comparison:
            return await _compared(claim, model, ComparedJob(window.samples, target), watch)

        results = await ConcurrencyLimit(WINDOWS_AT_ONCE, WINDOWS_AT_ONCE).run(
            [window for window, _ in heard.windows], compared
        )
        comparisons = []
        for result in results:
            if isinstance(result, Exception):
                self._identifier.count_failure(model, result)
                raise result
            comparisons.append(result)
        with watch.encoding():
            return await self._identifier.run_in_thread(
                lambda: encoded(model.bundle, _joined(model.bundle, heard, comparisons, across), options, speaker)
            )


def _check(claim: VerificationRequest, model: Model) -> None:
    if claim.explain is not None and claim.explain.target_speaker is not None:
        raise InvalidArgumentError(
            Reason.ARGUMENT, "explain.target_speaker: the score of a comparison is explained, not a speaker's; leave it"
        )
    target_of(QueryOptions(explain=claim.explain), model)


def _threshold(bundle: Bundle, utterances: int) -> float:
    """The calibrated threshold for a reference of so many utterances."""
    return [threshold for size, threshold in bundle.verification_thresholds if size <= utterances][-1]


async def _compared(claim: VerificationRequest, model: Model, job: ComparedJob, watch: Stopwatch) -> Comparison:
    # The embedding is there already: what is left can wait for room.
    done = await retry_when_full(lambda: model.verify.submit(job, claim.deadline, claim.priority))
    watch.computed(done.queue_s, done.inference_s)
    if not all(np.isfinite(values).all() for values in done.result.arrays()):
        raise FloatingPointError(f"{model.bundle.name} answered with NaN or infinity")
    return done.result


def _joined(
    bundle: Bundle, heard: _Utterance, comparisons: Sequence[Comparison], across: NDArray[np.float64]
) -> Comparison | _Maps:
    """One map of each stage out of those of the windows."""
    if len(comparisons) == 1:
        return comparisons[0]
    pieces = [
        Piece(window.start, comparison, votes)
        for (window, votes), comparison in zip(heard.windows, comparisons, strict=True)
    ]
    features, saliency = stitched(bundle, pieces, heard.windows[-1][0].stop)
    # The graph takes its reference at length one, and knows nothing of the other windows in the mean.
    votes = [direction(each.embedding) for each, piece in zip(comparisons, pieces, strict=True) if piece.votes]
    factor = np.float32(np.linalg.norm(across) / np.linalg.norm(np.sum(votes, axis=0)))
    return _Maps(features, tuple(stage_map * factor for stage_map in saliency))
