"""Embed an utterance, and explain its cosine with a reference: for verification and search.

The embedding of several windows is their mean direction. The gradient of the cosine with respect to one window's
embedding is then, up to a factor that all windows share, that of the window's cosine with the part of the reference
orthogonal to the mean; so each window is compared with that part.

The cosine is linear in the reference, so that a reference need not have length one: the difference of two explains the
difference of two cosines. The graph brings it to length one, which divides the maps by that length.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import Bundle
from speakerlens.serving.context import Stopwatch
from speakerlens.serving.engine.admission import Admitted
from speakerlens.serving.engine.graphs import ComparedJob, Comparison, check_finite
from speakerlens.serving.errors import InvalidArgumentError, Reason
from speakerlens.serving.gallery.exemplar import direction
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.aggregate import Piece, stitched
from speakerlens.serving.pipeline.answers import Answer, Identification
from speakerlens.serving.pipeline.concurrency import map_concurrent
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio
from speakerlens.serving.pipeline.explain import ExplainOptions, Explanation, encoded
from speakerlens.serving.pipeline.identify import Pipeline, explained_label
from speakerlens.serving.pipeline.observer import MonitoringScope
from speakerlens.serving.pipeline.query import QueryOptions
from speakerlens.serving.pipeline.samples import AudioInfo
from speakerlens.serving.pipeline.session import WINDOWS_AT_ONCE
from speakerlens.serving.pipeline.windows import Window, WindowReader


@dataclass(frozen=True)
class Utterance:
    """An utterance that was embedded.

    Attributes:
        direction: of its embedding, float64 [size].
        info: of its audio.
        windows: those that maps are to be computed for, each with whether it had a vote.
    """

    direction: NDArray[np.float64]
    info: AudioInfo
    windows: list[tuple[Window, bool]] = field(default_factory=list)


@dataclass(frozen=True)
class _Maps:
    """Features [mel, frames] and maps [rows, columns] of a score."""

    features: NDArray[np.float32]
    saliency: tuple[NDArray[np.float32], ...]


class Comparer:
    """Embed the audio of one request, and explain scores of it.

    Args:
        pipeline: computes the embeddings.
        model: leased.
        admitted: the request.
        stopwatch: records its phases.

    Attributes:
        model, stopwatch: as given.
    """

    def __init__(self, pipeline: Pipeline, model: Model, admitted: Admitted, stopwatch: Stopwatch) -> None:
        self._pipeline = pipeline
        self.model = model
        self._admitted = admitted
        self.stopwatch = stopwatch

    async def embed(self, options: QueryOptions, audio: EncodedAudio | RawAudio) -> Utterance:
        """Embed audio; its windows are kept where the options ask for maps.

        Raises:
            RequestError: the audio is invalid, or the server is overloaded.
        """
        pipeline, model, admitted = self._pipeline, self.model, self._admitted
        query = embedding_query(options)
        limit = pipeline.duration_limit(options)
        with pipeline.session(query, [model], admitted, self.stopwatch) as session:
            shape, least = pipeline.windowing([model]), pipeline.min_samples(model)
            reader = WindowReader(audio, limit, shape, least, options.field, options.deadline)
            outputs = session.windows(pipeline.read(reader, audio, admitted, session.stopwatch))
            windows = [(each.window, each.speech) async for each in outputs if options.explain is not None]
            result = await pipeline.finish(query, [model], session, reader.info)
        return utterance_of(result, windows)

    async def explain(
        self, options: ExplainOptions, utterance: Utterance, reference: NDArray[np.floating], name: str, start: int = 0
    ) -> Explanation:
        """Return the maps of the product of an utterance's direction with a reference.

        Args:
            options: which maps, and how.
            utterance: embedded with its windows.
            reference: of any length, [size].
            name: whose score it is.
            start: first sample of the utterance in the audio, at 16 kHz.
        """
        bundle = self.model.bundle
        orthogonal = reference - (utterance.direction @ reference) * utterance.direction
        single = len(utterance.windows) == 1
        target = np.asarray(reference if single else orthogonal, np.float32)

        async def compare(item: tuple[Window, bool]) -> Comparison:
            return await self._compare(options, ComparedJob(item[0].samples, target))

        try:
            comparisons = await map_concurrent(utterance.windows, compare, WINDOWS_AT_ONCE)
        except Exception as error:
            self._pipeline.count_failure(self.model, error)
            raise
        with self.stopwatch.encoding():
            return await self._pipeline.run_in_thread(
                lambda: encoded(bundle, _joined(bundle, utterance, comparisons, target), options, name, start)
            )

    async def _compare(self, options: ExplainOptions, job: ComparedJob) -> Comparison:
        admitted = self._admitted
        done = await self.model.verifying(options.stages).submit(job, admitted.latest, admitted.priority, admitted.due)
        admitted.advance()
        self.stopwatch.computed(done.queue_s, done.inference_s)
        check_finite(self.model.bundle.name, done.result)
        return done.result


def embedding_query(options: QueryOptions) -> QueryOptions:
    """Return the query for the embedding alone, with the priority, deadline and field of other options."""
    return QueryOptions(
        with_embedding=True,
        priority=options.priority,
        deadline=options.deadline,
        monitoring=MonitoringScope.SOUND,
        field=options.field,
    )


def utterance_of(result: Identification, windows: Sequence[tuple[Window, bool]]) -> Utterance:
    """Return the utterance of the only model's answer to an `embedding_query`."""
    [answer] = result.answers
    assert isinstance(answer, Answer), "a single model fails by raising"
    assert answer.embedding is not None, "the query asks for it"
    voting = any(votes for _, votes in windows)  # where none holds speech, all vote
    return Utterance(
        direction(answer.embedding), result.audio, [(window, votes or not voting) for window, votes in windows]
    )


def check_explained(options: ExplainOptions | None, model: Model) -> None:
    """Check the options for the maps of a comparison.

    Raises:
        InvalidArgumentError: they are not valid, or name a speaker.
    """
    if options is not None and options.target_speaker is not None:
        raise InvalidArgumentError(
            Reason.ARGUMENT, "explain.target_speaker: the score of a comparison is explained, not a speaker's; leave it"
        )
    explained_label(QueryOptions(explain=options), model)


def _joined(
    bundle: Bundle, utterance: Utterance, comparisons: Sequence[Comparison], target: NDArray[np.float32]
) -> _Maps:
    """Join the maps of the windows, each compared with `target`."""
    # The graph normalises its reference to length one.
    length = np.linalg.norm(target)
    if len(comparisons) == 1:
        [only] = comparisons
        return _Maps(only.features, tuple(stage_map * length for stage_map in only.saliency))
    pieces = [
        Piece(window.start, comparison, votes * window.weight)
        for (window, votes), comparison in zip(utterance.windows, comparisons, strict=True)
    ]
    features, saliency = stitched(bundle, pieces, utterance.windows[-1][0].stop)
    # Nor does it divide by the norm of the windows' mean.
    compared = zip(comparisons, pieces, strict=True)
    votes = [piece.vote * direction(each.embedding) for each, piece in compared if piece.vote]
    factor = np.float32(length / np.linalg.norm(np.sum(votes, axis=0)))
    return _Maps(features, tuple(stage_map * factor for stage_map in saliency))
