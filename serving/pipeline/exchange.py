"""Galleries as a whole: out into a file, in from one, and to new versions of the models."""

import datetime
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from speakerlens.serving.engine.queue import Priority
from speakerlens.serving.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    Reason,
    ResourceExhaustedError,
    quoted,
)
from speakerlens.serving.gallery.asynchronous import AsyncSpeakerStore
from speakerlens.serving.gallery.exemplar import Exemplar, KeptRecording, unit
from speakerlens.serving.gallery.file import GalleryReader, written
from speakerlens.serving.gallery.store import SpeakerStore
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.answers import Answer
from speakerlens.serving.pipeline.concurrency import map_concurrent, retry_when_full
from speakerlens.serving.pipeline.decode import EncodedAudio
from speakerlens.serving.pipeline.enroll import MAX_EXEMPLARS, checked_name, not_enrolled
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.observer import MonitoringScope
from speakerlens.serving.pipeline.query import Query

log = logging.getLogger(__name__)

# Speakers that are read at a time.
PAGE: Final = 200
RECORDINGS_AT_ONCE: Final = 4
# Names in the answer of a migration.
MAX_NAMES: Final = 10_000


@dataclass
class Migration:
    """What came of a migration.

    Attributes:
        migrated: speakers that have exemplars of the models now and had not before.
        must_enroll_again: names of those that have exemplars of none of the models, as no recording is kept that they
            can embed; up to MAX_NAMES.
    """

    migrated: set[str] = field(default_factory=set)
    must_enroll_again: list[str] = field(default_factory=list)


