"""Time set aside for the reply, from the device to the client."""

import time

import pytest

from speakerlens.serving.pipeline.identify import MAX_REPLY_SHARE, REPLY_TIMES, ReplyTimeEstimator


def test_expected_reply_time_is_set_aside() -> None:
    way, deadline = ReplyTimeEstimator(), time.monotonic() + 10
    assert way.compute_deadline(None) is None
    assert way.compute_deadline(deadline) == deadline
    for _ in range(20):
        way.record(0.05)
    by = way.compute_deadline(deadline)
    assert by is not None
    assert deadline - by == pytest.approx(REPLY_TIMES * 0.05)


def test_varying_reply_time_is_set_aside_with_caution_and_bound() -> None:
    way, deadline = ReplyTimeEstimator(), time.monotonic() + 10
    for seconds in (0.1, 0.3) * 10:
        way.record(seconds)
    by = way.compute_deadline(deadline)
    assert by is not None
    assert deadline - by > REPLY_TIMES * 0.3
    soon = way.compute_deadline(time.monotonic() + 0.5)
    assert soon is not None
    assert soon - time.monotonic() == pytest.approx((1 - MAX_REPLY_SHARE) * 0.5, abs=0.05)
