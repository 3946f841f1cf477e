"""Verification, independent of any protocol: whether two voices belong to one speaker, and the maps of that score.

The score is the cosine of the two embeddings.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from speakerlens.measures.evidence import Evidence, Mismatch, mismatch
from speakerlens.serving.bundle import Bundle, ThresholdBasis
from speakerlens.serving.context import Stopwatch, Timings
from speakerlens.serving.engine.admission import Admitted
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.errors import FailedPreconditionError, Reason, quoted
from speakerlens.serving.gallery.asynchronous import AsyncSpeakerStore
from speakerlens.serving.gallery.exemplar import Exemplar, direction, mean_embedding
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.comparing import Comparer, check_explained
from speakerlens.serving.pipeline.concurrency import map_concurrent
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio
from speakerlens.serving.pipeline.enroll import checked_name, not_enrolled
from speakerlens.serving.pipeline.explain import ExplainOptions, Explanation
from speakerlens.serving.pipeline.identify import Pipeline, extent_of
from speakerlens.serving.pipeline.query import QueryOptions
from speakerlens.serving.pipeline.samples import AudioInfo

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
    mismatch: Mismatch | None

    @property
    def same(self) -> bool:
        """Return whether the score reaches the threshold."""
        return self.score >= self.threshold


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
        check_explained(request.explain, model)
        exemplars, sides = [], [(request.audio, "audio")]
        if isinstance(request.against, str):
            exemplars = await self._exemplars(request.against, model.bundle)
        else:
            sides.append((request.against, "other"))
        options = QueryOptions(explain=request.explain, priority=request.priority, deadline=request.deadline)
        extents = [extent_of(audio) for audio, _ in sides]
        with self._pipeline.admit(options, [model], extents, comparisons=1) as admitted:
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
        comparer = Comparer(self._pipeline, model, admitted, stopwatch)
        options = QueryOptions(explain=request.explain, priority=request.priority, deadline=request.deadline)
        utterance, *others = await map_concurrent(
            sides, lambda side: comparer.embed(replace(options, field=side[1]), side[0]), len(sides)
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
            explanation = await comparer.explain(request.explain, utterance, reference, name)
            if other is not None:
                other_explanation = await comparer.explain(request.explain, other, utterance.direction, "")
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
            model.bundle.verification_basis,
            _mismatch(utterance.info, other.info.evidence if other else None, exemplars),
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


def _threshold(bundle: Bundle, utterances: int) -> float:
    """Return the calibrated threshold for a reference of that many utterances; infinity without calibration."""
    return [math.inf, *(threshold for size, threshold in bundle.verification_thresholds if size <= utterances)][-1]


def _mismatch(audio: AudioInfo, other: Evidence | None, exemplars: Sequence[Exemplar]) -> Mismatch | None:
    """Return how the audio differs from the other, or from the exemplars."""
    references = [other, *(each.quality for each in exemplars)]
    known = [each for each in references if each is not None]
    return None if audio.evidence is None else mismatch(audio.evidence, known)