class Exchange:
    """Export, import and migrate the enrolled speakers.

    Args:
        pipeline: computes the embeddings.
        speakers: stores them.
    """

    def __init__(self, pipeline: Pipeline, speakers: AsyncSpeakerStore) -> None:
        self._pipeline = pipeline
        self._speakers = speakers

    async def export(self, speakers: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """Yield the parts of a file with the exemplars of these speakers; none means all.

        Raises:
            NotFoundError: a speaker is not enrolled.
            RequestError: the server has no store, or cannot read it.
        """
        self._speakers.check()
        names = list(dict.fromkeys(checked_name(each, f"speakers[{index}]") for index, each in enumerate(speakers)))
        await self._speakers.run(lambda store: _check_enrolled(store, names))
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        parts = written(_exported(self._speakers, names), now)
        while (part := await self._speakers.run(lambda _: next(parts, None))) is not None:
            yield part

    async def load(self, parts: AsyncIterator[bytes], most_bytes: int) -> tuple[int, int]:
        """Store the exemplars of a file, and return the numbers of speakers and exemplars.

        A speaker of the file replaces one of the same name. Either all are stored or none.

        Args:
            parts: of the file.
            most_bytes: of all parts.

        Raises:
            InvalidArgumentError: the file is not a gallery, or a line is not valid.
            FailedPreconditionError: it has no embeddings of a loaded model.
            RequestError: the server has no store, or cannot write it.
        """
        self._speakers.check()
        reader, size = GalleryReader(), 0
        async for part in parts:
            size += len(part)
            if size > most_bytes:
                raise ResourceExhaustedError(
                    Reason.HELD, f"content: above {most_bytes} bytes; export and import the speakers in several files"
                )
            await self._pipeline.run_in_thread(partial(reader.feed, part))
        sizes = {model.bundle.digest: model.bundle.embedding_size for model in self._pipeline.models}
        exemplars = await self._pipeline.run_in_thread(lambda: _checked(reader.finish(), sizes))
        if exemplars:
            await self._speakers.run(lambda store: store.enroll(exemplars, replace=True))
        return len({each.speaker for each in exemplars}), len(exemplars)

    async def migrate(self, models: Sequence[Model], deadline: float | None) -> Migration:
        """Embed kept recordings with the models that their speakers have no exemplars of.

        It may be repeated: what is done already is left.

        Args:
            models: leased.
            deadline: on the clock of `time.monotonic`, None without one.

        Raises:
            RequestError: the server has no store, or is overloaded.
        """
        result = Migration()
        for model in models:
            async with aclosing(self._without([model.bundle.digest])) as found:
                async for name, recorded in found:
                    if recorded and await self._migrated(name, model, deadline):
                        result.migrated.add(name)
        async with aclosing(self._without([model.bundle.digest for model in models])) as found:
            async for name, _ in found:
                if len(result.must_enroll_again) == MAX_NAMES:
                    break
                result.must_enroll_again.append(name)
        log.info("migration: %d speakers were embedded again, %d must enrol again", len(result.migrated),
                 len(result.must_enroll_again))  # fmt: skip
        return result

    async def _without(self, bundles: Sequence[str]) -> AsyncGenerator[tuple[str, bool], None]:
        after = ""
        while page := await self._speakers.run(partial(_without, bundles, after)):
            for each in page:
                yield each
            after = page[-1][0]

    async def _migrated(self, name: str, model: Model, deadline: float | None) -> bool:
        """Embed the recordings of a speaker; return whether exemplars were added."""
        recordings = await self._speakers.run(lambda store: store.recordings(name))
        known = {each.recording: each.quality for each in await self._speakers.run(lambda store: store.find(name))}

        async def embed(recording: KeptRecording) -> Exemplar | None:
            query = Query(
                audio=EncodedAudio(recording.audio),
                with_embedding=True,
                priority=Priority.BULK,
                deadline=deadline,
                monitoring=MonitoringScope.NOTHING,
                field="recording",
            )
            try:
                result = await retry_when_full(lambda: self._pipeline.identify(query, [model]))
            except (InvalidArgumentError, FloatingPointError) as error:
                # One that was enrolled with other limits, or for another network, does not stop the migration.
                log.warning("%s cannot embed a kept recording: %s", model.bundle.name, error)
                return None
            [answer] = result.answers
            assert isinstance(answer, Answer), "a single model fails by raising"
            assert answer.embedding is not None, "it was asked for"
            bundle = model.bundle
            if not answer.embedding.any():
                log.warning("%s makes an embedding of length zero of a kept recording", bundle.name)
                return None
            return Exemplar(
                name, bundle.variant, bundle.version, bundle.digest, 1, recording.enrolled, unit(answer.embedding),
                known.get(recording.id), recording.id,
            )  # fmt: skip

        embedded = await map_concurrent(recordings, embed, RECORDINGS_AT_ONCE)
        exemplars = [each for each in embedded if each is not None]
        return bool(exemplars) and await self._speakers.run(lambda store: store.attach(exemplars)) > 0


def _checked(exemplars: Sequence[Exemplar], sizes: Mapping[str, int]) -> list[Exemplar]:
    """Return the exemplars of a file under canonical names.

    Args:
        exemplars: of the file.
        sizes: of the embeddings of each loaded bundle, by its digest.

    Raises:
        InvalidArgumentError: a name or a size is not valid, or a speaker has too many.
        FailedPreconditionError: no loaded model can use any of them.
    """
    for each in exemplars:
        if len(each.embedding) != sizes.get(each.bundle, len(each.embedding)):
            raise InvalidArgumentError(
                Reason.ARGUMENT,
                f"content: an embedding of {len(each.embedding)} numbers, where {each.variant}/{each.version} has "
                f"{sizes[each.bundle]}",
            )
    bundles = {(each.variant, each.version, each.bundle) for each in exemplars}
    if bundles and not any(digest in sizes for *_, digest in bundles):
        names = ", ".join(f"{variant}/{version} ({digest[:12]}…)" for variant, version, digest in sorted(bundles)[:5])
        raise FailedPreconditionError(
            Reason.OTHER_BUNDLE,
            f"content: embeddings of {names}, none of which is loaded, and embeddings of two models cannot be "
            "compared; load the bundle that made them",
        )
    named = [replace(each, speaker=checked_name(each.speaker, "content: speaker")) for each in exemplars]
    for (speaker, bundle), count in Counter((each.speaker, each.bundle) for each in named).items():
        if count > MAX_EXEMPLARS:
            raise InvalidArgumentError(
                Reason.ARGUMENT,
                f"content: {count} exemplars of {quoted(speaker)} for {bundle[:12]}…; at most {MAX_EXEMPLARS} are "
                "kept of a speaker",
            )
    return named


def _without(bundles: Sequence[str], after: str, store: SpeakerStore) -> list[tuple[str, bool]]:
    return store.without(bundles, after, PAGE)


def _check_enrolled(store: SpeakerStore, names: Iterable[str]) -> None:
    for index, name in enumerate(names):
        if not store.find(name):
            raise not_enrolled(name, f"speakers[{index}]")


def _exported(speakers: AsyncSpeakerStore, names: Sequence[str]) -> Iterator[Exemplar]:
    """Yield the exemplars of speakers, or of all; runs in a thread of the store."""
    store = speakers.opened
    if names:
        for name in names:
            yield from store.find(name)
        return
    after = ""
    while page := store.page(after, PAGE):
        for name in dict.fromkeys(each.speaker for each in page):
            yield from store.find(name)
        after = page[-1].speaker
