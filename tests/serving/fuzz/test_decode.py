"""Decoding of anything: an answer or a refusal, in little time and memory, and never the end of the process."""

import json
import selectors
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT
from tests.serving.fuzz.chunks import chunked
from tests.serving.fuzz.files import MAGIC, lying, whole
from tests.serving.fuzz.mutation import Seeds, damaged
from tests.serving.fuzz.running import assert_flat, fuzz, note
from tests.serving.fuzz.units import rearranged

SECONDS = 20


class Worker:
    """A process that decodes."""

    def __init__(self, log: Path) -> None:
        command = [sys.executable, "-m", "tests.serving.fuzz.worker"]
        self.log = log
        with log.open("w", encoding="utf-8") as stderr:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
            )

    def decode(self, test: str, data: bytes) -> str:
        """The outcome, which is noted; a crash or a hang fails the test."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(struct.pack("<I", len(data)) + data)
        self._process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            assert selector.select(SECONDS), f"no answer within {SECONDS} s"
        line = self._process.stdout.readline()
        assert line, f"the process ended with status {self._process.wait()}"
        outcome, memory_kb = json.loads(line)
        note(test, outcome.splitlines()[-1], memory_kb)
        return str(outcome)

    def close(self) -> None:
        with self._process:  # closes the pipes
            self._process.kill()


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(tmp_path_factory.mktemp("decode") / "log")
    yield worker
    worker.close()


ALLOWED = ("OK", "INVALID_ARGUMENT")


def test_whole_files_are_decoded(worker: Worker) -> None:
    """Otherwise the damaged ones would show nothing."""
    for data in whole():
        assert worker.decode("decode, whole files", data) == "OK"


def test_lying_headers(worker: Worker) -> None:
    for data in lying():
        assert worker.decode("decode, lying headers", data) in ALLOWED


@fuzz
@given(data=damaged(Seeds(whole())))
def test_damaged_files(worker: Worker, data: bytes) -> None:
    assert worker.decode("decode, damaged files", data) in ALLOWED


@fuzz
@given(data=chunked())
def test_chunks_of_any_size_order_and_nesting(worker: Worker, data: bytes) -> None:
    """Sizes that run past the file or the parent, or wrap around to the same place, make libsndfile loop."""
    assert worker.decode("decode, chunks", data) in ALLOWED


@fuzz
@given(data=rearranged())
def test_blocks_pages_and_boxes_out_of_order(worker: Worker, data: bytes) -> None:
    assert worker.decode("decode, blocks, pages and boxes", data) in ALLOWED


@fuzz
@given(magic=st.sampled_from((b"", *MAGIC)), noise=st.binary(max_size=3000), times=st.sampled_from((1, 1, 30)))
def test_noise(worker: Worker, magic: bytes, noise: bytes, times: int) -> None:
    assert worker.decode("decode, noise", magic + noise * times) in ALLOWED


def test_the_process_is_whole(worker: Worker) -> None:
    """Runs after the others. Decoders in C may complain on stderr; Python may not."""
    assert_flat("decode")
    log = worker.log.read_text(encoding="utf-8", errors="replace")
    assert not [line for line in log.splitlines() if "Error" in line or "Warning: " in line.partition("site-pack")[2]]
