"""A stand-in and a real server for the clients, and the command line run in this process."""

import io
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerlens import SpeakerClient
from speakerlens.cli.main import main
from tests.serving import toy
from tests.serving.harness import ServerProcess

from .stand_in import SECONDS, StandIn, serving

TOY_VARIANTS = ("clean", "da", "act-da")

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `speakerlens` in this process; `stdin` is the content of standard input."""

    def run(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        argv = [str(argument) for argument in arguments]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            code = main(argv)
        except SystemExit as end:
            code = int(str(end.code or 0))
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(argv, code, out, err)

    return run


@pytest.fixture(scope="package")
def toy_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A real server with a store of speakers; the networks are `toy.weights(0)` to `toy.weights(2)`."""
    folder = tmp_path_factory.mktemp("client")
    for seed, variant in enumerate(TOY_VARIANTS):
        toy.write_bundle(folder / "bundles", variant, 1, seed)
    with ServerProcess(folder / "bundles", f"--speakers={folder / 'speakers.db'}", fresh=True) as process:
        yield process


@pytest.fixture(scope="package")
def toy_address(toy_server: ServerProcess) -> str:
    return str(toy_server.ready["grpc"])


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
def address(stand_in: StandIn) -> Iterator[str]:
    with serving(stand_in) as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[SpeakerClient]:
    with SpeakerClient(address, timeout=10) as client:
        yield client


@pytest.fixture(scope="session")
def flac() -> bytes:
    """Return two seconds at 16 kHz with one loud click at 1.5 s."""
    samples = 0.1 * np.sin(2 * np.pi * 220 * np.arange(int(SECONDS * 16000)) / 16000)
    samples[24011] = 0.9  # where no column of the plot begins
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format="FLAC")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def endless_flac(flac: bytes) -> bytes:
    """Return the same as a pipe writes it: without the number of samples in the header."""
    content = bytearray(flac)
    content[18:26] = (int.from_bytes(content[18:26], "big") & ~(2**36 - 1)).to_bytes(8, "big")
    return bytes(content)


@pytest.fixture
def flac_file(tmp_path: Path, flac: bytes) -> Path:
    path = tmp_path / "click.flac"
    path.write_bytes(flac)
    return path


def speakerlens(
    *arguments: object, stdin: bytes = b"", program: Sequence[str] = ("-m", "speakerlens")
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *program, *map(str, arguments)], input=stdin, capture_output=True, timeout=60, check=False
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in err
    return subprocess.CompletedProcess(done.args, done.returncode, out, err)
