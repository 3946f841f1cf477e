"""Build the image, run it as a cluster would, and compare its answers with the same bundle served here.

    make image-test
    python -m deploy.image.check --bundles DIR --out build/image.json

Fails unless: the process is user 10001 without capabilities, and can write to /tmp alone; standard output is one line
of JSON, and so is each line of the log; answers and maps are those of a server outside; the health check succeeds while
it serves, costs little and fails after SIGTERM; SIGTERM ends it with status 0; the layers beyond the base have at most
150 MB; a second build of the same sources, without a cache, gives the same files. Both builds read one copy of the
sources, so that files may change meanwhile.
"""

import argparse
import datetime
import json
import os
import platform
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from deploy.image import builder
from deploy.image.container import USER, Container, rights
from deploy.image.sbom import ROOT, version
from speakerlens import Identification, SpeakerClient
from speakerlens.demo import unpack

DEMO = Path("build/demo/bundles")
MEGABYTE = 1e6
MOST_MB = 150.0
MOST_HEALTH_SECONDS = 0.1
START_SECONDS, STOP_SECONDS, CALL_SECONDS = 600.0, 60.0, 120.0
# The same code and graphs on the same processor, with the versions of the lock here and there.
TOLERANCE = 1e-5
HOME = "/opt/speakerlens"
HEALTH = (
    "import resource, subprocess, sys\n"
    "done = subprocess.run(sys.argv[1:], capture_output=True)\n"
    "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
    "print(done.returncode, used.ru_utime + used.ru_stime)\n"
)


def main() -> int:
    """Build, check, print and write the record; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bundles",
        metavar="DIR",
        type=Path,
        help="folder of <variant>/<version> (default: build/demo/bundles, else those of `speakerlens demo`)",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, default=Path("build/image.json"))
    parser.add_argument("--gpu", action="store_true", help="build the gpu image as well: some gigabytes")
    parser.add_argument("--once", action="store_true", help="no second build")
    arguments = parser.parse_args()
    bundles = arguments.bundles or (DEMO if DEMO.exists() else unpack())
    if not list(bundles.glob("*/*/bundle.json")):
        print(f"error: {bundles}: no bundle there; expected <variant>/<version>/bundle.json", file=sys.stderr)
        return 2
    try:
        with tempfile.TemporaryDirectory() as sources:
            report = check(bundles, Path(sources), gpu=arguments.gpu, twice=not arguments.once)
    except builder.BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    for line in report["failed"]:
        print(f"failed: {line}")
    print(f"{arguments.out}: {len(report['failed'])} checks failed")
    return 1 if report["failed"] else 0


def check(bundles: Path, sources: Path, *, gpu: bool, twice: bool) -> dict[str, Any]:
    """Return the record of the images, which are built from a copy of the sources in an empty folder."""
    failed: list[str] = []
    report: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load average": [round(load, 1) for load in os.getloadavg()],
        "program": builder.program(),
        "base": builder.base_image(),
        "bundles": sorted(str(file.parent.relative_to(bundles)) for file in bundles.glob("*/*/bundle.json")),
        "failed": failed,
    }
    _report(report, "sources", builder.frozen(sources))

    def insist(holds: bool, what: str) -> None:
        if not holds:
            failed.append(what)

    tag = "speakerlens:cpu"
    started = time.monotonic()
    builder.build("cpu", tag, sources=sources)
    report["seconds to build"] = round(time.monotonic() - started, 1)
    _report(report, "cpu", sizes(tag))
    beyond = report["cpu"]["beyond the base, MB"]
    insist(beyond <= MOST_MB, f"{beyond:.1f} MB beyond the base, more than {MOST_MB:.0f}")
    labels = builder.config(tag)["Labels"]
    insist(labels.get("org.opencontainers.image.version") == version(), f"labels: {labels}")
    with Container(tag, bundles) as container:
        found = rights(container)
        _report(report, "rights", found)
        insist(found["uid"] == USER, f"the user is {found['uid']}, not {USER}")
        insist(set(found["capabilities"]) == {"0" * 16}, f"capabilities: {found['capabilities']}")  # type: ignore[call-overload]
        insist(found["writable"] == ["/tmp"], f"writable: {found['writable']}")  # noqa: S108
        packages = json.loads(container.run("cat", f"{HOME}/sbom.cdx.json"))["components"]
        _report(report, "packages in the bill of materials", len(packages))
        _report(report, "running", running(container, bundles, insist))
    if twice:
        again = "speakerlens:again"
        builder.build("cpu", again, "--no-cache", sources=sources)
        one, two = builder.files(tag, HOME), builder.files(again, HOME)
        different = sorted(path for path in one.keys() | two.keys() if one.get(path) != two.get(path))
        same = builder.digests(tag) == builder.digests(again)
        found = {"all": len(one), "different": len(different), "such as": different[:20], "layers are the same": same}
        _report(report, "files of two builds", found)
        insist(same or builder.program() == "docker", "the layers of two builds differ in order, owners or times")
        insist(not different, f"{len(different)} files differ between two builds, such as {different[:3]}")
    if gpu:
        builder.build("gpu", "speakerlens:gpu", sources=sources)
        _report(report, "gpu", sizes("speakerlens:gpu"))
    return report


def _report(report: dict[str, Any], name: str, found: object) -> None:
    report[name] = found
    print(f"{name}: {json.dumps(found)}", flush=True)


def sizes(tag: str) -> dict[str, Any]:
    """Return the size of each layer, and of those that are not the base's, in MB."""
    all_layers = builder.layers(tag)
    base = len(builder.layers(builder.base_image()))
    return {
        "layers, MB": [round(size / MEGABYTE, 1) for _, size in all_layers],
        "beyond the base, MB": round(sum(size for _, size in all_layers[base:]) / MEGABYTE, 1),
    }


