"""Start a balancer on the configuration of this folder, with other ports: for tests and benchmarks."""

import contextlib
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.programs import find

FOLDER = Path(__file__).parent
CONFIGURATIONS = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg", "envoy": "envoy.yaml"}
# The ports in the configurations: of the balancer, of the servers, and of their metrics.
FRONT, SERVERS, METRICS = 50050, (50051, 50052, 50053), (8001, 8002, 8003)
START_SECONDS = 60


def command(name: str, program: str, configuration: Path) -> list[str]:
    """Return the command line of a balancer."""
    if name == "nginx":
        return [program, "-p", str(configuration.parent), "-c", str(configuration)]
    if name == "haproxy":
        return [program, "-db", "-f", str(configuration)]
    return [program, "-c", str(configuration), "--log-level", "error", "--concurrency", "1", "--use-dynamic-base-id"]


def configured(name: str, ports: Mapping[int, int], folder: Path) -> Path:
    """Write a balancer's configuration with other ports, and return the file.

    Raises:
        ValueError: the configuration does not use one of the ports.
    """
    text = (FOLDER / CONFIGURATIONS[name]).read_text("utf-8")
    for old in ports:
        if not re.search(rf"\b{old}\b", text) and old not in METRICS:
            raise ValueError(f"{CONFIGURATIONS[name]} does not use port {old}")
    text = re.sub(r"\b\d{4,5}\b", lambda match: str(ports.get(int(match[0]), match[0])), text)
    file = folder / CONFIGURATIONS[name]
    file.write_text(text, "utf-8")
    return file


@contextmanager
def balancing(name: str, servers: Sequence[tuple[int, int]], folder: Path, tools: Path | None = None) -> Iterator[str]:
    """Run a balancer in front of three servers, and yield its address.

    Args:
        name: `nginx`, `haproxy` or `envoy`.
        servers: ports of each server, for gRPC and metrics.
        folder: for its files.
        tools: where the program may lie, besides the PATH.

    Raises:
        FileNotFoundError: the program is not there.
        RuntimeError: it does not start; the message has what it printed.
    """
    program = find(name) if tools is None or not (tools / name).exists() else str(tools / name)
    if program is None:
        raise FileNotFoundError(f"{name} is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        front = int(free.getsockname()[1])
    ports = {FRONT: front}
    for index, (port, metrics) in enumerate(servers):
        ports |= {SERVERS[index]: port, METRICS[index]: metrics}
    file = configured(name, ports, folder)
    output = folder / f"{name}.log"
    with output.open("w") as log:
        process = subprocess.Popen(command(name, program, file), stdout=log, stderr=log)
        try:
            _wait(process, front, output)
            yield f"127.0.0.1:{front}"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(process: "subprocess.Popen[bytes]", port: int, output: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"the balancer does not start:\n{output.read_text()}")
