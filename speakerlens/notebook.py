"""Results as a notebook shows them: a table of the answers, the maps over the spectrogram, and a player."""

import base64
import html
import io
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from speakerlens import palette
from speakerlens.captions import of_answers
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.results import Answer, AudioInfo, ModelFailure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A page with a longer recording in it would be slow to open.
MAX_PLAYED_BYTES = 8 * 2**20
_DTYPES = {pb.SAMPLE_FORMAT_FLOAT32: "<f4", pb.SAMPLE_FORMAT_INT16: "<i2"}
_KINDS = {b"fLaC": "flac", b"OggS": "ogg", b"RIFF": "wav", b"ID3": "mpeg", b"\xff\xfb": "mpeg"}


def figure(answers: Sequence[Answer], source: pb.Audio | None) -> "Figure":
    """Return the waveform of the audio that was sent, the log-mel and every map of the answers.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are no maps, or the audio cannot be drawn.
    """
    try:
        from speakerlens import plot  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            f"plots need matplotlib: pip install 'speakerlens[client]' (no module {error.name})"
        ) from error
    content = _file(source)
    if content is None:
        raise ValueError("the result does not hold its audio, as those of a batch or a stream do not")
    try:
        waveform = plot.read_waveform(content)
    except plot.READ_ERRORS as error:
        raise ValueError(f"the waveform cannot be drawn: {error}") from error
    return plot.draw("", of_answers(answers), waveform)


def page(answers: Sequence[Answer], failures: Sequence[ModelFailure], audio: AudioInfo, source: pb.Audio | None) -> str:
    """Return answers as HTML: a table, the maps if there are any, and a player of the audio that was sent."""
    rows = "".join(_row(answer) for answer in sorted(answers, key=_order))
    rows += "".join(
        f"<tr><td>{html.escape(each.name)}</td><td colspan=3>failed: {html.escape(each.message)}</td></tr>"
        for each in failures
    )
    table = (
        '<table><thead><tr><th scope="col">model</th><th scope="col">speaker</th><th scope="col">probability</th>'
        f'<th scope="col">known</th></tr></thead><tbody>{rows}</tbody></table>'
    )
    return f"<div>{table}{_player(source)}{_picture(answers, source)}<p><small>{_audio(audio)}</small></p></div>"


def _order(answer: Answer) -> tuple[tuple[int, str], int]:
    return palette.rank(answer.variant), answer.version


def _row(answer: Answer) -> str:
    colour = palette.looks([answer.variant])[answer.variant].colour
    known = "yes" if answer.known else "no, below the threshold"
    return (
        f'<tr><td style="border-left:4px solid {colour}">{html.escape(answer.name)}</td>'
        f"<td>{html.escape(answer.best.speaker)}</td><td>{answer.best.probability:.1%}</td><td>{known}</td></tr>"
    )


def _audio(audio: AudioInfo) -> str:
    channels = "1 channel" if audio.channels == 1 else f"{audio.channels} channels"
    return f"{audio.seconds:.2f} s, {audio.sample_rate} Hz, {channels}"


def _player(source: pb.Audio | None) -> str:
    content = _file(source)
    if content is None or len(content) > MAX_PLAYED_BYTES:
        return ""
    kind = next((kind for magic, kind in _KINDS.items() if content.startswith(magic)), "")
    if not kind:
        return ""
    sound = base64.b64encode(content).decode()
    return f'<audio controls src="data:audio/{kind};base64,{sound}" style="display:block"></audio>'


def _picture(answers: Sequence[Answer], source: pb.Audio | None) -> str:
    if not any(answer.explanation and answer.explanation.maps for answer in answers):
        return ""
    try:
        drawn = figure(answers, source)
    except (ImportError, ValueError) as error:
        return f"<p>{html.escape(str(error))}</p>"
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=100)
    text = html.escape(", ".join(each.name for each in of_answers(answers)))
    picture = base64.b64encode(buffer.getvalue()).decode()
    style = "display:block;max-width:100%"
    return f'<img alt="saliency maps of {text}" style="{style}" src="data:image/png;base64,{picture}">'


def _file(source: pb.Audio | None) -> bytes | None:
    """Return audio as a file; None for what is not held."""
    if source is None:
        return None
    if source.WhichOneof("source") == "encoded":
        return source.encoded
    raw = source.raw
    if raw.format not in _DTYPES:
        return None
    samples = np.frombuffer(raw.samples, _DTYPES[raw.format])
    if samples.dtype != np.int16:
        samples = (np.clip(samples, -1, 1 - 2**-15) * 2**15).astype("<i2")
    return _wav(samples.tobytes(), raw.sample_rate, raw.channels or 1)


def _wav(samples: bytes, rate: int, channels: int) -> bytes:
    """Return 16-bit samples as a WAV file."""
    form = struct.pack("<HHIIHH", 1, channels, rate, 2 * channels * rate, 2 * channels, 16)
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks
