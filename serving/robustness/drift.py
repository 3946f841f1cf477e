"""Drift: the last answers of each loaded bundle against the distributions in its `baseline.json`.

Only the bin of each value is kept, and the index is computed when the metrics are scraped. Every loaded bundle has its
own windows, so a new version starts empty; the metrics show the newest version of each variant.
"""

import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from speakerlens.measures.distribution import population_stability_index
from speakerlens.serving.bundle import Bundle, Distribution
from speakerlens.serving.metrics.registry import PREFIX


class Window:
    """The last values of one measure, as bins of the baseline.

    Args:
        expected: distribution of the measure in the baseline.
        samples: number of values to keep.
    """

    def __init__(self, expected: Distribution, samples: int) -> None:
        self._expected = expected
        self._indices: deque[int] = deque(maxlen=samples)
        self._counts = [0] * len(expected.counts)

    def add(self, value: float) -> None:
        """Add a value; drops the oldest if the window is full."""
        if len(self._indices) == self._indices.maxlen:
            self._counts[self._indices[0]] -= 1
        index = self._expected.bins.index(value)
        self._indices.append(index)
        self._counts[index] += 1

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def index(self) -> float:
        """Population stability index against the baseline; NaN without values."""
        return population_stability_index(self._expected.counts, self._counts)


class Drift(Collector):
    """The windows of all loaded bundles, as a Prometheus collector; thread-safe.

    Measures without values in the baseline are ignored.

    Args:
        samples: length of each window.
    """

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._lock = threading.Lock()
        self._bundles: dict[str, tuple[Bundle, dict[str, Window]]] = {}

    def set_bundles(self, bundles: Iterable[Bundle]) -> None:
        """Replace the loaded bundles; the windows of those that stay are kept."""
        with self._lock:
            self._bundles = {
                each.digest: self._bundles.get(each.digest) or (each, self._windows(each)) for each in bundles
            }

    def _windows(self, bundle: Bundle) -> dict[str, Window]:
        measures = bundle.baseline.clean.items()
        return {name: Window(expected, self._samples) for name, expected in measures if expected.samples}

    def add(self, bundle: Bundle, values: Mapping[str, float]) -> None:
        """Add measures of one answer, by name; NaN is ignored, as is a bundle that is not loaded."""
        with self._lock:
            _, windows = self._bundles.get(bundle.digest, (bundle, {}))
            for name, value in values.items():
                if name in windows and not math.isnan(value):
                    windows[name].add(value)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield both metrics, with the newest version of each variant."""
        index, samples = self.describe()
        with self._lock:
            newest: dict[str, tuple[Bundle, dict[str, Window]]] = {}
            for bundle, windows in sorted(self._bundles.values(), key=lambda each: each[0].version):
                newest[bundle.variant] = bundle, windows
            for variant, (_, windows) in sorted(newest.items()):
                for name, window in windows.items():
                    samples.add_metric((variant, name), len(window))
                    if len(window):
                        index.add_metric((variant, name), window.index)
        yield index
        yield samples

    def describe(self) -> tuple[GaugeMetricFamily, GaugeMetricFamily]:
        """Return both metrics without values."""
        labels = ("variant", "measure")
        return (
            GaugeMetricFamily(
                PREFIX + "drift_psi",
                "Population stability index of the last answers against the bundle's baseline on clean speech.",
                labels=labels,
            ),
            GaugeMetricFamily(PREFIX + "drift_samples", "Answers behind the index.", labels=labels),
        )
