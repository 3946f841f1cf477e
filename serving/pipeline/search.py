"""Search, independent of any protocol: which enrolled speaker is speaking, or none, and the maps of that score."""

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.evidence import Evidence, Mismatch, mismatch
from speakerlens.measures.search import Outlook
from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.context import Stopwatch, Timings
from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.errors import InvalidArgumentError, NotFoundError, Reason, listed, quoted
from speakerlens.serving.gallery.exemplar import direction
from speakerlens.serving.gallery.loaded import Galleries
from speakerlens.serving.gallery.matrix import Gallery
from speakerlens.serving.metrics import Metrics
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.aggregate import ModelOutput, SoundMeasures, WindowOutput
from speakerlens.serving.pipeline.comparing import Comparer, Utterance, check_explained, embedding_query, utterance_of
from speakerlens.serving.pipeline.decision import Decision, SearchReason, decide, ranked
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio
from speakerlens.serving.pipeline.enroll import checked_name
from speakerlens.serving.pipeline.explain import ExplainOptions, Explanation
from speakerlens.serving.pipeline.identify import Pipeline, extent_of
from speakerlens.serving.pipeline.observer import MonitoringScope
from speakerlens.serving.pipeline.query import DEFAULT_TOP_K, QueryOptions
from speakerlens.serving.pipeline.samples import AudioInfo
from speakerlens.serving.pipeline.stream import LiveWindows, arrival, monitored

