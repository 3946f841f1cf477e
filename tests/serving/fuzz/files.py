"""Sound files of every kind that is read often, small and whole: what damaged ones are made from."""

import io
import struct
from functools import cache

import numpy as np
import soundfile as sf

from tests.serving.harness import voice

SECONDS = 0.7
FORMS = (
    ("WAV", "PCM_16", 16_000, 1),
    ("WAV", "FLOAT", 44_100, 2),
    ("WAV", "PCM_24", 8_000, 1),
    ("WAV", "ULAW", 16_000, 1),
    ("WAV", "IMA_ADPCM", 16_000, 1),
    ("WAV", "GSM610", 8_000, 1),
    ("WAVEX", "PCM_16", 48_000, 3),
    ("RF64", "PCM_16", 16_000, 1),
    ("W64", "PCM_16", 16_000, 1),
    ("AIFF", "PCM_16", 22_050, 1),
    ("AU", "PCM_16", 16_000, 1),
    ("CAF", "ALAC_16", 16_000, 1),
    ("FLAC", "PCM_16", 16_000, 1),
    ("FLAC", "PCM_24", 44_100, 2),
    ("OGG", "VORBIS", 16_000, 1),
    ("OGG", "OPUS", 48_000, 2),
    ("MP3", "MPEG_LAYER_III", 44_100, 1),
)
MAGIC = (b"RIFF\x24\x00\x00\x00WAVEfmt ", b"fLaC\x00\x00\x00\x22", b"OggS\x00\x02", b"\xff\xfb\x90\x64", b"ID3\x04\x00")


@cache
def whole() -> tuple[bytes, ...]:
    """One file of each form."""
    files = []
    for kind, subtype, rate, channels in FORMS:
        buffer = io.BytesIO()
        samples = np.repeat(voice(SECONDS, rate)[:, None], channels, axis=1)
        sf.write(buffer, samples, rate, format=kind, subtype=subtype)
        files.append(buffer.getvalue())
    return tuple(files)


@cache
def lying() -> tuple[bytes, ...]:
    """WAV files with extreme numbers in every field of their header."""
    wave = whole()[0]
    lies = []
    for offset, code in (
        (4, "<I"),
        (16, "<I"),
        (20, "<H"),
        (22, "<H"),
        (24, "<I"),
        (28, "<I"),
        (32, "<H"),
        (34, "<H"),
        (40, "<I"),
    ):
        for value in (0, 1, 3, 0x7FFF, 0xFFFF) if code == "<H" else (0, 1, 0x7FFFFFFF, 0x80000001, 0xFFFFFFFF):
            changed = bytearray(wave)
            struct.pack_into(code, changed, offset, value)
            lies.append(bytes(changed))
    return tuple(lies)
