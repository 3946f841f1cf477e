"""The results of calls about enrolled speakers and galleries."""

from dataclasses import dataclass, field

from speakerlens.results import AudioInfo


@dataclass(frozen=True)
class EnrolledModel:
    """The enrolment of a speaker with one model."""

    variant: str
    version: int
    utterances: int
    enrolled: str
    """Time of the enrolment: UTC, ISO 8601."""
    usable: bool
    """Whether the bundle that computed the embeddings is loaded."""
    exemplars: int = 0
    """Stored embeddings: one an utterance; 0 from a server that does not say."""
    must_enroll_again: bool = False
    """Whether no loaded bundle has exemplars of the speaker, and no audio is kept."""


@dataclass(frozen=True)
class EnrolledUtterance:
    """An utterance of a new enrolment."""

    audio: AudioInfo
    agreement: float
    """Mean cosine to the other utterances, with the first model; 0 for a single one."""
    recording: str
    """Id of the kept recording; empty where the server keeps none."""


@dataclass(frozen=True)
class EnrolledSpeaker:
    """An enrolled speaker, and the models it is enrolled with."""

    speaker: str
    models: tuple[EnrolledModel, ...]
    without_speech: tuple[int, ...] = field(default=(), compare=False)
    """Of a new enrolment: indices of the utterances in which no window holds speech."""
    utterances: tuple[EnrolledUtterance, ...] = field(default=(), compare=False)
    """Of a new enrolment: what was stored."""


@dataclass(frozen=True)
class GalleryImport:
    """What an imported file held."""

    speakers: int
    exemplars: int


@dataclass(frozen=True)
class GalleryMigration:
    """What came of embedding kept recordings again."""

    migrated: int
    """Speakers that have exemplars of the models now and had not before."""
    must_enroll_again: tuple[str, ...]
    """Names of those that have exemplars of none of the models: no audio is kept that these can embed."""
