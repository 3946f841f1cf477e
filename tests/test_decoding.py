"""Reading audio files: the same samples as libsndfile gives, and decoders that are ended when they do harm."""

import gc
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

from speakerlens import decoder_pool, decoder_process
from speakerlens.chunks import Layout
from speakerlens.decoder_pool import DecoderPool, shared_pool
from speakerlens.decoding import AudioFileError, DecodedReader, DecoderStoppedError, StepLimits, open_audio
from tests.conftest import ROOT
from tests.serving.fuzz.files import FORMS, whole

FLAC = whole()[FORMS.index(("FLAC", "PCM_16", 16_000, 1))]
# libsndfile follows the size of the sub-chunk back to where it began.
LOOP = (
    b"RIFF\x40\x00\x00\x00WAVELIST\x0c\x00\x00\x00INFOIZZZ\xf8\xff\xff\xff"
    b"fmt \x10\x00\x00\x00\x01\x00\x01\x00\x80\x3e\x00\x00\x00\x7d\x00\x00\x02\x00\x10\x00"
    b"data\x04\x00\x00\x00\x00\x00\x01\x00"
)
PLAIN = ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")


@pytest.fixture
def stops() -> Iterator[list[str]]:
    """The reasons for which workers are ended."""
    reasons: list[str] = []
    shared_pool().subscribe(reasons.append)
    yield reasons
    shared_pool().unsubscribe(reasons.append)


def unchecked(data: bytes, cpu_seconds: float = 1.0, wall_seconds: float = 20.0) -> DecodedReader:
    """Decode bytes as they are, as if the check had not seen what is wrong with them."""
    descriptor = os.memfd_create("test")
    try:
        os.write(descriptor, data)
        return DecodedReader(Layout("WAV", 0, len(data)), descriptor, StepLimits(cpu_seconds, wall_seconds), None, 0)
    finally:
        os.close(descriptor)