MAX_CANDIDATES: Final = 100
# Names in one request; to search more, leave them out and search all.
MAX_NAMES: Final = 10_000
# Two exemplars that are closer than this are one: there is no difference to explain.
LEAST_DIFFERENCE: Final = 1e-4


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What to search for.

    Attributes:
        speakers: names of the speakers to search; empty for all.
        top_k: number of candidates in an answer; 0 is the default.
        explain: which maps, None for none.
        with_outlook: whether the answer holds the shares of missed utterances by condition.
        priority: of the first window.
        deadline: on the clock of `time.monotonic`, None without one.
    """

    speakers: tuple[str, ...] = ()
    top_k: int = 0
    explain: ExplainOptions | None = None
    with_outlook: bool = False
    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None

    @property
    def query(self) -> QueryOptions:
        """Return what the pipeline needs to know of them."""
        return QueryOptions(explain=self.explain, priority=self.priority, deadline=self.deadline)


@dataclass(frozen=True)
class Candidate:
    """A speaker of the gallery.

    Attributes:
        speaker: name.
        cosine: with the best exemplar.
        log_likelihood_ratio: of that cosine; 0 without a calibration.
        probability: that this speaker is speaking; 0 without a calibration.
        exemplars: that were compared.
        mismatch: with the conditions of the enrolment; None where they are not known.
    """

    speaker: str
    cosine: float
    log_likelihood_ratio: float
    probability: float
    exemplars: int
    mismatch: Mismatch | None


@dataclass(frozen=True)
class SearchAnswer:
    """The decision about one stretch of audio.

    Attributes:
        variant: of the model.
        version: of the model.
        decision: what was found; the first candidate where it is a speaker.
        candidates: best first.
        margin: score of the best candidate minus that of the second.
        threshold: on the log-likelihood ratio; 0 without a calibration.
        false_alarm: share of other people's utterances that may reach it; None without a calibration.
        gallery: speakers searched.
        reasons: why no speaker is named.
        outlook: shares of missed utterances, if requested.
        explanation: maps of the cosine with the best exemplar, if requested.
        difference: maps of that cosine minus that with the second speaker's best exemplar, likewise.
    """

    variant: str
    version: int
    decision: Decision
    candidates: tuple[Candidate, ...]
    margin: float
    threshold: float
    false_alarm: float | None
    gallery: int
    reasons: tuple[SearchReason, ...]
    outlook: tuple[Outlook, ...] = ()
    explanation: Explanation | None = None
    difference: Explanation | None = None

    @property
    def speaker(self) -> str | None:
        """Return the speaker that was found, None if none was."""
        return self.candidates[0].speaker if self.decision is Decision.SPEAKER else None


@dataclass(frozen=True)
class SearchResult:
    """The answer for a whole recording."""

    answer: SearchAnswer
    audio: AudioInfo
    timings: Timings


@dataclass(frozen=True)
class SearchWindow:
    """The answer for one window of a stream, in seconds from its beginning; None without speech."""

    start_s: float
    end_s: float
    answer: SearchAnswer | None
    evidence: Evidence
    timings: Timings


class Searcher:
    """Search the enrolled speakers.

    Args:
        pipeline: computes the embeddings.
        galleries: of the loaded bundles.
        metrics: counts the decisions.
    """

    def __init__(self, pipeline: Pipeline, galleries: Galleries, metrics: Metrics) -> None:
        self._pipeline = pipeline
        self._galleries = galleries
        self._metrics = metrics.search

    async def search(self, options: SearchOptions, audio: EncodedAudio | RawAudio, model: Model) -> SearchResult:
        """Search with one model, which must be leased, the speakers that are enrolled when the audio is embedded.

        Raises:
            RequestError: the options or the audio are invalid, a named speaker is not enrolled, or the server keeps no
                speakers, or is overloaded.
        """
        names = await self._checked(options, model)
        await self._gallery(model, names)
        with self._pipeline.admit(options.query, [model], [extent_of(audio)], comparisons=2) as admitted:
            comparer = Comparer(self._pipeline, model, admitted, Stopwatch())
            utterance = await comparer.embed(options.query, audio)
            gallery = await self._gallery(model)  # who was removed meanwhile must not be named
            answer = await self._answer(options, names, gallery, utterance, comparer)
        self._count(answer)
        return SearchResult(answer, utterance.info, comparer.stopwatch.timings())

    async def stream(
        self, options: SearchOptions, live: LiveWindows, model: Model, chunks: AsyncIterator[bytes]
    ) -> AsyncGenerator[SearchWindow | SearchResult, None]:
        """Yield the answer for each window of a stream with a leased model, then the answer for the whole.

        Speakers that are enrolled or removed meanwhile are searched, or not searched, from the next window on.

        Raises:
            RequestError: as `search`.
        """
        pipeline = self._pipeline
        names = await self._checked(options, model)
        await self._gallery(model, names)
        query, kept = embedding_query(options.query), []
        in_real_time = arrival(pipeline.windowing([model]))
        with (
            pipeline.admit(query, [model], (), live=True) as admitted,
            pipeline.session(query, [model], admitted) as session,
        ):
            windows = live.windows(chunks, pipeline.run_in_thread, session.stopwatch)
            async with aclosing(session.windows(windows, in_real_time)) as outputs:
                async for output in outputs:
                    if options.explain is not None:
                        kept.append((output.window, output.speech))
                    comparer = Comparer(pipeline, model, admitted, output.stopwatch)
                    answer = await self._window(options, names, output, comparer)
                    pipeline.observer.record(monitored(query, [model], output))
                    yield answer
            # Its windows have been reported one by one.
            unreported = replace(query, monitoring=MonitoringScope.NOTHING)
            utterance = utterance_of(await pipeline.finish(unreported, [model], session, live.info), kept)
            gallery, comparer = await self._gallery(model), Comparer(pipeline, model, admitted, session.stopwatch)
            whole = await self._answer(options, names, gallery, utterance, comparer)
            yield SearchResult(whole, utterance.info, session.stopwatch.timings())

    async def _window(
        self, options: SearchOptions, names: Sequence[str], output: WindowOutput, comparer: Comparer
    ) -> SearchWindow:
        window, sounds, answer = output.window, SoundMeasures(), None
        sounds.add(output.sound, output.speech)
        seconds = len(window.samples) / SAMPLE_RATE
        evidence = _measured(sounds.evidence(seconds))
        if output.speech:
            [computed] = output.outputs
            assert isinstance(computed, ModelOutput), "a single model fails by raising"
            info = AudioInfo(seconds, SAMPLE_RATE, 1, speech=True, evidence=evidence)
            utterance = Utterance(direction(computed.prediction.embedding), info, [(window, True)])
            gallery = await self._gallery(comparer.model)
            answer = await self._answer(options, names, gallery, utterance, comparer, window.start)
            self._count(answer)
        return SearchWindow(
            window.start / SAMPLE_RATE, window.stop / SAMPLE_RATE, answer, evidence, output.stopwatch.timings()
        )

    async def _answer(
        self,
        options: SearchOptions,
        names: Sequence[str],
        gallery: Gallery,
        utterance: Utterance,
        comparer: Comparer,
        start: int = 0,
    ) -> SearchAnswer:
        """Return the answer for an utterance that begins at sample `start`, with maps if they are requested."""
        with comparer.stopwatch.encoding():
            answer, order = await self._pipeline.run_in_thread(
                lambda: _compared(options, gallery, names, utterance, comparer.model)
            )
        if options.explain is None or not len(order):
            return answer
        best = gallery.best_exemplar(int(order[0]), utterance.direction)
        name = answer.candidates[0].speaker
        explanation = await comparer.explain(options.explain, utterance, best, name, start)
        difference = None
        if len(order) > 1:
            apart = best - gallery.best_exemplar(int(order[1]), utterance.direction)
            if np.linalg.norm(apart) >= LEAST_DIFFERENCE:
                difference = await comparer.explain(options.explain, utterance, apart, name, start)
        return replace(answer, explanation=explanation, difference=difference)

    async def _checked(self, options: SearchOptions, model: Model) -> list[str]:
        """Check the options, and return the canonical names of the speakers to search."""
        check_explained(options.explain, model)
        if not 0 <= options.top_k <= MAX_CANDIDATES:
            raise InvalidArgumentError(Reason.ARGUMENT, f"top_k: {options.top_k}; give 1 to {MAX_CANDIDATES}")
        if len(options.speakers) > MAX_NAMES:
            raise InvalidArgumentError(
                Reason.ARGUMENT,
                f"speakers: {len(options.speakers)} names; give at most {MAX_NAMES}, or none to search all speakers",
            )
        if not options.speakers:
            return []
        return await self._pipeline.run_in_thread(
            lambda: [checked_name(name, f"speakers[{index}]") for index, name in enumerate(options.speakers)]
        )

    async def _gallery(self, model: Model, names: Sequence[str] = ()) -> Gallery:
        """Return the gallery of a model; raise NotFoundError if one of the names is not in it."""
        gallery = await self._galleries.of(model.bundle)
        if names:
            await self._pipeline.run_in_thread(lambda: _check_enrolled(gallery, names, model))
        self._metrics.speakers.labels(model.bundle.variant, str(model.bundle.version)).set(len(gallery))
        return gallery

    def _count(self, answer: SearchAnswer) -> None:
        self._metrics.decisions.labels(answer.variant, answer.decision.value).inc()


def _check_enrolled(gallery: Gallery, names: Sequence[str], model: Model) -> None:
    """Check that all speakers to search are enrolled.

    Raises:
        NotFoundError: some are not; names them.
    """
    missing = gallery.find(names)[1]
    if missing:
        raise NotFoundError(
            Reason.UNKNOWN_SPEAKER,
            f"speakers: not enrolled with {model.bundle.name}: {listed([quoted(name) for name in missing])}",
        )


def _compared(
    options: SearchOptions, gallery: Gallery, names: Sequence[str], utterance: Utterance, model: Model
) -> tuple[SearchAnswer, NDArray[np.intp]]:
    """Return the answer without maps, and the indices of the two best speakers in the gallery."""
    bundle, calibration = model.bundle, model.bundle.search
    evidence, speech = _measured(utterance.info.evidence), bool(utterance.info.speech)
    matches = gallery.compare(utterance.direction, gallery.find(names)[0] if names else None)
    top_k = options.top_k or DEFAULT_TOP_K
    ranking = ranked(matches, evidence, calibration, max(top_k, 2))
    verdict = decide(ranking, matches, evidence, speech, calibration)
    candidates = [
        Candidate(
            gallery.names[matches.speakers[place]],
            float(matches.cosines[place]),
            float(ranking.ratios[place]),
            float(probability),
            int(matches.exemplars[place]),
            mismatch(evidence, gallery.conditions(int(matches.speakers[place]))),
        )
        for place, probability in list(zip(ranking.order, ranking.probabilities, strict=True))[:top_k]
    ]
    answer = SearchAnswer(
        variant=bundle.variant,
        version=bundle.version,
        decision=verdict.decision,
        candidates=tuple(candidates),
        margin=ranking.margin,
        threshold=verdict.threshold,
        false_alarm=None if calibration is None else calibration.false_alarm,
        gallery=len(matches.cosines),
        reasons=verdict.reasons,
        outlook=tuple(calibration.outlook()) if options.with_outlook and calibration is not None else (),
    )
    return answer, matches.speakers[ranking.order[:2]]


def _measured(evidence: Evidence | None) -> Evidence:
    if evidence is None:
        raise RuntimeError("the sound could not be measured, and without its measures there is no decision")
    return evidence
