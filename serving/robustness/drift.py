"""How far traffic has moved from what was usual when a bundle was made: its last answers against `baseline.json`.

Of every measure only the bin of each value is kept, so a value costs a few steps, and the index is computed when it is
asked for. Every loaded bundle has a window of its own, so that a new version begins anew; shown is that of the newest.
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
    """The last values of one measure, as the baseline's bins."""

    def __init__(self, expected: Distribution, samples: int) -> None:
        self._expected = expected
        self._places: deque[int] = deque(maxlen=samples)
        self._counts = [0] * len(expected.counts)

    def add(self, value: float) -> None:
        """Takes a value in, and the oldest out where there are enough."""
        if len(self._places) == self._places.maxlen:
            self._counts[self._places[0]] -= 1
        place = self._expected.bins.index(value)
        self._places.append(place)
        self._counts[place] += 1

    def __len__(self) -> int:
        return len(self._places)

    @property
    def index(self) -> float:
        """Population stability index; NaN without values."""
        return population_stability_index(self._expected.counts, self._counts)


class Drift(Collector):
    """The windows of all loaded bundles, and their place on the metrics page; may be used from any thread.

    Measures without a baseline are left out, and a measure whose baseline has no values.

    Args:
        samples: how many last values count.
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

    def saw(self, bundle: Bundle, values: Mapping[str, float]) -> None:
        """Takes the measures of one answer, by name; NaN is none."""
        with self._lock:
            _, windows = self._bundles.get(bundle.digest, (bundle, {}))
            for name, value in values.items():
                if name in windows and not math.isnan(value):
                    windows[name].add(value)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The two metrics, of the newest version of each variant."""
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
        """The two metrics without values."""
        labels = ("variant", "measure")
        return (
            GaugeMetricFamily(
                PREFIX + "drift_psi",
                "Population stability index of the last answers against the bundle's baseline on clean speech.",
                labels=labels,
            ),
            GaugeMetricFamily(PREFIX + "drift_samples", "Answers behind the index.", labels=labels),
        )
