"""Enrolment, independent of any protocol: the references of a speaker, from utterances into the store."""

import datetime
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.config import Config
from speakerlens.serving.errors import InvalidArgumentError, NotFoundError, Reason, quoted
from speakerlens.serving.gallery.asynchronous import AsyncSpeakerStore
from speakerlens.serving.gallery.exemplar import Enrolment, Exemplar, KeptRecording, enrolments_of
from speakerlens.serving.gallery.store import SpeakerStore
from speakerlens.serving.models.registry import Model
from speakerlens.serving.pipeline.concurrency import map_concurrent
from speakerlens.serving.pipeline.decode import EncodedAudio, RawAudio
from speakerlens.serving.pipeline.gate import EnrolmentLimits, refusal
from speakerlens.serving.pipeline.identify import Pipeline, extent_of
from speakerlens.serving.pipeline.observer import MonitoringScope
from speakerlens.serving.pipeline.query import QueryOptions
from speakerlens.serving.pipeline.reference import Reference, ReferenceReader, kept_recording
from speakerlens.serving.pipeline.samples import AudioInfo

MAX_NAME_CHARACTERS = 128
MAX_UTTERANCES = 100
# Stored exemplars of a speaker for one bundle; more bring nothing, and cost time in every search.
MAX_EXEMPLARS = 500
# Utterances of one enrolment in work at a time.
UTTERANCES_AT_ONCE = 4
# Joiners that some scripts need; other invisible characters are refused.
JOINERS = "\u200c\u200d"


@dataclass(frozen=True)
class EnrolledUtterance:
    """An utterance that was stored.

    Attributes:
        audio: as received.
        recording: id of the kept recording; None where none is kept.
        agreement: mean cosine to the other utterances, with the first model; 0 for a single one.
    """

    audio: AudioInfo
    recording: str | None
    agreement: float


@dataclass(frozen=True)
class EnrolledSpeaker:
    """The stored enrolments of a speaker, and for each whether it is intact and the bundle that made it is loaded.

    Attributes:
        speaker: canonical name.
        entries: the enrolments.
        must_enroll_again: whether none is usable, and no recording is kept.
        utterances: of a new enrolment.
    """

    speaker: str
    entries: tuple[tuple[Enrolment, bool], ...]
    must_enroll_again: bool
    utterances: tuple[EnrolledUtterance, ...] = ()


