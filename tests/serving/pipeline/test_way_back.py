"""What is set aside for an answer's way from the device to its caller."""

import time

import pytest

from speakerlens.serving.pipeline.identify import MAX_REPLY_SHARE, REPLY_TIMES, ReplyTimeEstimator


def test_what_answers_took_is_set_aside() -> None:
    way, deadline = ReplyTimeEstimator(), time.monotonic() + 10
    assert way.compute_deadline(None) is None
    assert way.compute_deadline(deadline) == deadline
    for _ in range(20):
        way.record(0.05)
    by = way.compute_deadline(deadline)
    assert by is not None
    assert deadline - by == pytest.approx(REPLY_TIMES * 0.05)


def test_what_varies_is_set_aside_with_care_and_never_most_of_the_time() -> None:
    way, deadline = ReplyTimeEstimator(), time.monotonic() + 10
    for seconds in (0.1, 0.3) * 10:
        way.record(seconds)
    by = way.compute_deadline(deadline)
    assert by is not None
    assert deadline - by > REPLY_TIMES * 0.3
    soon = way.compute_deadline(time.monotonic() + 0.5)
    assert soon is not None
    assert soon - time.monotonic() == pytest.approx((1 - MAX_REPLY_SHARE) * 0.5, abs=0.05)
