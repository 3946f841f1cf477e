"""Good callers beside hostile ones, in processes of their own: what the good ones notice, and what the server survives.

    python -m benchmarks.hostile BUNDLES --minutes 20 [--files DIR] [--out FILE]

Good callers identify speech of 1 to 6 s every 0.2 s with a deadline of 10 s, half of it as FLAC. Hostile ones send
files with changed bytes and sizes (of `--files` as well), dear FLAC, compressed and oversized messages, samples that
are not finite, streams that trickle or stop, connections that say nothing, calls that are cancelled or have no time.

Printed: the good callers' statuses and latency; the hostile ones' statuses by kind; calls that were answered later than
their deadline allows ("hangs"); memory; restarts of decoders and of the server. Exits with 1 where a good call failed
other than by load, a call was answered INTERNAL or hung, or the server ended.
"""

import argparse
import io
import json
import multiprocessing
import multiprocessing.synchronize
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import soundfile
from grpc_health.v1 import health_pb2

from benchmarks.environment import environment
from benchmarks.soak import resident_mb
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.protos.speakerlens.v1.identification_pb2_grpc import SpeakerIdentificationStub
from tests.serving.harness import ServerProcess, talk

RATE, SECONDS, HOSTILE_SECONDS, GRACE_SECONDS = 16_000, 10.0, 20.0, 3.0
GOOD, HOSTILE = 2, 3
BY_LOAD = ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
SIZES = (0, 1, 3, 7, 8, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFF0, 0xFFFF_FFF8, 0xFFFF_FFFF)
IDENTIFY = "/speakerlens.v1.SpeakerIdentification/Identify"
HEALTH = "/grpc.health.v1.Health/Check"
Record = tuple[str, str, float, float]
"""Kind of call, status, seconds it took, and seconds it was allowed."""


