"""Read audio files: the one reader of server, training and client.

`open_audio` checks the container first (`speakerlens.containers`). WAV files of plain samples are read here; all other
bytes are decoded by libsndfile or FFmpeg in a process of their own with bounded rights, memory and time
(`speakerlens.decoder_process`).
"""

import math
import mmap
import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from speakerlens.chunks import Layout
from speakerlens.containers import has_ffmpeg, layout
from speakerlens.decoder_pool import DecoderStoppedError, StepLimits, Worker, shared_pool
from speakerlens.plain_samples import PlainForm, plain_form
from speakerlens.signatures import CONVERT, HEADER_BYTES, AudioFileError, header_name

__all__ = ["BLOCK_FRAMES", "AudioFileError", "AudioReader", "DecoderStoppedError", "StepLimits", "open_audio"]

BLOCK_FRAMES = 2**16

# Containers that libsndfile reads in part, and FFmpeg's names of them.
_SHARED_CONTAINERS = {"WAV": "wav", "RF64": "wav", "W64": "w64", "AIFF": "aiff", "CAF": "caf", "OGG": "ogg", "AU": "au"}
_VAGUE = ("", "unspecified internal error", "format not recognised", "internal error")
# What libsndfile says, and what it means here.
_MEANINGS = {
    "internal error : sf_info struct incomplete": "its sample rate or number of channels is impossible",
    "file does not exist or is not a regular file (possibly a pipe?)": "too few sound frames, or a wrong count of them",
    "error : unknown error in flac decoder": "its metadata or its frames are damaged",
    "file contains data in an unimplemented format": "its coding is not known",
    "supported file format but file is malformed": "its headers are damaged",
    "error : flac decoder lost sync": "a frame is damaged, or what follows is none",
}


class AudioReader(ABC):
    """An audio file that is decoded block by block; use it as a context, or close it.

    Attributes:
        container: such as "WAV", "FLAC", "M4A".
        encoding: as libsndfile or FFmpeg names it, such as "PCM_16", "VORBIS", "AAC".
        rate: in Hz.
        channels: how many.
        frames: length by the header, or None where it does not say; what is decoded may be shorter or longer.
        missing_frames: frames that the header of a WAV, AIFF, CAF or W64 file promises and the file does not hold.
    """

    container: str
    encoding: str
    rate: int
    channels: int
    frames: int | None
    missing_frames: int

    @abstractmethod
    def read_block(self, frames: int) -> NDArray[np.float32]:
        """Return the next block, float32 [n, channels], full scale 1.0; n is `frames` or less, and 0 at the end only.

        Raises:
            AudioFileError: the file is damaged here, or its decoder was stopped.
        """

    @abstractmethod
    def seek(self, frame: int) -> None:
        """Go to a frame, or to the end where the file is shorter; exact for every format.

        Raises:
            AudioFileError: as for `read_block`.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the file; may be called twice."""

    def read(self, frames: int | None = None) -> NDArray[np.float32]:
        """Return the next frames, float32 [n, channels]; n is less than `frames` only at the end; None: all.

        Raises:
            AudioFileError: as for `read_block`.
        """
        left = math.inf if frames is None else frames
        blocks = [np.empty((0, self.channels), np.float32)]
        while left > 0 and len(block := self.read_block(int(min(left, BLOCK_FRAMES)))):
            blocks.append(block)
            left -= len(block)
        return np.concatenate(blocks)

    def blocks(self, frames: int = BLOCK_FRAMES) -> Iterator[NDArray[np.float32]]:
        """Yield blocks, float32 [n, channels], n at most `frames`, to the end.

        Raises:
            AudioFileError: as for `read_block`.
        """
        while len(block := self.read_block(frames)):
            yield block

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def open_audio(
    source: bytes | str | Path,
    limits: StepLimits | None = None,
    deadline: float | None = None,
    expected: int = 0,
) -> AudioReader:
    """Open an audio file.

    Args:
        source: its content or its path; a pipe is read to its end.
        limits: of each step of the decoder.
        deadline: when the caller gives up, on the clock of `time.monotonic`.
        expected: how many frames will be read at once from the beginning; saves a message to the decoder.

    Raises:
        AudioFileError: the file is not audio, not in a form that is read, damaged, or its decoder was stopped. The
            message is one sentence that says what the file is, or what is wrong with it.
        OSError: the file cannot be read, or the system has no process left to decode it.
    """
    if isinstance(source, bytes):
        if not source:
            raise AudioFileError("empty, not audio")
        return _reader(memoryview(source), None, limits or StepLimits(), deadline, expected)
    descriptor = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return open_audio(Path(source).read_bytes(), limits, deadline, expected)
        if not found.st_size:
            raise AudioFileError("empty, not audio")
        try:
            view = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
        except OSError:  # file systems that map no files
            return open_audio(Path(source).read_bytes(), limits, deadline, expected)
        return _reader(view, descriptor, limits or StepLimits(), deadline, expected)
    finally:
        os.close(descriptor)


