"""Saliency maps as they are sent: normalised, resized, fused, with axes, as numbers or as pictures."""

from dataclasses import dataclass
from enum import Enum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speakerlens.serving.bundle import SAMPLE_RATE, Bundle, StageSpec
from speakerlens.serving.engine.graphs import ExplainedPrediction, Mapped
from speakerlens.serving.pipeline.png import png
from speakerlens.serving.pipeline.resize import centres, resize

StageName = Literal["s1", "s2", "s3", "s4", "fused"]


class Resolution(Enum):
    """FEATURES: normalised, at mel x frames; NATIVE: raw values, as the stage computes them."""

    FEATURES = "features"
    NATIVE = "native"


class Encoding(Enum):
    """How the values of a plane are written: little-endian floats, single bytes, or a picture."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    UINT8 = "uint8"
    PNG = "png"


@dataclass(frozen=True)
class ExplainOptions:
    """Which maps, in which form; `target_speaker` None explains the best speaker."""

    stages: tuple[StageName, ...] = ("fused",)
    resolution: Resolution = Resolution.FEATURES
    encoding: Encoding = Encoding.FLOAT32
    target_speaker: str | None = None


@dataclass(frozen=True)
class Plane:
    """A matrix over frequency (rows, low to high) and time, encoded; `stage` is None for the log-mel.

    Attributes:
        values: row-major, or the picture. For UINT8 and the levels of a picture, value = byte * scale + offset; for
            FLOAT16, value = half * scale.
        frequencies_hz: centre of each row, [rows].
        times_s: centre of each column in seconds from the start of the audio, [columns].
    """

    stage: StageName | None
    encoding: Encoding
    values: bytes
    scale: float
    offset: float
    frequencies_hz: NDArray[np.float32]
    times_s: NDArray[np.float32]


@dataclass(frozen=True)
class Explanation:
    """What a model listened to, for one speaker's score."""

    target_speaker: str
    saliency: tuple[Plane, ...]
    log_mel: Plane


def explain(bundle: Bundle, answer: ExplainedPrediction, options: ExplainOptions, start: int = 0) -> Explanation:
    """The maps of the explained speaker's score; arguments as of `encoded`."""
    return encoded(bundle, answer, options, bundle.speakers[answer.target], start)


def encoded(bundle: Bundle, answer: Mapped, options: ExplainOptions, speaker: str, start: int = 0) -> Explanation:
    """Encodes the maps that were asked for, in the order asked, and the log-mel that the network saw.

    What was explained, the score of `speaker`, begins `start` samples into the audio, and the times of columns count
    from the audio's beginning.
    """
    offset = np.float32(start / SAMPLE_RATE)
    frames = answer.features.shape[1]
    planes = []
    for name in options.stages:
        if options.resolution is Resolution.NATIVE:
            spec, values = next(
                (spec, values) for spec, values in zip(bundle.stages, answer.saliency, strict=True) if spec.name == name
            )
            frequencies, times = native_axes(bundle, spec, values.shape[1], frames)
        else:
            values = displayed(bundle, answer, name)
            frequencies, times = feature_axes(bundle, frames)
        planes.append(encode(name, values, options.encoding, frequencies, times + offset))
    frequencies, times = feature_axes(bundle, frames)
    log_mel = encode(None, answer.features, options.encoding, frequencies, times + offset)
    return Explanation(speaker, tuple(planes), log_mel)


def displayed(bundle: Bundle, answer: Mapped, name: StageName) -> NDArray[np.float32]:
    """The map of a stage at mel x frames; `fused` is the mean of those that the bundle names."""
    chosen = bundle.fused_stages if name == "fused" else (name,)
    shown = [
        resize(normalised(values), bundle.mel_bins, answer.features.shape[1])
        for spec, values in zip(bundle.stages, answer.saliency, strict=True)
        if spec.name in chosen
    ]
    mean: NDArray[np.float32] = np.ascontiguousarray(sum(shown[1:], shown[0]) / np.float32(len(shown)))
    return mean


def normalised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A map divided by its maximum; one that is zero everywhere stays so."""
    peak: np.float32 = max(values.max(), np.finfo(np.float32).tiny)
    return values / peak


def feature_axes(bundle: Bundle, frames: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Centres of the log-mel's rows in Hz and of its columns in seconds."""
    return np.asarray(bundle.mel_centres_hz, np.float32), _seconds(bundle, np.arange(frames))


def native_axes(
    bundle: Bundle, stage: StageSpec, columns: int, frames: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Centres of a stage's rows in Hz and columns in seconds, where the interpolation to mel x frames puts them."""
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
    """Writes a matrix as bytes.

    UINT8 and PNG spread its own range over 256 levels, so the error is at most scale / 2. FLOAT16 is relative to the
    largest magnitude: raw maps are small numbers, of which half precision would keep nothing.
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
