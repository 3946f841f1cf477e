"""Evidence: seconds of speech, its level without the pauses, and what silence lacks."""

import math

import numpy as np
import pytest

from speakerlens.measures.evidence import Evidence, Mismatch, evidence_of, mismatch
from speakerlens.measures.sound import Sound, measure_sound

SPEECH = Sound(4.0, 12.0, 0.25, 0.01, -30.0, 7500.0)


def test_level_is_that_of_the_time_with_speech() -> None:
    evidence = evidence_of(SPEECH)
    assert evidence.speech_s == 1.0
    assert evidence.level_db == pytest.approx(-30.0 + 10 * math.log10(4))  # ITU-T P.56
    assert (evidence.snr_db, evidence.bandwidth_hz, evidence.clipping) == (12.0, 7500.0, 0.01)


def test_overlapping_windows_count_by_the_true_duration() -> None:
    evidence = evidence_of(SPEECH, seconds=2.0, clipped_share=0.5)
    assert (evidence.speech_s, evidence.clipping) == (0.5, 0.5)


def test_silence_has_neither_snr_nor_level() -> None:
    evidence = evidence_of(measure_sound(np.zeros(16_000, np.float32)))
    assert (evidence.speech_s, evidence.snr_db, evidence.level_db, evidence.bandwidth_hz) == (0.0, None, None, 0.0)


def test_mismatch_is_the_difference_to_the_references_mean() -> None:
    one, other = Evidence(2.0, 20.0, 8000.0, 0.0, -20.0), Evidence(4.0, None, 8000.0, 0.2, -30.0)
    found = mismatch(Evidence(1.0, 5.0, 4000.0, 0.0, None), [one, other])
    assert found == Mismatch(-2.0, -15.0, -4000.0, -0.1, None)
    assert mismatch(one, []) is None