def _reader(
    data: memoryview, descriptor: int | None, limits: StepLimits, deadline: float | None, expected: int
) -> AudioReader:
    """Return the reader of a file: its content and, of one on disk, its descriptor, which stays the caller's."""
    found = layout(data)
    form = plain_form(found)
    if form is not None:
        inner = header_name(bytes(data[found.samples : found.samples + HEADER_BYTES]))
        if inner is not None:
            raise AudioFileError(f"{found.container} whose samples are a whole {inner} file: take that out of it")
        if descriptor is not None:
            return PlainReader(found, form, os.dup(descriptor))
        return PlainReader(found, form, data)
    if not hasattr(os, "memfd_create"):
        raise AudioFileError(f"{found.container}, which is decoded on Linux only; {CONVERT}")
    if descriptor is not None:
        return DecodedReader(found, descriptor, limits, deadline, expected)
    copy = os.memfd_create("audio")
    try:
        left = data
        while left:
            left = left[os.write(copy, left) :]
        return DecodedReader(found, copy, limits, deadline, expected)
    finally:
        os.close(copy)


class PlainReader(AudioReader):
    """Reads the samples of a WAV file as they are.

    Args:
        found: where they are.
        form: how they are stored.
        data: the whole file, or its descriptor, which is closed with this object.
    """

    def __init__(self, found: Layout, form: PlainForm, data: memoryview | int) -> None:
        self._data = data
        self._form = form
        self._begin = found.samples
        self._at = 0
        self.container, self.encoding = found.container, form.encoding
        self.rate, self.channels = form.rate, form.channels
        self.frames: int = (found.end - found.samples) // self._form.frame_bytes
        self.missing_frames = found.missing // self._form.frame_bytes

    def read_block(self, frames: int) -> NDArray[np.float32]:
        """Return the next block, float32 [n, channels]; n is less than `frames` only at the end."""
        frames = min(frames, self.frames - self._at)
        width = self._form.frame_bytes
        start, size = self._begin + self._at * width, frames * width
        stored = os.pread(self._data, size, start) if isinstance(self._data, int) else self._data[start : start + size]
        frames = len(stored) // width  # a file may shrink while it is read
        self._at += frames
        return self._form.floats(stored[: frames * width])

    def seek(self, frame: int) -> None:
        """Go to a frame, or to the end."""
        self._at = min(frame, self.frames)

    def close(self) -> None:
        """Let go of the file."""
        data, self._data = self._data, memoryview(b"")
        if isinstance(data, int):
            os.close(data)

    def __del__(self) -> None:
        self.close()