def ends(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process ends, or is waited for by its parent."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64", "W64"])
@pytest.mark.parametrize("subtype", PLAIN)
def test_plain_samples_are_those_of_libsndfile(container: str, subtype: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for channels in (1, 3):
        path = tmp_path / "plain.wav"
        sf.write(path, rng.uniform(-1, 1, (1_000, channels)), 11_025, format=container, subtype=subtype)
        expected, _ = sf.read(path, dtype="float32", always_2d=True)
        for source in (path, path.read_bytes()):
            with open_audio(source) as file:
                assert (file.rate, file.channels, file.frames, file.encoding) == (11_025, channels, 1_000, subtype)
                np.testing.assert_array_equal(file.read(), expected)
                file.seek(990)
                np.testing.assert_array_equal(file.read(7), expected[990:997])
                np.testing.assert_array_equal(np.concatenate(list(file.blocks(2))), expected[997:])
                assert file.read(5).shape == (0, channels)


@pytest.mark.parametrize(("data", "form"), list(zip(whole(), FORMS, strict=True)))
def test_part_of_a_file_is_that_of_the_whole(data: bytes, form: tuple[str, ...]) -> None:
    with open_audio(data, expected=1_000) as file:
        samples = file.read()
    expected, _ = sf.read(io.BytesIO(data), dtype="float32", always_2d=True)
    np.testing.assert_array_equal(samples, expected)
    with open_audio(data) as file:
        file.seek(5_000)
        part = file.read(3_000)
    tolerance = 1e-4 if form[0] in ("OGG", "MP3") else 0.0  # of a codec with overlapping blocks
    np.testing.assert_allclose(part, samples[5_000:8_000], atol=tolerance, err_msg=str(form))
    with open_audio(data) as file:
        blocks = list(file.blocks(777))
    assert {len(block) for block in blocks[:-1]} == {777}
    np.testing.assert_array_equal(np.concatenate(blocks), samples)


def test_decoder_that_loops_costs_one_file(stops: list[str]) -> None:
    start = time.monotonic()
    with pytest.raises(DecoderStoppedError, match=r"the decoder was stopped after \d+\.\d s: this WAV takes too long"):
        unchecked(LOOP, cpu_seconds=0.2)
    assert time.monotonic() - start < 10
    assert stops == ["time"]
    with open_audio(FLAC) as file:
        assert len(file.read()) == file.frames


@pytest.mark.parametrize(
    ("number", "reason", "words"),
    [(signal.SIGSEGV, "crash", "by a fault: this FLAC"), (signal.SIGKILL, "memory", "as the system's memory was full")],
)
def test_decoder_that_dies_costs_one_file(stops: list[str], number: int, reason: str, words: str) -> None:
    with open_audio(FLAC) as file:
        assert isinstance(file, DecodedReader)
        assert file._worker is not None
        os.kill(file._worker.pid, number)
        with pytest.raises(DecoderStoppedError, match=words):
            file.read()
    assert stops == [reason]
    with open_audio(FLAC) as file:
        assert len(file.read()) == file.frames


def test_idle_worker_that_was_killed_costs_nothing(stops: list[str]) -> None:
    worker = shared_pool().acquire()
    shared_pool().release(worker)
    os.kill(worker.pid, signal.SIGKILL)
    assert ends(worker.pid)
    with open_audio(FLAC) as file:
        assert len(file.read()) == file.frames
    assert stops == []


@pytest.mark.parametrize(("wall", "left", "reason"), [(0.2, None, "time"), (20.0, 0.2, "deadline")])
def test_decoder_without_an_answer_is_ended(stops: list[str], wall: float, left: float | None, reason: str) -> None:
    deadline = None if left is None else time.monotonic() + left
    limits = StepLimits(wall_seconds=wall)
    with open_audio(FLAC, limits, deadline) as file:
        assert isinstance(file, DecodedReader)
        assert file._worker is not None
        pid = file._worker.pid
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(DecoderStoppedError, match=r"after 0\.\d s") as caught:
            file.read()
    assert caught.value.reason == reason
    assert stops == [reason]
    assert ends(pid)


def test_memory_of_a_decoder_is_bounded(stops: list[str]) -> None:
    """A WAV of 60,000 channels: its buffers, for which libsndfile has a limit of its own, and ours of a block."""
    header = bytearray(LOOP[:12] + LOOP[32:])
    header[22:24], header[32:34] = (60_000).to_bytes(2, "little"), (120_000 % 65_536).to_bytes(2, "little")
    with pytest.raises(AudioFileError):
        unchecked(bytes(header)).read()
    assert stops == []


RIGHTS = """
import os, resource, socket, subprocess, sys, mmap, ctypes
sys.path[:0] = [sys.argv[1]]
import decoder_process
file = os.open(__file__, os.O_RDONLY) if "__file__" in globals() else os.memfd_create("x")
decoder_process.give_up_rights(os.getppid())
def tried(name, action):
    try:
        action()
        print(name, "done")
    except BaseException as error:
        print(name, type(error).__name__)
tried("open", lambda: open("/etc/passwd"))
tried("make", lambda: open("/tmp/x", "w"))
tried("socket", lambda: socket.socket())
tried("fork", lambda: os.fork())
tried("exec", lambda: os.execv("/bin/true", ["true"]))
tried("kill", lambda: os.kill(os.getppid(), 0))
tried("link", lambda: os.link("/etc/passwd", "/tmp/x"))
tried("memory", lambda: mmap.mmap(-1, 2**30))
tried("raise", lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)))
tried("compute", lambda: sum(range(100)))
"""


def test_worker_has_no_rights() -> None:
    command = [sys.executable, "-c", RIGHTS, str(ROOT / "speakerlens")]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    results = dict(line.split() for line in found.splitlines())
    assert results.pop("compute") == "done"
    assert results.pop("memory") == "OSError"
    assert results.pop("raise") in ("ValueError", "PermissionError")
    assert len(results) == 7
    assert set(results.values()) == {"PermissionError"}


def test_worker_holds_no_files_of_its_parent(tmp_path: Path) -> None:
    for _ in range(20):
        with pytest.raises(AudioFileError):
            unchecked(b"RIFF and nothing else")
    with (tmp_path / "secret").open("w") as mine, socket.socket() as listener, open_audio(FLAC) as file:
        os.set_inheritable(mine.fileno(), True)
        os.set_inheritable(listener.fileno(), True)
        assert isinstance(file, DecodedReader)
        assert file._worker is not None
        held = [str(each.readlink()) for each in Path(f"/proc/{file._worker.pid}/fd").iterdir()]
    kinds = sorted(re.sub(r"\[\d+\]| .*", "", each) for each in held)
    assert kinds == ["/dev/null"] * 3 + ["/memfd:audio", "/memfd:samples", "socket:"]


ORPHANS = """
import os, signal, sys
from speakerlens.decoder_pool import shared_pool
pool = shared_pool()
workers = [pool.acquire(), pool.acquire()]
if sys.argv[1] == "loop":
    os.kill(workers[0].pid, signal.SIGSTOP)
print(pool._template.pid, *(worker.pid for worker in workers), flush=True)
if sys.argv[1] != "exit":
    signal.pause()
"""


@pytest.mark.parametrize("how", ["exit", "kill", "loop", "interrupt"])
def test_workers_end_with_their_parent(how: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHANS, how], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    with parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        if how != "exit":
            parent.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGKILL)
        parent.wait(30)
    assert len(pids) == 3
    assert all(ends(pid) for pid in pids)


