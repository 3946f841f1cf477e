"""A real server process and a real client, as fixtures want them."""

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub
from tests.serving.forked import ForkedProcess

# As long as a busy machine may need; on a quiet one it starts in a second.
START_SECONDS = 180
CALL_SECONDS = 60
# Ports that are free, and windows long enough for the toy bundles to be slow in one.
# Most tests enrol tones and noise, with networks that tell nothing apart.
OWN_FLAGS = (
    "--port=0",
    "--metrics-port=0",
    "--window-seconds=10",
    "--probe-seconds=0",
    "--enroll-speech-seconds=0",
)


class ServerProcess:
    """`python -m serving` on ports of its own choice; a context manager that insists on a clean end."""

    def __init__(
        self, bundles: Path, *flags: str, wait: bool = True, within: Sequence[str] = (), fresh: bool = False
    ) -> None:
        """Start the server.

        Args:
            bundles: what it serves.
            flags: of the command line, besides `OWN_FLAGS`.
            wait: whether to wait until it serves.
            within: a command that ends by executing the one it is given.
            fresh: whether it has an interpreter of its own, and is not a fork of one with the same imports.
        """
        arguments = ["--bundles", str(bundles), *OWN_FLAGS, *flags]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SPEAKERLENS_")}
        self.process: ForkedProcess | subprocess.Popen[str]
        if fresh or within or not hasattr(os, "fork"):
            self.process = subprocess.Popen(
                [*within, sys.executable, "-m", "serving", *arguments],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        else:
            self.process = ForkedProcess(arguments, environment)
        self.log = ""
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        self.ready = self._read_ready()
        self.channel = grpc.insecure_channel(
            self.ready["grpc"],
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )
        self.stub = SpeakerIdentificationStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def identify(self, request: pb.IdentifyRequest, timeout: float | None = CALL_SECONDS) -> pb.IdentifyResponse:
        return self.stub.Identify(request, timeout=timeout)

    def status(self, service: str = "") -> str:
        answer = self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=CALL_SECONDS)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    def metrics_text(self) -> str:
        with urllib.request.urlopen(self.ready["metrics"], timeout=CALL_SECONDS) as page:  # noqa: S310
            return str(page.read().decode())

    def metrics(self) -> dict[str, float]:
        """Samples by name with labels, as they stand on the page: `name{label="x"}`."""
        pairs = (line.rsplit(" ", 1) for line in self.metrics_text().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def wait_for_metric(self, name: str, least: float, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while self.metrics().get(name, 0) < least:
            assert time.monotonic() < deadline, f"{name} never reached {least}"
            time.sleep(0.01)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 30) -> int:
        """Sends a signal and returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout: float = 30) -> int:
        try:
            status = self.process.wait(timeout)
        finally:
            if self.process.poll() is None:
                self.process.kill()
        self._reader.join(5)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None and not self._reader.is_alive():
                pipe.close()
        return status

    def wait_for_log(self, pattern: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.log):
            assert time.monotonic() < deadline, f"no {pattern!r} in the log:\n{self.log}"
            time.sleep(0.01)

    def _read_ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline() if selector.select(START_SECONDS) else ""
        if not line:
            self.wait(5)
            raise AssertionError(f"the server did not start:\n{self.log}")
        ready: dict[str, Any] = json.loads(line)
        return ready

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if hasattr(self, "channel"):
            self.channel.close()
        status = self.stop()
        assert kind is not None or status == 0, f"exit status {status}:\n{self.log}"


def voice(seconds: float, rate: int = 16_000, seed: int = 0) -> NDArray[np.float32]:
    """Something that is not silence: tones with noise, float32 [samples]."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * rate)) / rate
    tones = sum(np.sin(2 * np.pi * frequency * time_s) for frequency in rng.uniform(100, 1500, 5))
    samples: NDArray[np.float32] = (0.08 * tones + 0.02 * rng.normal(size=len(time_s))).astype(np.float32)
    return samples


def talk(seconds: float, rate: int = 16_000, seed: int = 0) -> NDArray[np.float32]:
    """What counts as speech: four syllables a second, of harmonics of a wandering pitch, float32 [samples]."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * rate)) / rate
    pitch = rng.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * 0.7 * time_s))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    harmonics = sum(rng.uniform(0.2, 1) / order * np.sin(order * phase) for order in range(1, 8))
    syllables = np.clip(np.sin(2 * np.pi * 4 * time_s), 0, 1)
    samples: NDArray[np.float32] = (0.1 * harmonics * syllables + 1e-3 * rng.normal(size=len(time_s))).astype(
        np.float32
    )
    return samples


def raw(samples: NDArray[np.float32], rate: int = 16_000, channels: int = 1) -> pb.Audio:
    """Float samples as a message."""
    return pb.Audio(
        raw=pb.RawAudio(
            samples=samples.astype("<f4").tobytes(),
            format=pb.SAMPLE_FORMAT_FLOAT32,
            sample_rate=rate,
            channels=channels,
        )
    )


def plane(message: pb.Plane) -> NDArray[np.float32]:
    """The values of a plane, [rows, columns], as the contract says to read them."""
    if message.encoding == pb.ENCODING_UINT8:
        steps = np.frombuffer(message.values, np.uint8).astype(np.float32)
        values = steps * np.float32(message.scale) + np.float32(message.offset)
    else:
        values = np.frombuffer(message.values, "<f4")
    return values.reshape(message.rows, message.columns)
