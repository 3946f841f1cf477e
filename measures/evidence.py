"""What an answer rests on: how much speech there is, and how good it is.

The same values describe a request, an enrolled exemplar, and the utterances that a bundle's calibration was fitted on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from speakerlens.measures.sound import SILENT_DBFS, Sound


@dataclass(frozen=True)
class Evidence:
    """Blind estimates from the samples of one recording.

    Attributes:
        speech_s: seconds of speech, pauses left out.
        snr_db: energy of speech over that of everything else, in decibels; None in silence.
        bandwidth_hz: up to where the sound reaches, in hertz; 0 in silence.
        clipping: share of the samples that are clipped, 0 to 1.
        level_db: mean level during speech, in decibels of full scale; None without speech.
    """

    speech_s: float
    snr_db: float | None
    bandwidth_hz: float
    clipping: float
    level_db: float | None


def evidence_of(sound: Sound, seconds: float | None = None, clipped_share: float | None = None) -> Evidence:
    """Return the evidence in measured sound.

    The level is the active speech level of ITU-T P.56: the energy of all, over the time with speech alone.

    Args:
        sound: measures of the recording, or of its windows joined.
        seconds: duration of the recording, where the windows overlap; None for that of `sound`.
        clipped_share: share of clipped samples as received, 0 to 1; None if `sound` has it.
    """
    speaks = sound.speech_share > 0 and sound.level_dbfs > SILENT_DBFS
    return Evidence(
        speech_s=sound.speech_share * (sound.seconds if seconds is None else seconds),
        snr_db=None if math.isnan(sound.snr_db) else sound.snr_db,
        bandwidth_hz=sound.bandwidth_hz,
        clipping=sound.clipped_share if clipped_share is None else clipped_share,
        level_db=sound.level_dbfs - 10 * math.log10(sound.speech_share) if speaks else None,
    )


@dataclass(frozen=True)
class Mismatch:
    """One recording's evidence minus that of others; fields as of `Evidence`, None where one side lacks it."""

    speech_s: float | None
    snr_db: float | None
    bandwidth_hz: float | None
    clipping: float | None
    level_db: float | None


def mismatch(evidence: Evidence, references: Sequence[Evidence]) -> Mismatch | None:
    """Return a recording's evidence minus the mean of that of the references; None without references."""
    if not references:
        return None

    def difference(name: str) -> float | None:
        value = getattr(evidence, name)
        others = [getattr(each, name) for each in references if getattr(each, name) is not None]
        return None if value is None or not others else value - sum(others) / len(others)

    return Mismatch(*(difference(each.name) for each in fields(Mismatch)))
