"""Enrolment, independent of any protocol: the references of a speaker, from utterances into the store."""

import datetime
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.errors import InvalidArgumentError, NotFoundError, Reason, quoted
from speakerlens.serving.gallery.asynchronous import AsyncSpeakerStore
from speakerlens.serving.gallery.exemplar import Enrolment, Exemplar, enrolments_of, unit
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.answers import Answer
from speakerlens.serving.pipeline.concurrency import map_concurrent
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio
from speakerlens.serving.pipeline.identify import Pipeline
from speakerlens.serving.pipeline.observer import MonitoringScope
from speakerlens.serving.pipeline.query import Query

MAX_NAME_CHARACTERS = 128
MAX_UTTERANCES = 100
# Utterances of one enrolment in work at a time.
UTTERANCES_AT_ONCE = 4
# Joiners that some scripts need; other invisible characters are refused.
JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class EnrolledSpeaker:
    """The stored enrolments of a speaker, and for each whether it is intact and the bundle that made it is loaded.

    Of a new enrolment, `without_speech` has the indices of the utterances in which no window holds speech.
    """

    speaker: str
    entries: tuple[tuple[Enrolment, bool], ...]
    without_speech: tuple[int, ...] = ()


class Enroller:
    """Enrol, list and remove speakers.

    Args:
        pipeline: computes the embeddings.
        speakers: stores them.
    """

    def __init__(self, pipeline: Pipeline, speakers: AsyncSpeakerStore) -> None:
        self._pipeline = pipeline
        self._speakers = speakers

    async def enroll(
        self,
        speaker: str,
        utterances: Sequence[EncodedAudio | RawAudio],
        models: Sequence[Model],
        deadline: float | None,
    ) -> EnrolledSpeaker:
        """Store a speaker for each of `models`, and replace one of the same name.

        Args:
            speaker: the name; its canonical form is stored.
            utterances: 1 to MAX_UTTERANCES of the speaker.
            models: leased.
            deadline: on the clock of `time.monotonic`, None without one.

        Raises:
            RequestError: the server has no store, or the name or an utterance is invalid; nothing has changed then.
        """
        self._speakers.check()
        name = checked_name(speaker)
        embeddings, without_speech = await self._embeddings(utterances, models, deadline)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        exemplars = [
            Exemplar(name, bundle.variant, bundle.version, bundle.digest, 1, now, embedding)
            for bundle, each in zip((model.bundle for model in models), embeddings, strict=True)
            for embedding in each
        ]
        await self._speakers.run(lambda store: store.enroll(exemplars, replace=True))
        return replace(self._enrolled(name, enrolments_of(exemplars)), without_speech=without_speech)

    async def page(self, after: str, most: int) -> tuple[list[EnrolledSpeaker], bool]:
        """Return up to `most` enrolled speakers whose names come after `after`, and whether there are more.

        Raises:
            RequestError: the server has no store, or cannot read it.
        """
        found: dict[str, list[Enrolment]] = {}
        for enrolment in await self._speakers.run(lambda store: store.page(after, most + 1)):
            found.setdefault(enrolment.speaker, []).append(enrolment)
        speakers = [self._enrolled(name, enrolments) for name, enrolments in found.items()]
        return speakers[:most], len(speakers) > most

    async def remove(self, speaker: str) -> None:
        """Remove a speaker's enrolments for every model.

        Raises:
            NotFoundError: the speaker is not enrolled.
            RequestError: the server has no store, or cannot write it.
        """
        name = checked_name(speaker)
        if not await self._speakers.run(lambda store: store.remove(name)):
            raise not_enrolled(name)

    async def _embeddings(
        self, utterances: Sequence[EncodedAudio | RawAudio], models: Sequence[Model], deadline: float | None
    ) -> tuple[list[list[NDArray[np.float32]]], tuple[int, ...]]:
        """Return for each model the length-normalised embeddings, float32 [size], of the utterances.

        The second value has the indices of the utterances without speech.
        """
        silent: set[int] = set()

        async def embedded(item: tuple[int, EncodedAudio | RawAudio, Model]) -> NDArray[np.float32]:
            index, audio, model = item
            # Every model takes the same utterances: their sound counts once.
            monitoring = MonitoringScope.SOUND if model is models[0] else MonitoringScope.NOTHING
            query = Query(
                audio=audio,
                with_embedding=True,
                deadline=deadline,
                monitoring=monitoring,
                field=f"utterances[{index}]",
            )
            result = await self._pipeline.identify(query, [model])
            if not result.audio.speech:
                silent.add(index)
            [answer] = result.answers
            assert isinstance(answer, Answer), "a single model fails by raising"
            assert answer.embedding is not None, "it was asked for"
            return unit(answer.embedding)

        items = [(index, audio, model) for model in models for index, audio in enumerate(utterances)]
        directions = await map_concurrent(items, embedded, UTTERANCES_AT_ONCE)
        count = len(utterances)
        return [directions[at : at + count] for at in range(0, len(directions), count)], tuple(sorted(silent))

    def _enrolled(self, name: str, enrolments: Sequence[Enrolment]) -> EnrolledSpeaker:
        sizes = {model.bundle.digest: model.bundle.embedding_size for model in self._pipeline.models}
        return EnrolledSpeaker(name, tuple((each, sizes.get(each.bundle) == each.size) for each in enrolments))


def checked_name(speaker: str, field: str = "speaker") -> str:
    """Return the canonical form (Unicode NFC) of a speaker's name, so that it is found however it was typed.

    Raises:
        InvalidArgumentError: the name is empty, too long, begins or ends with a space, or holds invisible characters.
    """
    # Normalising takes time quadratic in the length; no character is composed of more than four.
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


def not_enrolled(name: str, field: str = "speaker") -> NotFoundError:
    """Return the error for a speaker that is not enrolled."""
    return NotFoundError(Reason.UNKNOWN_SPEAKER, f"{field}: no enrolled speaker {quoted(name)}")


def direction(embedding: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return an embedding [size] at length one, float64; zero stays zero."""
    values = embedding.astype(np.float64)
    unit: NDArray[np.float64] = values / max(float(np.linalg.norm(values)), 1e-12)
    return unit