class DecodedReader(AudioReader):
    """Reads a file through a worker of the pool, which it holds until the end of the file.

    Args:
        found: what the decoder may see.
        descriptor: of the file; stays the caller's.
        limits: of each step.
        deadline: when the caller gives up, on the clock of `time.monotonic`.
        expected: frames to decode along with opening.
    """

    def __init__(
        self, found: Layout, descriptor: int, limits: StepLimits, deadline: float | None, expected: int
    ) -> None:
        self.container = found.container
        self._limits = limits
        self._deadline = deadline
        self._found = found
        self._decoded = 0
        self._ended = self._opened = False
        self._worker: Worker | None = None
        opened = self._open(descriptor, expected)
        self._opened = True
        self.rate, self.channels, self.frames = int(opened["rate"]), int(opened["channels"]), opened["frames"]
        self.encoding = str(opened["encoding"])
        self.missing_frames = math.ceil(found.missing / max(1, found.held) * (self.frames or 0))
        self._ready: NDArray[np.float32] | None = self._taken(opened) if expected else None

    def read_block(self, frames: int) -> NDArray[np.float32]:
        """Return the next block, float32 [n, channels]; n is `frames` or less, and 0 at the end only."""
        if self._ready is None and not self._ended:
            self._ready = self._taken(self._ask({"read": frames}))
        ready = np.empty((0, self.channels), np.float32) if self._ready is None else self._ready
        self._ready = ready[frames:] if len(ready) > frames else None
        self._decoded += len(ready[:frames])
        return ready[:frames]

    def seek(self, frame: int) -> None:
        """Go to a frame, or to the end."""
        self._ready = None
        if self.frames is not None and frame >= self.frames:
            self._ended = True
            return
        self._ask({"seek": frame, "read": 0})
        self._decoded = frame

    def close(self) -> None:
        """Return the worker to the pool."""
        worker, self._worker = self._worker, None
        if worker is not None:
            shared_pool().release(worker)

    def __del__(self) -> None:
        self.close()

    def _open(self, descriptor: int, expected: int) -> dict[str, Any]:
        found = self._found
        request = {
            "start": found.start,
            "end": found.end,
            "patches": [(at, patch.hex()) for at, patch in found.patches],
            "demuxer": found.demuxer,
            "read": expected,
        }
        self._worker = shared_pool().acquire(bool(found.demuxer))
        try:
            return self._ask(request, descriptor)
        except DecoderStoppedError:
            raise
        except AudioFileError as error:
            demuxer = _SHARED_CONTAINERS.get(self.container)
            if self._opened or demuxer is None or found.demuxer or not has_ffmpeg():
                raise
            refused = error
        # A coding that libsndfile lacks, such as Opus in CAF.
        self._worker = shared_pool().acquire(av=True)
        try:
            return self._ask({**request, "demuxer": demuxer}, descriptor)
        except DecoderStoppedError:
            raise
        except AudioFileError:
            raise refused from None

    def _ask(self, request: dict[str, Any], descriptor: int | None = None) -> dict[str, Any]:
        worker = self._worker
        if worker is None:
            raise AudioFileError("the file is closed")
        started = time.monotonic()
        left = math.inf if self._deadline is None else self._deadline - started
        reason = "deadline" if left < self._limits.wall_seconds else "time"
        message = {"seek": None, "cpu_seconds": self._limits.cpu_seconds, **request}
        try:
            reply = worker.ask(message, descriptor, min(left, self._limits.wall_seconds))
        except BaseException as error:  # also Ctrl-C: the worker is still busy with this file
            self._worker = None
            shared_pool().stop(worker, reason if isinstance(error, TimeoutError) else "deadline")
            if isinstance(error, TimeoutError):
                raise self._stopped(reason, started) from None
            raise
        if reply is None:
            self._worker = None
            raise self._stopped(shared_pool().stop(worker), started)
        if "error" in reply:
            self.close()
            if "rate" in reply:
                self._opened, self.rate = True, int(reply["rate"])
            raise self._refused(str(reply["error"]))
        return reply

    def _taken(self, reply: dict[str, Any]) -> NDArray[np.float32]:
        """Return the decoded block, float32 [n, channels]; at the end of the file, return the worker to the pool."""
        frames = int(reply["read"])
        worker = self._worker
        assert worker is not None
        block = worker.samples(frames * self.channels).reshape(frames, self.channels)
        if reply["end"]:
            self._ended = True
            self.close()
        return block

    def _stopped(self, reason: str, started: float) -> DecoderStoppedError:
        seconds = time.monotonic() - started
        what = {
            "time": f"after {seconds:.1f} s: this {self.container} takes too long to read",
            "deadline": f"after {seconds:.1f} s, at the deadline of the request",
            "memory": f"as the system's memory was full: this {self.container}, or others beside it, need too much",
            "crash": f"by a fault: this {self.container} is damaged in a way that it does not survive",
        }[reason]
        return DecoderStoppedError(reason, f"the decoder was stopped {what}")

    def _refused(self, reason: str) -> AudioFileError:
        reason = reason.strip().rstrip(".")
        reason = _MEANINGS.get(reason.lower(), reason)
        if self._opened:
            return AudioFileError(f"damaged {self.container} after {self._decoded / self.rate:.2f} s: {reason}")
        library = "audio that FFmpeg" if self._found.demuxer else "that libsndfile"
        said = f": {reason}" if reason.lower() not in _VAGUE else ""
        return AudioFileError(f"{self.container} {library} does not read{said}; {CONVERT}")
