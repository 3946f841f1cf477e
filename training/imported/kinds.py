"""What a file is that holds no weights, by its first bytes: users give pointers, error pages and other formats."""

import re
import zipfile
from pathlib import Path
from typing import NamedTuple

FITS = (
    "a ResNet with statistics pooling as WeSpeaker trains it: pytorch_model.bin of pyannote's wespeaker models, "
    "avg_model.pt of WeSpeaker, or either as .safetensors"
)
"""What this program imports, for messages."""

_HEAD_BYTES = 4096


class _Signature(NamedTuple):
    """Bytes at the beginning of a file, what the file is then, and what to do."""

    start: bytes
    kind: str
    advice: str


_SIGNATURES = (
    _Signature(b"\x89HDF", "an HDF5 file, such as Keras writes", ""),
    _Signature(b"GGUF", "a GGUF file", "give the PyTorch or safetensors file that it was made from"),
    _Signature(b"\x93NUMPY", "a numpy array", ""),
    _Signature(b"\x1f\x8b", "a gzip archive", "unpack it and give the folder"),
    _Signature(b"7z\xbc\xaf", "a 7z archive", "unpack it and give the folder"),
    _Signature(b"RIFF", "a WAV file", ""),
    _Signature(b"fLaC", "a FLAC file", ""),
    _Signature(b"ID3", "an MP3 file", ""),
    _Signature(b"%PDF", "a PDF file", ""),
)
_POINTER = b"version https://git-lfs.github.com/spec/"
_ZIP = b"PK\x03\x04"
_ONNX_DOMAINS = (b"pytorch", b"onnx", b"paddle", b"tf2onnx", b"ir_version", b"ai.onnx")


def refusal(path: Path) -> str | None:
    """Return what a file is and what would fit, a phrase; None for a file that may hold weights."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        return f"an empty file; download it again. What fits is {FITS}"
    return _text(head, size) or _archive(path, head, size) or _binary(path, head)


def _text(head: bytes, size: int) -> str | None:
    if head.startswith(_POINTER):
        stated = re.search(rb"^size (\d+)", head, re.MULTILINE)
        megabytes = f" of {int(stated[1]) / 1e6:.1f} MB" if stated else ""
        return (
            f"a Git LFS pointer of {size} bytes, not the file{megabytes} that it stands for; fetch that with "
            "`git lfs pull`, or download the file itself"
        )
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return (
            "a web page, not the file; the site asked for a login or for its terms to be accepted. Download the file "
            f"again and look at its size. What fits is {FITS}"
        )
    try:
        text = head.decode("utf-8").strip() if size <= _HEAD_BYTES else ""
    except UnicodeDecodeError:
        return None
    if text.isprintable() and text:
        return f"a text file ({text[:60]!r}); what fits is {FITS}"
    return None


def _archive(path: Path, head: bytes, size: int) -> str | None:
    if not head.startswith(_ZIP):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return f"a PyTorch file that was cut off after {size / 1e6:.1f} MB; download it again"
    folders = {name.partition("/")[2] for name in names}
    if "constants.pkl" in folders or any(name.startswith("code/") for name in folders):
        return f"a TorchScript program, which would have to be executed; give the weights themselves: {FITS}"
    if "data.pkl" in folders:
        return None
    if any(name.endswith(".npy") for name in names):
        return f"a numpy archive; what fits is {FITS}"
    listed = ", ".join(sorted(name for name in names if not name.endswith("/"))[:3])
    return f"a zip archive (of {listed or 'nothing'}); unpack it and give the folder"


def _binary(path: Path, head: bytes) -> str | None:
    for signature in _SIGNATURES:
        if head.startswith(signature.start):
            return f"{signature.kind}; {signature.advice or f'what fits is {FITS}'}"
    if len(head) > 262 and head[257:262] == b"ustar":
        return "a tar archive; unpack it and give the folder"
    # An ONNX model is a protobuf message whose first field is the version of the format.
    looks = head[0] == 0x08 and len(head) > 2 and head[1] < 0x20 and any(name in head for name in _ONNX_DOMAINS)
    if looks or path.suffix == ".onnx":
        return f"an ONNX graph, from which no saliency map can be made; give the PyTorch weights: {FITS}"
    return None