class Caller:
    """A connection, and files to send.

    Args:
        address: HOST:PORT.
        seed: of the random choices.
        files: contents of files to change.
    """

    def __init__(self, address: str, seed: int, files: list[bytes]) -> None:
        self.address = address
        self.rng = random.Random(seed)  # noqa: S311
        self.minute = talk(60.0, RATE, seed)
        self.files = [
            *files,
            *(_file(self.minute[:RATE], form) for form in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF")),
        ]
        self.dear = _file(np.tile(self.minute[: 2 * RATE, None], (12, 8)), "FLAC", 192_000)
        self.channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
        self.stub = SpeakerIdentificationStub(self.channel)

    def speech(self, seconds: float) -> "np.ndarray[Any, np.dtype[np.float32]]":
        """Return speech of that length, float32 [samples]."""
        start = self.rng.randrange(len(self.minute) - round(seconds * RATE))
        return self.minute[start : start + round(seconds * RATE)]

    def send(self, audio: pb.Audio, timeout: float = HOSTILE_SECONDS) -> None:
        """Identify audio."""
        self.stub.Identify(pb.IdentifyRequest(audio=audio), timeout=timeout)


def changed_bytes(caller: Caller) -> None:
    """Send a file of which some bytes are changed, cut or repeated."""
    content = bytearray(caller.rng.choice(caller.files))
    for _ in range(caller.rng.randint(1, 20)):
        content[caller.rng.randrange(len(content))] = caller.rng.randrange(256)
    if caller.rng.random() < 0.3:
        del content[caller.rng.randrange(len(content)) :]
    if caller.rng.random() < 0.1:
        content *= 2
    caller.send(pb.Audio(encoded=bytes(content)))


def changed_sizes(caller: Caller) -> None:
    """Send a file in whose first bytes one to three sizes are false."""
    content = bytearray(caller.rng.choice(caller.files))
    for _ in range(caller.rng.randint(1, 3)):
        place = 4 * caller.rng.randrange(1, max(2, min(len(content), 400) // 4))
        content[place : place + 4] = caller.rng.choice(SIZES).to_bytes(4, caller.rng.choice(["little", "big"]))
    caller.send(pb.Audio(encoded=bytes(content)))


def dear_file(caller: Caller) -> None:
    """Send a file that is cheap to send and dear to decode."""
    caller.send(pb.Audio(encoded=caller.dear))


def compressed(caller: Caller) -> None:
    """Send zeros that compress a thousandfold."""
    raw = pb.RawAudio(samples=bytes(3_500_000), format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=RATE)
    caller.stub.Identify(
        pb.IdentifyRequest(audio=pb.Audio(raw=raw)), timeout=HOSTILE_SECONDS, compression=grpc.Compression.Gzip
    )


def oversized(caller: Caller) -> None:
    """Ask health with 100 KB, or send 40 MB."""
    if caller.rng.random() < 0.8:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = caller.channel.unary_unary(HEALTH)
        call(health_pb2.HealthCheckRequest(service="x" * 100_000).SerializeToString(), timeout=HOSTILE_SECONDS)
    else:
        caller.send(pb.Audio(encoded=bytes(40_000_000)))


def not_audio(caller: Caller) -> None:
    """Send samples that are not finite, silent, out of scale, or a wrong rate."""
    samples = caller.speech(2.0).copy()
    rate = caller.rng.choice([RATE, RATE, 0, -5, 2**31 - 1])
    samples[caller.rng.randrange(len(samples))] = caller.rng.choice([np.nan, np.inf, 1e30, 0.0])
    raw = pb.RawAudio(samples=samples.tobytes(), format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=rate)
    caller.send(pb.Audio(raw=raw))


def garbage(caller: Caller) -> None:
    """Send bytes that are not a message."""
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = caller.channel.unary_unary(IDENTIFY)
    call(caller.rng.randbytes(caller.rng.randint(1, 5000)), timeout=HOSTILE_SECONDS)


def trickle(caller: Caller) -> None:
    """Stream a few bytes at a time, then stop without closing."""

    def parts() -> Iterator[pb.IdentifyStreamRequest]:
        yield pb.IdentifyStreamRequest(start=pb.StreamStart(format=pb.SAMPLE_FORMAT_INT16, sample_rate=RATE))
        for _ in range(40):
            time.sleep(0.02)
            yield pb.IdentifyStreamRequest(samples=caller.rng.randbytes(caller.rng.randint(1, 9)))
        time.sleep(1.0)

    list(caller.stub.IdentifyStream(parts(), timeout=HOSTILE_SECONDS))


def silent_connections(caller: Caller) -> None:
    """Open connections that say nothing, and leave them."""
    channels = [grpc.insecure_channel(caller.address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(20)]
    for channel in channels:
        channel.subscribe(lambda _: None, try_to_connect=True)
    time.sleep(0.5)
    for channel in channels:
        channel.close()


def hurried(caller: Caller) -> None:
    """Ask for maps of a long recording with hardly any time, or give up at once."""
    audio = pb.Audio(encoded=_file(caller.speech(30.0), "FLAC"))
    request = pb.IdentifyRequest(audio=audio, explain=pb.ExplainOptions())
    if caller.rng.random() < 0.5:
        caller.stub.Identify(request, timeout=caller.rng.uniform(0.001, 0.2))
    else:
        call = caller.stub.Identify.future(request, timeout=HOSTILE_SECONDS)
        time.sleep(caller.rng.uniform(0, 0.1))
        call.cancel()


ATTACKS: tuple[tuple[Callable[[Caller], None], int], ...] = (
    (changed_bytes, 30),
    (changed_sizes, 30),
    (dear_file, 4),
    (compressed, 6),
    (oversized, 4),
    (not_audio, 8),
    (garbage, 6),
    (trickle, 4),
    (silent_connections, 2),
    (hurried, 8),
)


def attack(
    address: str, seed: int, files: list[bytes], end: multiprocessing.synchronize.Event, out: "Queue[Record]"
) -> None:
    """Make hostile calls until the end."""
    caller = Caller(address, seed, files)
    calls, weights = zip(*ATTACKS, strict=True)
    while not end.is_set():
        (call,) = caller.rng.choices(calls, weights)
        out.put(_timed(call.__name__, HOSTILE_SECONDS, partial(call, caller)))


def behave(address: str, seed: int, end: multiprocessing.synchronize.Event, out: "Queue[Record]") -> None:
    """Identify speech until the end."""
    caller = Caller(address, 1000 + seed, [])
    while not end.is_set():
        samples = caller.speech(caller.rng.uniform(1.0, 6.0))
        if caller.rng.random() < 0.5:
            audio = pb.Audio(encoded=_file(samples, "FLAC"))
        else:
            raw = pb.RawAudio(samples=samples.tobytes(), format=pb.SAMPLE_FORMAT_FLOAT32, sample_rate=RATE)
            audio = pb.Audio(raw=raw)
        out.put(_timed("good", SECONDS, partial(caller.send, audio, SECONDS)))
        time.sleep(0.2)


def _timed(kind: str, allowed: float, call: Callable[[], None]) -> Record:
    started = time.monotonic()
    try:
        call()
        status = "OK"
    except grpc.RpcError as error:
        status = error.code().name
    return kind, status, time.monotonic() - started, allowed


def _file(samples: "np.ndarray[Any, np.dtype[np.float32]]", form: str, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=form)
    return buffer.getvalue()


def main() -> int:
    """Run; return 0 if the server stood it, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, help="folder of bundles")
    parser.add_argument("--minutes", type=float, default=20.0, help="(default: %(default)g)")
    parser.add_argument("--files", type=Path, metavar="DIR", help="further files to change; may be nested")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures as JSON")
    arguments = parser.parse_args()
    files = (
        [each.read_bytes() for each in sorted(arguments.files.rglob("*")) if each.is_file()] if arguments.files else []
    )
    with tempfile.TemporaryDirectory() as folder:
        server = ServerProcess(arguments.bundles, "--log-level=error", f"--speakers={folder}/speakers.sqlite")
        try:
            records, memory = run(server, 60 * arguments.minutes, [each for each in files if each])
            alive = server.process.poll() is None
            metrics = server.metrics() if alive else {}
        finally:
            server.channel.close()
            status = server.stop(timeout=60)
    figures = {**environment(), "minutes": arguments.minutes, **summary(records, memory, metrics)}
    figures |= {"server_alive": alive, "server_exit": status, "errors_in_log": server.log.count(" ERROR ")}
    print(json.dumps(figures, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return int(bool(not alive or status or figures["hangs"] or figures["internal"] or figures["good_failed"]))


def run(server: ServerProcess, seconds: float, files: list[bytes]) -> tuple[list[Record], list[float]]:
    """Return what the callers recorded, and the server's resident memory in MB every second."""
    context = multiprocessing.get_context("spawn")
    end, out = context.Event(), context.Queue()
    address = server.ready["grpc"]
    processes = [context.Process(target=attack, args=(address, seed, files, end, out)) for seed in range(HOSTILE)]
    processes += [context.Process(target=behave, args=(address, seed, end, out)) for seed in range(GOOD)]
    for process in processes:
        process.start()
    records: list[Record] = []
    memory: list[float] = []
    started = time.monotonic()
    while time.monotonic() - started < seconds and server.process.poll() is None:
        time.sleep(1.0)
        memory.append(resident_mb(server.process.pid))
        while not out.empty():
            records.append(out.get())
    end.set()
    deadline = time.monotonic() + HOSTILE_SECONDS + GRACE_SECONDS
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
        while not out.empty():
            records.append(out.get())
    for process in processes:
        process.kill()
    return records, memory


def summary(records: list[Record], memory: list[float], metrics: dict[str, float]) -> dict[str, Any]:
    """Return the figures."""
    good = [record for record in records if record[0] == "good"]
    answered = sorted(seconds for _, status, seconds, _ in good if status == "OK")
    quarter = max(1, len(memory) // 4)
    return {
        "calls": len(records),
        "good": dict(Counter(status for _, status, _, _ in good)),
        "good_failed": sum(status not in ("OK", *BY_LOAD) for _, status, _, _ in good),
        "good_p50_s": round(statistics.median(answered), 3) if answered else None,
        "good_p99_s": round(answered[int(0.99 * (len(answered) - 1))], 3) if answered else None,
        "hostile": {
            kind: dict(Counter(status for each, status, _, _ in records if each == kind))
            for kind in sorted({kind for kind, *_ in records} - {"good"})
        },
        "internal": sum(status in ("INTERNAL", "UNKNOWN") for _, status, _, _ in records),
        "hangs": sum(seconds > allowed + GRACE_SECONDS for _, _, seconds, allowed in records),
        "memory_mb": {
            "second_quarter": round(statistics.median(memory[quarter : 2 * quarter] or memory), 1),
            "last_quarter": round(statistics.median(memory[-quarter:]), 1),
            "most": round(max(memory), 1),
        },
        "decoder_restarts": sum(
            value for name, value in metrics.items() if name.startswith("speakerlens_decoder_restarts_total")
        ),
    }


if __name__ == "__main__":
    sys.exit(main())
