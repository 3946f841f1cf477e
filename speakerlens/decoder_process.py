"""The program of the decoder's processes: here alone libsndfile and FFmpeg read bytes of strangers.

The pool (`speakerlens.decoder_pool`) starts one template process, which imports the libraries and then only forks. Each
fork is a worker: it gives up its rights, and decodes one file at a time for as long as the pool keeps it. Messages are
packets on a Unix socket, JSON; files come as descriptors beside them; samples go through memory that the pool maps too.

The program is started by its path, with the interpreter alone; it imports nothing of the project.
"""

import ctypes
import importlib
import io
import json
import os
import pkgutil
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from functools import cache
from mmap import mmap
from typing import Any, Protocol

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

SHARED_SAMPLES = 2**19
"""Samples, float32, that fit into the memory shared with the pool."""
BLOCK_FRAMES = 2**18
"""The most frames decoded in one step."""
PACKET_BYTES = 128 * 1024
"""The largest message in either direction."""

_MEMORY_BYTES = 2**28
_CPU_SECONDS = 3_600
_TIRED_SECONDS = 60.0
_DESCRIPTORS = 16
# libsndfile's count for files that do not state their length.
_UNKNOWN_FRAMES = 2**62
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 38, 22
_ALLOW, _REFUSE = 0x7FFF_0000, 0x0005_0001  # the latter: the call fails with EPERM
# System calls that decoding needs, by machine: memory, the descriptors that are open, time, its own signals, its end.
_CALLS: dict[str, tuple[int, str]] = {
    "x86_64": (
        0xC000_003E,
        "0 1 3 5 7 8 9 10 11 12 13 14 15 17 24 25 28 38 39 44 45 46 47 60 72 98 131 186 202 219 228 229 230 231 262 "
        "271 273 318 334",
    ),
    "aarch64": (
        0xC000_00B7,
        "25 57 62 63 64 67 73 79 80 93 94 98 99 103 113 114 115 124 128 132 134 135 139 165 172 178 206 207 211 212 "
        "214 215 216 222 226 233 278 293",
    ),
}


class RefusedError(Exception):
    """Audio that is not decoded; the message is one sentence, or a part of one that the pool completes."""


class View(io.RawIOBase):
    """The part of a file that a decoder may see, with some bytes replaced.

    A seek to before the beginning stays in place: libsndfile does it if a damaged header says so, and an error in its
    callback prints a stack trace.

    Args:
        descriptor: of the file; stays the caller's.
        start, end: of the part, in bytes.
        patches: offset from `start`, and the bytes there.
    """

    def __init__(self, descriptor: int, start: int, end: int, patches: list[tuple[int, bytes]]) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._start = start
        self._size = end - start
        self._at = 0
        self._head = bytearray(os.pread(descriptor, max((at + len(patch) for at, patch in patches), default=0), start))
        for at, patch in patches:
            self._head[at : at + len(patch)] = patch

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to an offset, or stay in place if it is before the beginning; return the offset."""
        target = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if target >= 0:
            self._at = target
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer as many bytes as there are; return their number."""
        target = memoryview(buffer).cast("B")
        count = max(0, min(len(target), self._size - self._at))
        head = self._head[self._at : self._at + count]
        rest = os.pread(self._descriptor, count - len(head), self._start + self._at + len(head))
        target[: len(head)] = head
        target[len(head) : len(head) + len(rest)] = rest
        self._at += len(head) + len(rest)
        return len(head) + len(rest)


class Decoder(Protocol):
    """A file that is decoded from front to back."""

    rate: int
    channels: int
    frames: int | None
    encoding: str

    def read(self, out: NDArray[np.float32]) -> int:
        """Decode into `out` [frames, channels]; return the number of frames, fewer only at the end."""

    def seek(self, frame: int) -> None:
        """Go to a frame."""


class _Stream(sf.SoundFile):  # type: ignore[misc]
    """A file that soundfile does not seek in after every read, which fails for a FLAC without a length."""

    def seekable(self) -> bool:
        return False


class SndfileDecoder:
    """Decodes by libsndfile."""

    def __init__(self, source: int | View) -> None:
        self._file = _Stream(source, closefd=False)
        self.rate, self.channels = int(self._file.samplerate), int(self._file.channels)
        self.frames = int(self._file.frames) if self._file.frames < _UNKNOWN_FRAMES else None
        self.encoding = str(self._file.subtype)
        self._at = 0

    def read(self, out: NDArray[np.float32]) -> int:
        """Decode into `out` [frames, channels]; return the number of frames, fewer only at the end."""
        count = len(self._file.read(out=out))
        self._at += count
        return count

    def seek(self, frame: int) -> None:
        """Go to a frame; by decoding up to it where libsndfile cannot, as in GSM."""
        if self.frames is not None and super(_Stream, self._file).seekable():
            self._file.seek(frame)
            self._at = frame
        else:
            _skip(self, frame - self._at)


