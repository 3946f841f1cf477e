"""Enrolment, free of any transport: a speaker's utterances in, references for `Verify` out and into the store."""

import asyncio
import datetime
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    Reason,
    quoted,
)
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.answers import Answer
from speakerlens.serving.pipeline.concurrency import ConcurrencyLimit
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.query import MonitoringScope, Query
from speakerlens.serving.pipeline.store import Enrolment, SpeakerStore

T = TypeVar("T")

MAX_NAME_CHARACTERS = 128
MAX_UTTERANCES = 100
# Of one enrolment, in work at once.
UTTERANCES_AT_ONCE = 4
# Joiners that some scripts cannot be written without; other characters that nobody sees are refused.
JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class EnrolledSpeaker:
    """What is stored of a speaker, and for each entry whether the bundle that made it is loaded."""

    speaker: str
    entries: tuple[tuple[Enrolment, bool], ...]


class AsyncSpeakerStore:
    """The store on a thread of its own, so that the event loop never waits for a disk.

    Args:
        path: of the store; None where the server keeps none.

    Raises:
        StartupError: the file cannot be used.
    """

    def __init__(self, path: Path | None) -> None:
        self._store = None if path is None else SpeakerStore(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="speakers")

    def check(self) -> None:
        """Refuses early.

        Raises:
            FailedPreconditionError: the server keeps no speakers.
        """
        if self._store is None:
            raise FailedPreconditionError(
                Reason.NO_STORE, "this server keeps no speakers; start it with --speakers FILE to enrol and list them"
            )

    async def ask(self, question: Callable[[SpeakerStore], T]) -> T:
        """What the store answers. A change that has begun is finished even if the caller goes.

        Raises:
            FailedPreconditionError: the server keeps no speakers.
            RequestError: of the store's.
        """
        self.check()
        assert self._store is not None
        return await asyncio.get_running_loop().run_in_executor(self._thread, question, self._store)

    def close(self) -> None:
        """Ends the use of the file, once what is in work is done."""
        self._thread.shutdown(wait=True)
        if self._store is not None:
            self._store.close()


class Enroller:
    """Enrols, lists and removes speakers.

    Args:
        identifier: gives the embeddings.
        speakers: keeps them.
    """

    def __init__(self, identifier: Pipeline, speakers: AsyncSpeakerStore) -> None:
        self._identifier = identifier
        self._speakers = speakers

    async def enroll(
        self,
        speaker: str,
        utterances: Sequence[EncodedAudio | RawAudio],
        models: Sequence[Model],
        deadline: float | None,
    ) -> EnrolledSpeaker:
        """Stores a speaker for each of `models`, in the place of one of that name.

        Args:
            speaker: the name; its canonical form is stored.
            utterances: 1 to MAX_UTTERANCES, of that speaker.
            models: leased.
            deadline: on the clock of `time.monotonic`, or None.

        Raises:
            RequestError: the server keeps no speakers, or something is wrong with the name or an utterance; then
                nothing has changed.
        """
        self._speakers.check()
        name = checked_name(speaker)
        means = await self._means(utterances, models, deadline)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        enrolments = [
            Enrolment(name, each.variant, each.version, each.digest, len(utterances), now, mean)
            for each, mean in zip((model.bundle for model in models), means, strict=True)
        ]
        await self._speakers.ask(lambda store: store.put(enrolments))
        return self._enrolled(name, enrolments)

    async def page(self, after: str, most: int) -> tuple[list[EnrolledSpeaker], bool]:
        """Enrolled speakers by name, those that come after one, and whether there are more than `most`.

        Raises:
            RequestError: the server keeps no speakers, or cannot read them.
        """
        found: dict[str, list[Enrolment]] = {}
        for enrolment in await self._speakers.ask(lambda store: store.page(after, most + 1)):
            found.setdefault(enrolment.speaker, []).append(enrolment)
        speakers = [self._enrolled(name, enrolments) for name, enrolments in found.items()]
        return speakers[:most], len(speakers) > most

    async def remove(self, speaker: str) -> None:
        """Forgets a speaker, in every model.

        Raises:
            NotFoundError: nobody of that name is enrolled.
            RequestError: the server keeps no speakers, or cannot change them.
        """
        name = checked_name(speaker)
        if not await self._speakers.ask(lambda store: store.remove(name)):
            raise unknown(name)

    async def _means(
        self, utterances: Sequence[EncodedAudio | RawAudio], models: Sequence[Model], deadline: float | None
    ) -> list[NDArray[np.float32]]:
        """For each model, the mean of the length-normalised embeddings of the utterances, [size]."""

        async def embedded(item: tuple[int, EncodedAudio | RawAudio, Model]) -> NDArray[np.float64]:
            index, audio, model = item
            with named(f"utterances[{index}]"):
                # Every model hears the same utterances.
                monitoring = MonitoringScope.SOUND if model is models[0] else MonitoringScope.NOTHING
                query = Query(audio=audio, with_embedding=True, deadline=deadline, monitoring=monitoring)
                [answer] = (await self._identifier.identify(query, [model])).answers
            assert isinstance(answer, Answer), "a single model fails by raising"
            assert answer.embedding is not None, "it was asked for"
            return direction(answer.embedding)

        items = [(index, audio, model) for model in models for index, audio in enumerate(utterances)]
        directions = await ConcurrencyLimit(UTTERANCES_AT_ONCE, UTTERANCES_AT_ONCE).map_concurrent(items, embedded)
        count = len(utterances)
        return [
            np.mean(directions[start : start + count], axis=0).astype(np.float32)
            for start in range(0, len(directions), count)
        ]

    def _enrolled(self, name: str, enrolments: Sequence[Enrolment]) -> EnrolledSpeaker:
        loaded = {model.bundle.digest for model in self._identifier.models}
        return EnrolledSpeaker(name, tuple((each, each.bundle in loaded) for each in enrolments))


