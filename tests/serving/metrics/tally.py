"""What a server's page must say after known traffic: every counter, every histogram's count, and sums where known."""

import re
import time
from collections import Counter
from collections.abc import Sequence

import pytest

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.context import Timings
from tests.serving.harness import ServerProcess

SETTLING_SECONDS = 30
PHASES = tuple(Timings.__annotations__)
SOUND = ("snr_decibels", "speech_ratio", "clipped_ratio", "level_decibels", "bandwidth_hertz", "duration_seconds")
PREDICTION = ("top1_probability", "margin", "entropy_nats")
SALIENCY = ("deletion_index", "concentration")
# Those in decibels have buckets only.
COUNTED = re.compile(r"(\w+_(total|count)|batch_size_sum)($|\{)|input_\w+_decibels_bucket\{le=\"\+Inf\"\}")
NOT_COUNTED = ("audio_seconds", "batch_size_count", "batch_duration", "process_")


class Tally:
    """Expectations, as samples of the page by name without prefix and with labels; what is not expected is 0."""

    def __init__(self) -> None:
        self._expected: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}

    def add(self, name: str, count: int = 1, **labels: str) -> None:
        """Expects a counter's increase, or a histogram's values."""
        self._expected[sample(name, **labels)] += count

    def call(self, method: str, variant: str = "_none", code: str = "OK") -> None:
        """One call, finished."""
        self.add("requests_total", method=method, variant=variant, code=code)
        self.add("request_duration_seconds_count", method=method, variant=variant)

    def refused(self, reason: str) -> None:
        """One refusal."""
        self.add("rejections_total", reason=reason)

    def identified(
        self,
        variants: Sequence[str],
        seconds: float,
        kind: str = "predict",
        windows: int = 1,
        phases: bool = True,
        speech: bool = True,
    ) -> None:
        """An identification of any method: computed, answered, counted."""
        for phase in PHASES if phases else ():
            self.add("phase_duration_seconds_count", phase=phase)
        for variant in variants:
            self.add("answers_total", variant=variant, kind=kind)
            self.computed(variant, kind, windows)
        self.add("input_recordings_total", speech="found" if speech else "none")
        self._add_seconds("audio_seconds_total", seconds)

    def computed(self, variant: str, kind: str, windows: int = 1) -> None:
        """Rows on the device, in however many batches."""
        self.add("batch_size_sum", windows, variant=variant, kind=kind)

    def measured(self, seconds: float) -> None:
        """One stretch of audio, answered and measured."""
        self.add("background_total", work="measure", outcome="done")
        for name in SOUND:
            if name.endswith("decibels"):
                self.add(f"input_{name}_bucket", le="+Inf")
            else:
                self.add(f"input_{name}_count")
        self._add_seconds("input_duration_seconds_sum", seconds)

    def named(self, answers: Sequence[pb.ModelAnswer], explained: bool = False) -> None:
        """Predictions of these answers."""
        for answer in answers:
            for name in PREDICTION:
                self.add(f"prediction_{name}_count", variant=answer.variant)
            decision = "known" if answer.known else "unknown"
            self.add("prediction_decisions_total", variant=answer.variant, decision=decision)
            if explained:
                self.looked(answer.variant)

    def looked(self, variant: str) -> None:
        """One map."""
        for name in SALIENCY:
            self.add(f"saliency_{name}_count", variant=variant)

    def compare(self, server: ServerProcess) -> dict[str, float]:
        """Waits until the page says what is expected, and fails with the difference where it never does."""
        deadline = time.monotonic() + SETTLING_SECONDS
        while True:
            page = {name.removeprefix("speakerlens_"): value for name, value in server.metrics().items()}
            if self._found(page) == dict(self._expected) or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        assert self._found(page) == dict(self._expected)
        for name, seconds in self._seconds.items():
            assert page[name] == pytest.approx(seconds, abs=1e-3), name
        assert page["requests_in_flight"] == 0
        assert not {name: value for name, value in page.items() if name.startswith("queue_depth") and value}
        self._check_batches(page)
        return page

    def _add_seconds(self, name: str, seconds: float) -> None:
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def _found(self, page: dict[str, float]) -> dict[str, float]:
        """What the page counts, but for seconds, and for batches, whose number depends on what was waiting."""
        return {
            name: value
            for name, value in page.items()
            if value and COUNTED.match(name) and not name.startswith(NOT_COUNTED)
        }

    def _check_batches(self, page: dict[str, float]) -> None:
        for name, batches in page.items():
            if name.startswith("batch_size_count"):
                assert batches <= page[name.replace("_count", "_sum")]
                assert page[name.replace("size", "duration_seconds")] == batches


def sample(name: str, **labels: str) -> str:
    """As it stands on the page."""
    inside = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name