class AvDecoder:
    """Decodes by FFmpeg, the one audio track of a file.

    Args:
        source: the file.
        demuxer: FFmpeg's name of the container; no other is tried.
    """

    def __init__(self, source: View, demuxer: str) -> None:
        av = importlib.import_module("av")
        self._source = source
        self._container = av.open(source, format=demuxer, metadata_errors="ignore")
        tracks = self._container.streams.audio
        if len(tracks) != 1:
            raise RefusedError(f"it has {len(tracks)} audio tracks, and one is expected")
        context = tracks[0].codec_context
        if context is None:
            raise RefusedError("its coding is not known")
        context.thread_count, context.thread_type = 1, "NONE"
        self.encoding = str(context.name).upper()
        self.frames: int | None = None
        self._decoded = self._blocks(self._container.decode(tracks[0]))
        self._rest = next(self._decoded, None)
        if self._rest is None:
            raise RefusedError("its audio track has no samples")
        self._at = 0

    def read(self, out: NDArray[np.float32]) -> int:
        """Decode into `out` [frames, channels]; return the number of frames, fewer only at the end."""
        count = 0
        while count < len(out) and self._rest is not None:
            part = self._rest[: len(out) - count]
            out[count : count + len(part)] = part
            count += len(part)
            self._rest = self._rest[len(part) :] if len(part) < len(self._rest) else next(self._decoded, None)
        self._at += count
        return count

    def seek(self, frame: int) -> None:
        """Go to a frame by decoding up to it, which all codecs do exactly."""
        _skip(self, frame - self._at)

    def _blocks(self, frames: Any) -> Iterator[NDArray[np.float32]]:
        """Yield the samples of FFmpeg's frames, float32 [frames, channels]."""
        self.rate = self.channels = 0
        for frame in frames:
            form = int(frame.sample_rate), len(frame.layout.channels)
            if not self.rate:
                self.rate, self.channels = form
            elif form != (self.rate, self.channels):
                raise RefusedError("its sample rate or number of channels changes")
            samples = frame.to_ndarray()
            columns = samples.T if frame.format.is_planar else samples.reshape(-1, self.channels)
            if columns.dtype == np.uint8:
                yield (columns.astype(np.float32) - 128.0) / 128.0
            elif columns.dtype.kind == "i":
                yield (columns / 2.0 ** (8 * columns.dtype.itemsize - 1)).astype(np.float32)
            else:
                yield columns.astype(np.float32)


def _skip(decoder: Decoder, frames: int) -> None:
    if frames < 0:
        raise RefusedError("it can be read forwards only")
    scratch = np.empty((4096, decoder.channels), np.float32)
    while frames > 0 and (count := decoder.read(scratch[:frames])):
        frames -= count


def _opened(request: dict[str, Any], descriptor: int) -> Decoder:
    patches = [(int(at), bytes.fromhex(patch)) for at, patch in request["patches"]]
    start, end = request["start"], request["end"]
    if request["demuxer"]:
        return AvDecoder(View(descriptor, start, end, patches), request["demuxer"])
    if not patches and (start, end) == (0, os.fstat(descriptor).st_size):
        os.lseek(descriptor, 0, os.SEEK_SET)  # where the pool has stopped writing is not where the file begins
        return SndfileDecoder(descriptor)
    return SndfileDecoder(View(descriptor, start, end, patches))