def checked_name(speaker: str, field: str = "speaker") -> str:
    """The canonical form (NFC) of a speaker's name, by which the same name is found however it was typed.

    Raises:
        InvalidArgumentError: it is empty, too long, begins or ends with a space, or holds what nobody can see.
    """
    # What normalising takes grows with the square of the length; no character is made of more than four.
    name = unicodedata.normalize("NFC", speaker[: 4 * MAX_NAME_CHARACTERS + 1])
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS or name != name.strip():
        raise InvalidArgumentError(
            Reason.ARGUMENT,
            f"{field}: {quoted(speaker)}; a name has 1 to {MAX_NAME_CHARACTERS} characters, and no space around it",
        )
    for character in name:
        # Control characters, invisible formatting, surrogates, private and unassigned ones, line separators.
        if character not in JOINERS and (unicodedata.category(character)[0] == "C" or character in "\u2028\u2029"):
            raise InvalidArgumentError(
                Reason.ARGUMENT, f"{field}: {quoted(speaker)} holds U+{ord(character):04X}, which is no part of a name"
            )
    return name


def unknown(name: str, field: str = "speaker") -> NotFoundError:
    """Nobody of that name is enrolled; whose are is not told here, as ListSpeakers does."""
    return NotFoundError(
        Reason.UNKNOWN_SPEAKER, f"{field}: nobody is enrolled as {quoted(name)}; ListSpeakers says who is"
    )


def direction(embedding: NDArray[np.float32]) -> NDArray[np.float64]:
    """An embedding at length one, [size]; zero stays zero."""
    values = embedding.astype(np.float64)
    unit: NDArray[np.float64] = values / max(float(np.linalg.norm(values)), 1e-12)
    return unit


def named(field: str) -> AbstractContextManager[None]:
    """Lets errors about `audio` speak of the field that the audio came in."""
    return spoken_of("audio", field)


@contextmanager
def spoken_of(name: str, field: str) -> Iterator[None]:
    """Lets errors whose message begins with `name` begin with `field`."""
    try:
        yield
    except (InvalidArgumentError, NotFoundError) as error:
        message = str(error)
        if not message.startswith(name):
            raise
        raise type(error)(error.reason, field + message.removeprefix(name)) from error
