"""What an utterance must be to serve as a speaker's reference, and what is wrong with one that is not.

In each utterance the speech detector must be sure of enough speech, as the seconds of `Evidence` also count other sound
with a pitch; the seconds in all are those of `Evidence`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.agreement import Outlier, outliers
from speakerlens.measures.evidence import Evidence
from speakerlens.serving.bundle import Bundle
from speakerlens.serving.config import Config
from speakerlens.serving.errors import InvalidArgumentError, Reason

Embedded = tuple[int, NDArray[np.float32]]

# Of the speech in words with pauses, the detector is sure of about this share.
SURE_SHARE: Final = 0.7
# Share of clipped samples. Speech that is amplified by 6 dB too much has 1 to 5 %.
MAX_CLIPPING: Final = 0.03


@dataclass(frozen=True)
class EnrolmentLimits:
    """What is asked of the utterances of one enrolment.

    Attributes:
        speech_s: least seconds of speech in each; 0: nothing is asked of them.
        total_s: least seconds of speech in all together.
        snr_db: least signal-to-noise ratio, in decibels.
        bandwidth_hz: least bandwidth, in hertz.
    """

    speech_s: float
    total_s: float
    snr_db: float
    bandwidth_hz: float

    @classmethod
    def of(cls, config: Config) -> "EnrolmentLimits":
        """Return those of the configuration."""
        return cls(
            config.enroll_speech_seconds,
            config.enroll_total_seconds,
            config.enroll_snr_db,
            config.enroll_bandwidth_hz,
        )

    def problems(self, evidence: Evidence, detected_s: float) -> list[str]:
        """Return what is wrong with one utterance, in phrases.

        Args:
            evidence: in the utterance.
            detected_s: seconds of which the speech detector is sure.
        """
        if not self.speech_s:
            return []
        speech_s = min(evidence.speech_s, detected_s / SURE_SHARE)
        clipped = []
        if evidence.clipping > MAX_CLIPPING:
            clipped = [f"{evidence.clipping:.1%} of the samples are clipped; at most {MAX_CLIPPING:.0%} may be"]
        if not speech_s:
            return [f"holds no speech; at least {self.speech_s:g} s each is needed", *clipped]
        found = []
        if speech_s < self.speech_s:
            found.append(f"{_rounded(speech_s)} s of speech; at least {self.speech_s:g} s each is needed")
        if evidence.snr_db is not None and evidence.snr_db < self.snr_db:
            found.append(f"SNR {evidence.snr_db:.1f} dB; at least {self.snr_db:g} dB is needed")
        if evidence.bandwidth_hz < self.bandwidth_hz:
            found.append(
                f"bandwidth {evidence.bandwidth_hz:.0f} Hz, as of a telephone; at least {self.bandwidth_hz:g} Hz is "
                "needed"
            )
        return found + clipped

    def check_total(self, evidence: Sequence[Evidence], unknown: bool = False) -> None:
        """Check the seconds of speech in all utterances together.

        Args:
            evidence: in those that are stored, and in new ones.
            unknown: whether there are stored ones beside them whose evidence is not known; then any total passes.

        Raises:
            InvalidArgumentError: they are too few.
        """
        total = sum(each.speech_s for each in evidence)
        if self.speech_s and total < self.total_s and not unknown:
            raise InvalidArgumentError(
                Reason.ENROLMENT,
                f"utterances: {_rounded(total)} s of speech in all; at least {self.total_s:g} s are needed",
            )

    def check_agreement(
        self,
        utterances: Sequence[Embedded],
        pieces: Sequence[Embedded],
        stretches: Sequence[Embedded],
        bundle: Bundle,
    ) -> None:
        """Check that utterances are of one speaker.

        Args:
            utterances: index, and embedding of length one, float32 [size]; the index is below 0, and different for
                each, for what is stored of the speaker.
            pieces: windows of the utterances with speech, likewise.
            stretches: two successive windows each, likewise.
            bundle: of the embeddings, with the thresholds of verification.

        Raises:
            InvalidArgumentError: they are not; names those that differ, with their cosines to the others.
        """
        if not self.speech_s:
            return
        found = outliers(
            [(index, each.astype(np.float64)) for index, each in utterances],
            [(index, each.astype(np.float64)) for index, each in pieces],
            bundle.verification_thresholds,
            [(index, each.astype(np.float64)) for index, each in stretches],
        )
        if found:
            raise refusal({each.utterance: [_disagreement(each)] for each in found})


def refusal(problems: dict[int, list[str]], reason: Reason = Reason.ENROLMENT) -> InvalidArgumentError:
    """Return the error that names every bad utterance with what is wrong with it."""
    phrases = [f"utterances[{index}]: {'; '.join(problems[index])}" for index in sorted(problems)]
    return InvalidArgumentError(reason, ". ".join(phrases))


def _disagreement(outlier: Outlier) -> str:
    if outlier.within:
        return (
            f"more than one speaker: cosine {outlier.cosine:.2f} of a part of it to the rest, where one speaker's have "
            f"at least {outlier.limit:.2f}"
        )
    return (
        f"another speaker than the others: mean cosine {outlier.cosine:.2f} to them, which have {outlier.others:.2f} "
        f"among themselves; at least {outlier.limit:.2f} is needed"
    )


def _rounded(seconds: float) -> str:
    """Return seconds, rounded down, so that a value below a limit does not read as the limit."""
    return f"{int(seconds * 100) / 100:g}"
