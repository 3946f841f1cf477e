import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speakerlens import SpeakerClient

from .stand_in import SECONDS, StandIn, serving


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
    """Two seconds at 16 kHz with one loud click at 1.5 s."""
    samples = 0.1 * np.sin(2 * np.pi * 220 * np.arange(int(SECONDS * 16000)) / 16000)
    samples[24011] = 0.9  # where no column of the plot begins
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16000, format="FLAC")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def endless_flac(flac: bytes) -> bytes:
    """The same as a pipe writes it: the header does not say how many samples there are."""
    content = bytearray(flac)
    content[18:26] = (int.from_bytes(content[18:26], "big") & ~(2**36 - 1)).to_bytes(8, "big")
    return bytes(content)


@pytest.fixture
def flac_file(tmp_path: Path, flac: bytes) -> Path:
    path = tmp_path / "click.flac"
    path.write_bytes(flac)
    return path