class Worker:
    """Serves the pool: opens files and decodes them.

    Args:
        channel: to the pool.
        shared: where samples are written.
    """

    def __init__(self, channel: socket.socket, shared: mmap) -> None:
        self._channel = channel
        self._samples = np.frombuffer(shared, np.float32)
        self._decoder: Decoder | None = None
        self._descriptor: int | None = None

    def run(self) -> None:
        """Answer requests until the pool closes the channel; each has its own limit of processor time."""
        while True:
            packet, descriptors, _, _ = socket.recv_fds(self._channel, PACKET_BYTES, 1)
            if not packet:
                return
            request = json.loads(packet)
            signal.setitimer(signal.ITIMER_PROF, request["cpu_seconds"])  # whose signal ends the process
            reply: dict[str, Any] = {}
            try:
                self._answer(request, descriptors, reply)
            except sf.LibsndfileError as error:
                reply["error"] = str(error.error_string)
            except RefusedError as error:
                reply["error"] = str(error)
            except MemoryError:
                reply["error"] = f"it needs more than {_MEMORY_BYTES >> 20} MB of memory"
            except Exception as error:  # noqa: BLE001 - whatever a library raises is about the file
                reply["error"] = str(getattr(error, "strerror", None) or error or type(error).__name__)
            signal.setitimer(signal.ITIMER_PROF, 0)
            reply["tired"] = time.process_time() > _TIRED_SECONDS
            self._channel.send(json.dumps(reply).encode()[:PACKET_BYTES])

    def _answer(self, request: dict[str, Any], descriptors: list[int], reply: dict[str, Any]) -> None:
        """Fill in the reply: the form of a file that was opened, then what was decoded."""
        if descriptors:
            self._decoder = None
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = descriptors[0]
            self._decoder = opened = _opened(request, self._descriptor)
            reply |= {
                "rate": opened.rate,
                "channels": opened.channels,
                "frames": opened.frames,
                "encoding": opened.encoding,
            }
        decoder = self._decoder
        if decoder is None:
            raise RefusedError("no file is open")
        if request["seek"] is not None:
            decoder.seek(request["seek"])
        frames = min(request["read"], BLOCK_FRAMES, SHARED_SAMPLES // decoder.channels)
        if frames:
            out = self._samples[: frames * decoder.channels].reshape(frames, decoder.channels)
            reply["read"] = decoder.read(out)
            reply["end"] = reply["read"] < frames


def give_up_rights(parent: int) -> None:
    """Leave this process no right but to compute: no files, no processes, no network, bounded memory and time.

    Args:
        parent: process with which this one ends.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # which has ended already
        os._exit(0)
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - pathlib is not imported here
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    for limit, most in (
        (resource.RLIMIT_AS, mapped + _MEMORY_BYTES),
        (resource.RLIMIT_CPU, _CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS),
        (resource.RLIMIT_NPROC, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (allowed, allowed))
    architecture, listed = _CALLS.get(os.uname().machine, (0, ""))
    calls = [int(call) for call in listed.split()]
    if not calls:
        return
    # Classic BPF over struct seccomp_data: the number of the call is at byte 0, the architecture at byte 4.
    steps = [(0x20, 0, 0, 4), (0x15, 0, len(calls) + 1, architecture), (0x20, 0, 0, 0)]
    steps += [(0x15, len(calls) - index, 0, call) for index, call in enumerate(calls)]
    steps += [(0x06, 0, 0, _REFUSE), (0x06, 0, 0, _ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    # Old kernels and some sandboxes have no filters: the limits above remain.
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_SECCOMP, 2, program, 0, 0)


def _fork_worker(control: socket.socket, channel: socket.socket, shared: int) -> int:
    """Fork a worker; return its process id. Does not return in the worker."""
    template = os.getpid()
    worker = os.fork()
    if worker:
        return worker
    try:
        control.close()
        memory = mmap(shared, 4 * SHARED_SAMPLES)
        os.close(shared)
        give_up_rights(template)
        Worker(channel, memory).run()
    finally:
        os._exit(0)


@cache
def _import_av() -> None:
    """Import all of PyAV: a worker, which may open no file, cannot import the parts that are imported when used."""
    av = importlib.import_module("av")
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if module.name != "av.__main__":
            importlib.import_module(module.name)


def serve(control: socket.socket) -> None:
    """Fork and end workers as the pool asks, until it closes the socket."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, PACKET_BYTES, 2)
        if not packet:
            return
        request = json.loads(packet)
        reply: dict[str, Any]
        if "end" in request:
            os.kill(request["end"], signal.SIGKILL)
            reply = {"status": os.waitpid(request["end"], 0)[1]}
        else:
            if request["av"]:
                _import_av()
            channel = socket.socket(fileno=descriptors[0])
            try:
                reply = {"worker": _fork_worker(control, channel, descriptors[1])}
            except OSError as error:
                reply = {"error": str(error)}
            channel.close()
            os.close(descriptors[1])
        control.send(json.dumps(reply).encode())


if __name__ == "__main__":
    if sys.argv[3]:
        _import_av()
    serve(socket.socket(fileno=int(sys.argv[2])))
