"""The server on a simulated device that needs a set time, whatever else the machine does; for measuring queues.

  python -m benchmarks.paced 0.1 --bundles BUNDLES …

The first argument is the device's time for a second of audio, padding included, in seconds; the others are the
server's. Every batch is computed, and its results are returned when that time is over.
"""

import sys
import time
from typing import Any

from speakerlens.serving.__main__ import main
from speakerlens.serving.bundle import SAMPLE_RATE
from speakerlens.serving.engine.session import BatchInputs, GraphSession

compute = GraphSession.compute


def paced(self: GraphSession[Any, Any], inputs: BatchInputs[Any]) -> list[Any]:
    """Answers when the device would be done."""
    started = time.monotonic()
    answers = compute(self, inputs)
    needed = float(sys.argv[1]) * inputs.arrays["audio"].size / SAMPLE_RATE
    time.sleep(max(0.0, started + needed - time.monotonic()))
    return answers


if __name__ == "__main__":
    GraphSession.compute = paced  # type: ignore[method-assign]
    sys.exit(main(sys.argv[2:]))