def running(container: Container, bundles: Path, insist: Any) -> dict[str, Any]:
    """Return the figures of a server in the container: start, answers, health check, end."""
    port, metrics_port = free_port(), free_port()
    flags = [f"--port={port}", f"--metrics-port={metrics_port}", "--log-format=json", "--probe-seconds=0"]
    flags += ["--host=127.0.0.1", "--metrics-host=127.0.0.1", "--lame-duck-seconds=2"]
    started = time.monotonic()
    process = container.start(*flags)
    try:
        line = _first_line(process)
        ready = round(time.monotonic() - started, 2)
        insist(json.loads(line).get("ready") is True, f"the first line on stdout is {line!r}")
        audio = example(bundles)
        with SpeakerClient(f"127.0.0.1:{port}", timeout=CALL_SECONDS) as client:
            answer = client.identify(audio, rate=16_000, explain=True)
        difference = compared(answer, outside(bundles, audio))
        insist(difference <= TOLERANCE, f"answers differ from those of a server outside by {difference:.1e}")
        command = _health_command(container.config, container.environment, metrics_port, port)
        status, seconds = container.run("python", "-c", HEALTH, *command).split()
        insist(status == "0", "the health check fails while the server serves")
        insist(float(seconds) <= MOST_HEALTH_SECONDS, f"a health check takes {seconds} s of processor time")
        process.send_signal(signal.SIGTERM)
        stopped = time.monotonic()
        time.sleep(0.5)
        late, _ = container.run("python", "-c", HEALTH, *command).split()
        insist(late != "0", "the health check succeeds after SIGTERM")
        out, log = process.communicate(timeout=STOP_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    insist(process.returncode == 0, f"after SIGTERM the exit status is {process.returncode}")
    insist(out == "", f"more on stdout than one line: {out[:200]!r}")
    strange = [each for each in log.splitlines() if not _is_json(each)]
    insist(not strange, f"lines of the log are no JSON: {strange[:3]}")
    return {
        "seconds to ready": ready,
        "largest difference to a server outside": difference,
        "health check, processor seconds": float(seconds),
        "seconds to stop, 2 of them the lame duck's": round(time.monotonic() - stopped, 2),
    }


def _health_command(config: dict[str, Any], environment: list[str], metrics_port: int, port: int) -> list[str]:
    """Return the image's health check, for other ports than the image's."""
    kind, *command = config["Healthcheck"]["Test"]
    assert kind == "CMD", "a shell would cost more"
    assert "SPEAKERLENS_METRICS_HOST=0.0.0.0" in environment
    return ["env", f"SPEAKERLENS_METRICS_PORT={metrics_port}", f"SPEAKERLENS_PORT={port}", *command]


def outside(bundles: Path, audio: NDArray[np.float32]) -> Identification:
    """Return the answer of a server in this environment."""
    command = [sys.executable, "-m", "speakerlens.serving", f"--bundles={bundles}", "--port=0", "--metrics-port=0"]
    process = subprocess.Popen(
        [*command, "--probe-seconds=0", "--device=cpu"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("SPEAKERLENS_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        with SpeakerClient(json.loads(_first_line(process))["grpc"], timeout=CALL_SECONDS) as client:
            return client.identify(audio, rate=16_000, explain=True)
    finally:
        process.terminate()
        process.communicate(timeout=STOP_SECONDS)


def example(bundles: Path) -> NDArray[np.float32]:
    """Return an utterance of a bundle, or noise if it has none: float32 [samples] at 16 kHz."""
    for file in sorted(bundles.glob("*/*/utterances/*.flac")):
        samples: NDArray[np.float32] = soundfile.read(file, dtype="float32")[0]
        return samples
    return np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)


def compared(one: Identification, other: Identification) -> float:
    """Return the largest difference of two answers' probabilities and, relative to its norm, of a map."""
    assert [each.name for each in one.answers] == [each.name for each in other.answers]
    worst = 0.0
    for left, right in zip(one.answers, other.answers, strict=True):
        wanted = {each.speaker: each.probability for each in right.speakers}
        worst = max(worst, *(abs(each.probability - wanted[each.speaker]) for each in left.speakers))
        assert left.explanation is not None
        assert right.explanation is not None
        for name, plane in right.explanation.maps.items():
            norm = float(np.linalg.norm(plane.values)) or 1.0
            worst = max(worst, float(np.linalg.norm(left.explanation.maps[name].values - plane.values)) / norm)
    return worst


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline() if selector.select(START_SECONDS) else ""
    if not line:
        process.kill()
        raise builder.BuildError(f"the server did not start: {process.communicate()[1][-1500:]}")
    return line


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main())