def test_child_of_a_fork_has_workers_of_its_own() -> None:
    """As the loaders of training; the parent's go on to serve the parent."""
    with open_audio(FLAC) as file:
        half = file.read(4_000)
        child = os.fork()
        if not child:
            try:
                with open_audio(FLAC) as own:
                    os._exit(0 if len(own.read()) == own.frames else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        rest = file.read()
    with open_audio(FLAC) as file:
        np.testing.assert_array_equal(np.concatenate([half, rest]), file.read())


def test_file_that_nothing_refers_to_returns_its_worker() -> None:
    pids = set()
    for _ in range(3):
        file = open_audio(FLAC)
        assert isinstance(file, DecodedReader)
        assert file._worker is not None
        pids.add(file._worker.pid)
        file.cycle = file  # type: ignore[attr-defined]
        del file
        gc.collect()
    assert len(pids) == 1


def test_many_files_open_at_once_and_few_workers_stay() -> None:
    pool = shared_pool()
    files = [open_audio(FLAC) for _ in range(12)]
    lengths = {len(file.read()) for file in files}
    assert len(lengths) == 1
    assert len(pool._free) <= pool.idle
    worker = pool.acquire()
    pool.release(worker)
    assert pool.acquire() is worker, "which has answered is used again"
    pool.release(worker)


def test_pool_starts_again_after_its_template_has_ended(stops: list[str]) -> None:
    pool = DecoderPool()
    first = pool.acquire()
    assert pool._template is not None
    os.kill(pool._template.pid, signal.SIGKILL)
    assert ends(first.pid)
    pool.release(first)
    pool._template.wait()
    second = pool.acquire()
    assert second.pid != first.pid
    pool.release(second)
    pool.close()
    assert ends(second.pid)


def test_ffmpeg_wanted_after_a_first_file_reads_films() -> None:
    """A first file starts the processes without FFmpeg, then a server or a scorer of this process wants it."""
    program = (
        "from tests.test_decoding import FLAC; from tests.test_formats import written;"
        "from speakerlens.decoder_pool import shared_pool; from speakerlens.decoding import open_audio;"
        "first = open_audio(FLAC); shared_pool().start(av=True); open_audio(FLAC).close();"
        "print(len(open_audio(written('aac in mp4')).read()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert int(done.stdout) > 0


def test_ctrl_c_while_a_decoder_hangs_ends_the_program() -> None:
    program = (
        "import sys; from tests.test_decoding import LOOP, unchecked; print(flush=True);"
        "unchecked(LOOP, cpu_seconds=100.0, wall_seconds=100.0)"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    with running:
        assert running.stdout is not None
        running.stdout.readline()
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=10)
    assert "KeyboardInterrupt" in errors


@pytest.mark.parametrize("make", [lambda data: data[: len(data) * 6 // 10], lambda data: data[:9_000] + bytes(2_000)])
def test_damage_is_named_with_its_place(make: Callable[[bytes], bytes]) -> None:
    with pytest.raises(AudioFileError, match=r"^damaged FLAC after \d+\.\d\d s: "), open_audio(make(FLAC)) as file:
        file.read()


def test_both_sides_agree_on_the_shared_memory() -> None:
    assert decoder_pool.SHARED_SAMPLES == decoder_process.SHARED_SAMPLES
    assert decoder_pool.PACKET_BYTES == decoder_process.PACKET_BYTES


def test_pool_starts_again_after_an_interrupted_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """The late answer must not be taken for that to the next request."""
    pool = DecoderPool()
    pool.release(pool.acquire())
    busy = pool.acquire()
    with monkeypatch.context() as patch:
        patch.setattr("socket.send_fds", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.acquire()
    again = pool.acquire()
    assert again.pid != busy.pid
    pool.release(busy)
    pool.release(again)
    pool.close()


def _interrupted(*arguments: Any) -> None:
    _send_fds(*arguments)
    raise KeyboardInterrupt


_send_fds = socket.send_fds
