"""Act as Kubernetes' kubelet on a rendered Deployment: start the container's process, probe it, and stop it.

There is no container: the process is that of the image's entrypoint with the manifest's arguments and environment.
Ports and mounted folders are replaced by free ones, and all durations are shortened by one factor. Where it is allowed
(root on Linux), the process has a read-only file system but for its `/tmp`, and no capabilities.
"""

import ast
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.conftest import ROOT

# Arguments whose value is a duration.
DURATIONS = ("--lame-duck-seconds", "--drain-seconds", "--watch")
# Runs a command with everything but one folder read-only, and without capabilities.
CONFINED = """
mount --bind "$1" "$1" && mount -o remount,bind,ro / && shift &&
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""


def confining(writable: Path) -> list[str]:
    """Return a command before that of a process to confine it; empty where that is not allowed."""
    within = ["unshare", "--mount", "--propagation", "private", "sh", "-c", CONFINED, "sh", str(writable)]
    try:
        done = subprocess.run([*within, "true"], capture_output=True, check=False)
    except OSError:
        return []
    return within if done.returncode == 0 else []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def entrypoint() -> list[str]:
    """Return the image's entrypoint, with this interpreter."""
    (found,) = re.findall(r"^ENTRYPOINT (\[.*\])$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    program, *rest = ast.literal_eval(found)
    assert program == "python"
    return [sys.executable, *rest]


def image_environment() -> dict[str, str]:
    """Return the variables that the image sets, but for the PATH."""
    (lines,) = re.findall(r"^ENV (PATH=(?:.*\\\n)*.*)$", (ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    pairs = [part.split("=", 1) for part in lines.replace("\\\n", " ").split()]
    return {name: value for name, value in pairs if name != "PATH"}


class Pod:
    """One pod of a Deployment.

    Args:
        deployment: the manifest.
        mounts: folders by their mount path.
        scale: factor of all durations.

    Attributes:
        ready: whether the readiness probe succeeds, and the pod is not being deleted.
        events: what happened, in order: `started`, `ready`, `not ready`, `SIGTERM`, `SIGKILL`, `unhealthy`.
    """

    def __init__(self, deployment: Mapping[str, Any], mounts: Mapping[str, Path], scale: float) -> None:
        spec = deployment["spec"]["template"]["spec"]
        (self._container,) = spec["containers"]
        self._grace_s = spec["terminationGracePeriodSeconds"] * scale
        self._scale = scale
        self._mounts = mounts
        self._ports = {each["name"]: free_port() for each in self._container["ports"]}
        self._numbers = {each["containerPort"]: self._ports[each["name"]] for each in self._container["ports"]}
        self._lock = threading.Lock()
        self._deleted = False
        self.ready = False
        self.events: list[str] = []
        self.output: list[str] = []
        assert {each["mountPath"] for each in self._container["volumeMounts"]} == set(mounts)
        environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        environment |= image_environment() | {"TMPDIR": str(mounts["/tmp"]), "OMP_NUM_THREADS": "1"}  # noqa: S108
        environment |= {each["name"]: each["value"] for each in self._container.get("env", ())}
        within = confining(mounts["/tmp"]) if self._container["securityContext"]["readOnlyRootFilesystem"] else []  # noqa: S108
        self.process = subprocess.Popen(
            [*within, *entrypoint(), *map(self._argument, self._container["args"])],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._read, self._probe)]
        for thread in self._threads:
            thread.start()

    @property
    def address(self) -> str:
        """Return where the pod's gRPC port is."""
        return f"127.0.0.1:{self._ports['grpc']}"

    @property
    def http(self) -> str:
        """Return where the pod's HTTP port is."""
        return f"127.0.0.1:{self._ports['http']}"

    def delete(self) -> int:
        """Delete the pod as the kubelet does, and return the exit status of its process."""
        self._deleted = True
        self._set_ready(False)
        deadline = time.monotonic() + self._grace_s
        time.sleep(
            self._container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0) * self._scale
        )
        self._note("SIGTERM")
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._note("SIGKILL")
            self.process.kill()
            return self.process.wait()

    def close(self) -> None:
        """End the process, whatever its state, and what watches it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(10)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _argument(self, text: str) -> str:
        flag, _, value = text.partition("=")
        if flag in DURATIONS:
            return f"{flag}={float(value) * self._scale:g}"
        if value.isdigit() and int(value) in self._numbers and flag.endswith("port"):
            return f"{flag}={self._numbers[int(value)]}"
        for path, folder in self._mounts.items():
            if value == path or value.startswith(f"{path}/"):
                return f"{flag}={folder}{value.removeprefix(path)}"
        assert not value.startswith("/"), f"{text} is in no mounted folder"
        return text

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.output += self.process.stdout

    def _probe(self) -> None:
        """Run the three probes: nothing else before the startup probe succeeds, and no liveness of a deleted pod."""
        failures = {"startupProbe": 0, "livenessProbe": 0, "readinessProbe": 0}
        due = dict.fromkeys(failures, 0.0)
        started = False
        while self.process.poll() is None:
            time.sleep(0.02)
            for name in list(failures):
                probe = self._container[name]
                waits = started if name == "startupProbe" else not started
                if waits or time.monotonic() < due[name] or (self._deleted and name != "readinessProbe"):
                    continue
                good = self._succeeds(probe)
                due[name] = time.monotonic() + probe["periodSeconds"] * self._scale
                failures[name] = 0 if good else failures[name] + 1
                if good and name == "startupProbe":
                    started = True
                    self._note("started")
                failed = failures[name] >= probe["failureThreshold"]
                if name == "readinessProbe" and (good or failed):
                    self._set_ready(good)
                elif failed and not self._deleted:
                    self._note("unhealthy")

    def _succeeds(self, probe: Mapping[str, Any]) -> bool:
        # Not shortened, as the machine is not faster.
        seconds = float(probe["timeoutSeconds"])
        if "grpc" in probe:
            port = self._numbers[probe["grpc"]["port"]]
            request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
            with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
                try:
                    answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=seconds)
                except grpc.RpcError:
                    return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
        page = probe["httpGet"]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[page['port']]}{page['path']}", timeout=seconds):
                return True
        except OSError:
            return False

    def _set_ready(self, ready: bool) -> None:
        with self._lock:
            ready = ready and not self._deleted
            if ready != self.ready:
                self.ready = ready
                self.events.append("ready" if ready else "not ready")

    def _note(self, event: str) -> None:
        with self._lock:
            self.events.append(event)
