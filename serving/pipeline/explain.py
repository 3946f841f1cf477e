"""Saliency maps as they are sent: normalised, resized and fused, with axes, as numbers or PNG pictures."""

import functools
import struct
import zlib
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import SAMPLE_RATE, Bundle, StageSpec
from speakerlens.serving.engine.graphs import ExplainedPrediction, Mapped, mapped_stages

StageName = Literal["s1", "s2", "s3", "s4", "fused"]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_GREY, PNG_PALETTE = 0, 3
# Noise hardly compresses, and a fast level leaves the cores to other work.
PNG_COMPRESSION = 3
# Red, green and blue at levels spread evenly from 0 to 255: from black over violet and orange to pale yellow, of evenly
# rising lightness, so that the picture reads the same in grey.
PALETTE_ANCHORS = np.array(
    [
        (0, 0, 4),
        (40, 11, 84),
        (101, 21, 110),
        (159, 42, 99),
        (212, 72, 66),
        (245, 125, 21),
        (250, 193, 39),
        (252, 255, 164),
    ]
)
_POSITIONS = np.linspace(0, 255, len(PALETTE_ANCHORS))
PALETTE: bytes = (
    np.stack([np.interp(np.arange(256), _POSITIONS, channel) for channel in PALETTE_ANCHORS.T], axis=1)
    .round()
    .astype(np.uint8)
    .tobytes()
)


class Resolution(Enum):
    """FEATURES: normalised, at mel x frames; NATIVE: raw values, at the stage's resolution."""

    FEATURES = "features"
    NATIVE = "native"


class Encoding(Enum):
    """Encoding of a plane's values: little-endian floats, single bytes, or a picture."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    UINT8 = "uint8"
    PNG = "png"


@dataclass(frozen=True)
class ExplainOptions:
    """Which maps to return and how; `target_speaker` None explains the top-1 speaker; `listen` returns their sound."""

    stages: tuple[StageName, ...] = ("fused",)
    resolution: Resolution = Resolution.FEATURES
    encoding: Encoding = Encoding.FLOAT32
    target_speaker: str | None = None
    listen: bool = False


@dataclass(frozen=True)
class Plane:
    """An encoded matrix over frequency (rows, low to high) and time (columns).

    Attributes:
        stage: of the map; None for the log-mel features.
        encoding: of the values.
        values: row-major, or a PNG. For UINT8 and the levels of a PNG, value = byte * scale + offset; for FLOAT16,
            value = half * scale.
        scale: see `values`; 0 for FLOAT32.
        offset: see `values`.
        frequencies_hz: centre of each row, float32 [rows].
        times_s: centre of each column, in seconds from the beginning of the audio, float32 [columns].
    """

    stage: StageName | None
    encoding: Encoding
    values: bytes
    scale: float
    offset: float
    frequencies_hz: NDArray[np.float32]
    times_s: NDArray[np.float32]


@dataclass(frozen=True)
class Listening:
    """The sound that a map keeps and removes, and the target's probability for it.

    Attributes:
        stage: of the map.
        kept: FLAC, 16 kHz.
        removed: likewise.
        score: the target's probability for the audio, 0 to 1.
        kept_score: for what is kept; 0 for silence.
        removed_score: for what is removed; 0 for silence.
    """

    stage: StageName
    kept: bytes
    removed: bytes
    score: float
    kept_score: float
    removed_score: float


@dataclass(frozen=True)
class Explanation:
    """Saliency maps of one speaker's score, and the log-mel features they explain.

    Attributes:
        displayed: where the maps are to be listened to, their values at [mel, frames], 0 to 1.
        listening: one for each map, if the query asks for it.
    """

    target_speaker: str
    saliency: tuple[Plane, ...]
    log_mel: Plane
    displayed: tuple[NDArray[np.float32], ...] = ()
    listening: tuple[Listening, ...] = ()


def explain(bundle: Bundle, answer: ExplainedPrediction, options: ExplainOptions, start: int = 0) -> Explanation:
    """Return the maps of the explained speaker's score; arguments as of `encoded`."""
    return encoded(bundle, answer, options, bundle.speakers[answer.target], start)


def encoded(bundle: Bundle, answer: Mapped, options: ExplainOptions, speaker: str, start: int = 0) -> Explanation:
    """Encode the maps that were asked for, in that order, and the log-mel features.

    Args:
        bundle: of the model.
        answer: features and raw maps.
        options: which maps, and how.
        speaker: whose score was explained.
        start: first sample of what was explained, at 16 kHz; the columns' times count from the audio's beginning.
    """
    offset = np.float32(start / SAMPLE_RATE)
    frames = answer.features.shape[1]
    planes = []
    for name in options.stages:
        if options.resolution is Resolution.NATIVE:
            spec, values = next((spec, values) for spec, values in mapped_stages(bundle, answer) if spec.name == name)
            frequencies, times = native_axes(bundle, spec, values.shape[1], frames)
        else:
            values = displayed(bundle, answer, name)
            frequencies, times = feature_axes(bundle, frames)
        planes.append(encode(name, values, options.encoding, frequencies, times + offset))
    frequencies, times = feature_axes(bundle, frames)
    log_mel = encode(None, answer.features, options.encoding, frequencies, times + offset)
    heard = tuple(displayed(bundle, answer, name) for name in options.stages) if options.listen else ()
    return Explanation(speaker, tuple(planes), log_mel, heard)