class Enroller:
    """Enrol, list and remove speakers.

    Args:
        pipeline: computes the embeddings.
        speakers: stores them.
        config: what is asked of an utterance, and whether recordings are kept.
    """

    def __init__(self, pipeline: Pipeline, speakers: AsyncSpeakerStore, config: Config) -> None:
        self._pipeline = pipeline
        self._speakers = speakers
        self._limits = EnrolmentLimits.of(config)
        self._keep = config.keep_audio

    async def enroll(
        self,
        speaker: str,
        utterances: Sequence[EncodedAudio | RawAudio],
        models: Sequence[Model],
        deadline: float | None,
        replaces: bool = True,
    ) -> EnrolledSpeaker:
        """Store a speaker for each of `models`.

        Args:
            speaker: the name; its canonical form is stored.
            utterances: 1 to MAX_UTTERANCES of the speaker.
            models: leased.
            deadline: on the clock of `time.monotonic`, None without one.
            replaces: whether to remove what is stored of the speaker for any model; else the utterances are added.

        Raises:
            RequestError: the server has no store, or the name or an utterance is invalid; nothing has changed then.
        """
        self._speakers.check()
        name = checked_name(speaker)
        before = [] if replaces else await self._speakers.run(lambda store: store.find(name))
        references = await self._references(utterances, models, deadline)
        self._check(references, models[0], before)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        recordings = [
            await self._pipeline.run_in_thread(partial(kept_recording, name, now, each.samples))
            for each in references
            if self._keep
        ]
        kept: list[str | None] = [each.id for each in recordings] or [None] * len(references)
        exemplars = [
            Exemplar(
                name,
                model.bundle.variant,
                model.bundle.version,
                model.bundle.digest,
                1,
                now,
                reference.embeddings[index],
                reference.info.evidence,
                recording,
            )
            for index, model in enumerate(models)
            for reference, recording in zip(references, kept, strict=True)
        ]
        stored = await self._speakers.run(lambda store: _stored(store, exemplars, recordings, replaces))
        agreements = _agreements([each.embeddings[0] for each in references])
        return replace(
            self._enrolled(name, enrolments_of(stored)),
            utterances=tuple(
                EnrolledUtterance(each.info, recording, agreement)
                for each, recording, agreement in zip(references, kept, agreements, strict=True)
            ),
        )

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

    async def _references(
        self, utterances: Sequence[EncodedAudio | RawAudio], models: Sequence[Model], deadline: float | None
    ) -> list[Reference]:
        """Return what the models make of each utterance.

        Raises:
            RequestError: utterances are invalid, all of which are named; or the server is overloaded.
        """
        options = QueryOptions(with_embedding=True, deadline=deadline, monitoring=MonitoringScope.SOUND)
        errors: dict[int, InvalidArgumentError] = {}
        problems: dict[int, list[str]] = {}
        with self._pipeline.admit(
            options, models, [extent_of(each) for each in utterances], full_windows=True
        ) as admitted:
            reader = ReferenceReader(self._pipeline, models, admitted, self._keep)

            async def read(item: tuple[int, EncodedAudio | RawAudio]) -> Reference | None:
                index, audio = item
                query = replace(options, field=f"utterances[{index}]")
                try:
                    # Where one is bad already, the others are only checked.
                    reference = await reader.read(audio, query, compute=not errors and not problems)
                except InvalidArgumentError as error:
                    errors[index] = error
                    return None
                found = reference.problems + self._limits.problems(reference.evidence, reference.detected_s)
                if found:
                    problems[index] = found
                return reference

            references = await map_concurrent(list(enumerate(utterances)), read, UTTERANCES_AT_ONCE)
        if len(errors) == 1 and not problems:
            raise next(iter(errors.values()))
        if errors:
            phrases = {index: [str(error).split(": ", 1)[-1]] for index, error in errors.items()}
            raise refusal({**phrases, **problems}, next(iter(errors.values())).reason)
        if problems:
            raise refusal(problems)
        return [each for each in references if each is not None]

    def _check(self, references: Sequence[Reference], model: Model, before: Sequence[Exemplar]) -> None:
        """Check the utterances together, and with what is stored of the speaker.

        Raises:
            InvalidArgumentError: too little speech in all, more than one speaker, or too many exemplars.
        """
        bundle = model.bundle
        own = [each for each in before if each.bundle == bundle.digest and len(each.embedding) == bundle.embedding_size]
        if len(own) + len(references) > MAX_EXEMPLARS:
            raise InvalidArgumentError(
                Reason.ARGUMENT,
                f"utterances: {len(references)} beside the {len(own)} that are stored; at most {MAX_EXEMPLARS} are "
                "kept of a speaker: replace them",
            )
        stored = [each.quality for each in own if each.quality is not None]
        self._limits.check_total([*stored, *(each.evidence for each in references)], len(own) > len(stored))
        known = [(-1 - index, each.embedding) for index, each in enumerate(own)]
        utterances = [(index, each.embeddings[0]) for index, each in enumerate(references)]
        pieces = [(index, piece) for index, each in enumerate(references) for piece in each.pieces]
        stretches = [(index, stretch) for index, each in enumerate(references) for stretch in each.stretches]
        self._limits.check_agreement([*known, *utterances], [*known, *pieces], stretches, bundle)

    def _enrolled(self, name: str, enrolments: Sequence[Enrolment]) -> EnrolledSpeaker:
        sizes = {model.bundle.digest: model.bundle.embedding_size for model in self._pipeline.models}
        entries = tuple((each, sizes.get(each.bundle) == each.size) for each in enrolments)
        again = not any(usable for _, usable in entries) and not any(each.recorded for each in enrolments)
        return EnrolledSpeaker(name, entries, again)


def _stored(
    store: SpeakerStore, exemplars: Sequence[Exemplar], recordings: Sequence[KeptRecording], replaces: bool
) -> list[Exemplar]:
    """Store exemplars, and return all of the speaker."""
    store.enroll(exemplars, recordings, replace=replaces)
    return list(exemplars) if replaces else store.find(exemplars[0].speaker)


def _agreements(embeddings: Sequence[NDArray[np.float32]]) -> list[float]:
    """Return the mean cosine of each embedding to the others; 0 for a single one."""
    stacked = np.array(embeddings, np.float64)
    cosines = stacked @ stacked.T
    others = max(1, len(stacked) - 1)
    return [float((row.sum() - row[index]) / others) for index, row in enumerate(cosines)]


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
