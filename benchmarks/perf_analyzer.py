"""Load on a running server by Triton's `perf_analyzer`, as a table.

    python benchmarks/perf_analyzer.py HOST:PORT MODEL [--concurrency 1 4 16] [--seconds 3] [--window-ms 2000]

It sends speech, and requests every output including maps, so it measures explained requests. The program comes from an
old wheel of tritonclient, for Linux on x86-64, and is kept in build/tools; of its dependencies only libb64 is a system
package. Exit status 3: a dependency is missing, and stderr names it.
"""

import argparse
import csv
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import soundfile

RATE = 16_000
DEMO = Path(__file__).resolve().parents[1] / "speakerlens" / "demo.tar.xz"
TOOLS = Path(__file__).resolve().parents[1] / "build" / "tools" / "perf-analyzer"
# The last wheel with the program in it.
WHEELS = ("tritonclient==2.49.0", "nvidia-cuda-runtime-cu12==12.9.79")
LIBRARY = "libb64.so.0d"
PACKAGE = "libb64-0d"
MISSING = 3
COLUMNS = {
    "Concurrency": "callers",
    "Inferences/Second": "utterances/s",
    "p50 latency": "p50 ms",
    "p99 latency": "p99 ms",
    "Server Queue": "queue ms",
    "Server Compute Input": "decode ms",
    "Server Compute Infer": "inference ms",
    "Server Compute Output": "encode ms",
}


class MissingError(Exception):
    """Something that the program needs is missing; the message says what to install."""


def installed() -> tuple[Path, dict[str, str]]:
    """Return the program and its environment; both are fetched at the first call.

    Raises:
        MissingError: it does not run here, or something cannot be fetched.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise MissingError("perf_analyzer is built for Linux on x86-64 only")
    site, program = TOOLS / "site", TOOLS / "site" / "bin" / "perf_analyzer"
    if not program.exists():
        fetch = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, *WHEELS]
        _try([*map(str, fetch)], TOOLS, f"pip cannot install {' '.join(WHEELS)}")
        program.chmod(0o755)
    libraries = [site / "nvidia" / "cuda_runtime" / "lib", *_libb64()]
    return program, {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries))}


def _libb64() -> list[Path]:
    """Folders with the library; none where the system has it."""
    cache = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    if LIBRARY in cache:
        return []
    if not list(TOOLS.rglob(LIBRARY)):
        install = f"install it: apt-get install {PACKAGE}"
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            raise MissingError(f"{LIBRARY} is missing, and this is no Debian; install libb64")
        _try(["apt-get", "download", PACKAGE], TOOLS, f"{LIBRARY} is missing; {install}")
        [archive] = TOOLS.glob(f"{PACKAGE}_*.deb")
        _try(["dpkg", "-x", archive.name, "."], TOOLS, f"{LIBRARY} is missing; {install}")
    return [found.parent for found in TOOLS.rglob(LIBRARY)]


def _try(command: list[str], folder: Path, complaint: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise MissingError(f"{complaint} ({' '.join(done.stderr.split())[-300:]})")


def speech(seconds: float, count: int) -> list[list[float]]:
    """Return stretches of the synthetic voices in the package's demo, 16 kHz, each from another place."""
    with tarfile.open(DEMO) as archive:
        names = sorted(name for name in archive.getnames() if name.startswith("act-da/") and name.endswith(".flac"))
        files = [archive.extractfile(name) for name in names]
        joined = np.concatenate([soundfile.read(io.BytesIO(file.read()))[0] for file in files if file is not None])
    samples = round(seconds * RATE)
    whole = np.resize(joined, len(joined) + samples)
    starts = np.linspace(0, len(joined), count, endpoint=False).astype(int)
    return [np.round(whole[start : start + samples], 5).tolist() for start in starts]


def measure(arguments: argparse.Namespace) -> list[dict[str, str]]:
    """One row for each number of callers.

    Raises:
        MissingError: the program is not available.
        RuntimeError: it failed; says what it said.
    """
    program, environment = installed()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        inputs, table = Path(folder) / "inputs.json", Path(folder) / "table.csv"
        clips = speech(arguments.seconds, 4)
        utterances = [{"audio": {"content": clip, "shape": [len(clip)]}} for clip in clips]
        inputs.write_text(json.dumps({"data": utterances}), encoding="utf-8")
        for callers in arguments.concurrency:
            command = [
                str(program), "-m", arguments.model, "-i", "grpc", "-u", arguments.server, "--input-data", str(inputs),
                "--concurrency-range", str(callers), "-p", str(arguments.window_ms), "-s", str(arguments.stability),
                "--verbose-csv", "-f", str(table),
            ]  # fmt: skip
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"perf_analyzer exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
            with table.open(encoding="utf-8") as file:
                rows += list(csv.DictReader(file))
    return rows


def markdown(rows: list[dict[str, str]]) -> str:
    """Return the relevant columns; times in milliseconds."""
    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS)]
    for row in rows:
        callers, rate, *microseconds = (row[name] for name in COLUMNS)
        lines.append([callers, f"{float(rate):.1f}", *(f"{float(value) / 1000:.1f}" for value in microseconds)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", help="HOST:PORT of gRPC")
    parser.add_argument("model", help="a variant")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16], help="callers at once")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of an utterance")
    parser.add_argument("--window-ms", type=int, default=2000, help="length of a measurement")
    parser.add_argument("--stability", type=float, default=20, help="percent by which three measurements may differ")
    try:
        print(markdown(measure(parser.parse_args())))
    except MissingError as error:
        print(f"perf_analyzer is not available: {error}", file=sys.stderr)
        return MISSING
    return 0


if __name__ == "__main__":
    sys.exit(main())