def displayed(bundle: Bundle, answer: Mapped, name: StageName) -> NDArray[np.float32]:
    """Return the normalised map of a stage at [mel, frames]; `fused` is the mean over the bundle's fused stages."""
    if not isinstance(answer, ExplainedPrediction):
        return _displayed(bundle, answer, name)
    # What the answer shows is measured, too.
    if name not in answer.shown:
        answer.shown[name] = _displayed(bundle, answer, name)
    return answer.shown[name]


def _displayed(bundle: Bundle, answer: Mapped, name: StageName) -> NDArray[np.float32]:
    chosen = bundle.fused_stages if name == "fused" else (name,)
    shown = [
        resize(normalised(values), bundle.mel_bins, answer.features.shape[1])
        for spec, values in mapped_stages(bundle, answer)
        if spec.name in chosen
    ]
    mean: NDArray[np.float32] = np.ascontiguousarray(sum(shown[1:], shown[0]) / np.float32(len(shown)))
    return mean


def normalised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a map [rows, columns] divided by its maximum; a map of zeros stays so."""
    peak: np.float32 = max(values.max(), np.finfo(np.float32).tiny)
    return values / peak


def resize(values: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """Interpolate a map [r, c] bilinearly to [rows, columns].

    Half-pixel centres, no corner alignment, edges repeated, as torch's `interpolate(mode="bilinear",
    align_corners=False)`.
    """
    return _along_rows(_along_rows(values, rows).T, columns).T


def centres(cells: int, size: int) -> NDArray[np.float64]:
    """Return the positions [cells] of coarse cells on a grid of `size` points, by the same half-pixel rule."""
    return (np.arange(cells, dtype=np.float64) + 0.5) * (size / cells) - 0.5


def _along_rows(values: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    if len(values) == rows:
        return values
    low, high, weight = _neighbours(rows, len(values))
    return values.take(low, axis=0) * (1 - weight) + values.take(high, axis=0) * weight


@functools.lru_cache(64)
def _neighbours(cells: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return the points below and above each cell, int64 [cells], and the weight of the latter, float32 [cells, 1]."""
    position = np.clip(centres(cells, size), 0.0, None)
    low = position.astype(np.int64)
    return low, np.minimum(low + 1, size - 1), (position - low).astype(np.float32)[:, None]


def feature_axes(bundle: Bundle, frames: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the centres of the log-mel's rows in Hz, [mel], and of its columns in seconds, [frames]."""
    return np.asarray(bundle.mel_centres_hz, np.float32), _seconds(bundle, np.arange(frames))


def native_axes(
    bundle: Bundle, stage: StageSpec, columns: int, frames: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the centres of a stage's rows in Hz and columns in seconds, where `resize` to mel x frames puts them."""
    rows = centres(stage.rows, bundle.mel_bins)
    frequencies = np.interp(rows, np.arange(bundle.mel_bins), bundle.mel_centres_hz)
    return frequencies.astype(np.float32), _seconds(bundle, centres(columns, frames))


def _seconds(bundle: Bundle, frame: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.float32]:
    return ((frame * bundle.frame_shift + bundle.frame_length / 2) / SAMPLE_RATE).astype(np.float32)


def encode(
    stage: StageName | None,
    values: NDArray[np.float32],
    encoding: Encoding,
    frequencies_hz: NDArray[np.float32],
    times_s: NDArray[np.float32],
) -> Plane:
    """Encode a matrix, float32 [rows, columns].

    UINT8 and PNG spread the matrix's range over 256 levels, so the error is at most scale / 2. FLOAT16 is relative to
    the largest magnitude, as half precision would lose the small numbers of raw maps.
    """
    offset = 0.0
    if encoding is Encoding.FLOAT32:
        data, scale = np.ascontiguousarray(values, "<f4").tobytes(), 0.0
    elif encoding is Encoding.FLOAT16:
        scale = float(np.abs(values).max()) or 1.0
        data = (values / np.float32(scale)).astype("<f2").tobytes()
    else:
        offset = float(values.min())
        scale = (float(values.max()) - offset) / 255
        steps = np.rint((values - offset) / scale) if scale > 0 else np.zeros(values.shape)
        levels = steps.astype(np.uint8)
        data = levels.tobytes() if encoding is Encoding.UINT8 else png(levels, coloured=stage is not None)
    return Plane(stage, encoding, data, scale, offset, frequencies_hz, times_s)


def png(levels: NDArray[np.uint8], coloured: bool) -> bytes:
    """Return a PNG of levels, uint8 [rows, columns], row 0 at the bottom; with the palette, or in grey.

    The pixels are the bytes of UINT8, so that its scale and offset hold for them.
    """
    rows, columns = levels.shape
    header = struct.pack(">IIBBBBB", columns, rows, 8, PNG_PALETTE if coloured else PNG_GREY, 0, 0, 0)
    # Each line begins with the number of its filter: 0, none.
    lines = np.zeros((rows, columns + 1), np.uint8)
    lines[:, 1:] = levels[::-1]
    parts = [PNG_SIGNATURE, _chunk(b"IHDR", header)]
    if coloured:
        parts.append(_chunk(b"PLTE", PALETTE))
    parts += [_chunk(b"IDAT", zlib.compress(lines.tobytes(), PNG_COMPRESSION)), _chunk(b"IEND", b"")]
    return b"".join(parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
