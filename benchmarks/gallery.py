"""What searching a large gallery costs, without the network: time of a query, memory, reading and refreshing.

    python -m benchmarks.gallery

Random directions of length one, as of 100,000 speakers with one exemplar of 256 numbers each, in a SQLite store of its
own. Reports the time of a query (comparison, ranking, decision), of the first reading and of the refresh after one
enrolment, and the growth of the resident memory; and the time of a query to a subset of 1,000 speakers. Wall time is
that of the machine as it is; processor time, the sum of all threads, depends less on what else runs. Linux only.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from speakerlens.measures.evidence import Evidence
from speakerlens.measures.search import SearchCalibration
from speakerlens.serving.gallery.exemplar import Exemplar, unit
from speakerlens.serving.gallery.matrix import Gallery, Indices
from speakerlens.serving.gallery.store import open_store
from speakerlens.serving.pipeline.decision import decide, ranked
from tests.measures.search_section import section

BUNDLE = "0" * 64
QUALITY = Evidence(3.0, 20.0, 8000.0, 0.0, -26.0)
QUERY = Evidence(2.0, 15.0, 8000.0, 0.0, -26.0)


def main() -> None:
    """Print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speakers", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gallery.json"))
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(str(Path(folder) / "speakers.db"))
        now = "2026-11-29T00:00:00+00:00"

        def exemplar(name: str) -> Exemplar:
            return Exemplar(name, "v", 1, BUNDLE, 1, now, unit(rng.normal(size=arguments.size)), QUALITY)

        enrolled = [exemplar(f"speaker {number:07d}") for number in range(arguments.speakers)]
        for start in range(0, len(enrolled), 1000):  # a call enrols one speaker; here only reading is measured
            store.enroll(enrolled[start : start + 1000], replace=False)
        del enrolled
        before = resident_mb()
        gallery, reading = timed(lambda: Gallery.of(store.bundle_exemplars(BUNDLE), arguments.size))
        memory_mb = resident_mb() - before
        store.enroll([exemplar("zoe")], replace=False)
        gallery, refresh = timed(lambda: gallery.updated({"zoe"}, store.find("zoe")))
        store.close()
    calibration = SearchCalibration.from_section(section())
    some = np.sort(rng.choice(len(gallery), min(1000, len(gallery)), replace=False))
    figures = {
        "all": queries(gallery, None, calibration, arguments.queries),
        "1000 of them": queries(gallery, some, calibration, arguments.queries),
    }
    report = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, numpy {np.__version__}",
        "load_average": os.getloadavg()[0],
        "speakers": arguments.speakers,
        "size": arguments.size,
        "matrix_mb": round(gallery.embeddings.nbytes / 1e6, 1),
        "resident_mb": round(memory_mb, 1),
        "first_reading": reading,
        "refresh_after_one_enrolment": refresh,
        "query_ms": figures,
    }
    print(json.dumps(report, indent=1))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")


def queries(
    gallery: Gallery,
    speakers: Indices | None,
    calibration: SearchCalibration,
    count: int,
) -> dict[str, dict[str, float]]:
    """Return milliseconds of queries: wall time and processor time of all threads, of each part and of all."""
    rng = np.random.default_rng(1)
    spent: dict[str, list[tuple[float, float]]] = {"product": [], "all": []}
    for _ in range(count):
        query = unit(np.asarray(rng.normal(size=gallery.embeddings.shape[1])))
        started = time.perf_counter(), time.process_time()
        matches = gallery.compare(query, speakers)
        compared = time.perf_counter(), time.process_time()
        ranking = ranked(matches, QUERY, calibration, 5)
        decide(ranking, matches, QUERY, True, calibration)
        done = time.perf_counter(), time.process_time()
        spent["product"].append((compared[0] - started[0], compared[1] - started[1]))
        spent["all"].append((done[0] - started[0], done[1] - started[1]))
    return {
        part: {
            "wall, least twentieth": round(1e3 * float(np.quantile([wall for wall, _ in values], 0.05)), 2),
            "wall, median": round(1e3 * statistics.median(wall for wall, _ in values), 2),
            "processor, median": round(1e3 * statistics.median(processor for _, processor in values), 2),
        }
        for part, values in spent.items()
    }


def timed(function: Callable[[], Gallery]) -> tuple[Gallery, dict[str, float]]:
    """Return a function's result and its seconds."""
    started = time.perf_counter(), time.process_time()
    result = function()
    wall, processor = time.perf_counter() - started[0], time.process_time() - started[1]
    return result, {"wall, s": round(wall, 3), "processor, s": round(processor, 3)}


def resident_mb() -> float:
    """Return the memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
