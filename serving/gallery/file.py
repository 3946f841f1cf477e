"""The file of a gallery: the exemplars of enrolled speakers in JSON lines, as docs/gallery.md describes.

It holds embeddings and their quality, never audio. The last line has a digest of all before, so that a file that was
cut short or altered is refused.
"""

import base64
import datetime
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any, Final

import numpy as np

from speakerlens.measures.evidence import Evidence
from speakerlens.serving.bundle import VARIANT_NAME
from speakerlens.serving.errors import InvalidArgumentError, Reason, quoted
from speakerlens.serving.gallery.exemplar import MAX_NUMBER, Exemplar, embedding_of

FORMAT, VERSION = "speakerlens-gallery", 1
MAX_LINE_BYTES: Final = 256 * 1024
MAX_EXEMPLARS: Final = 2_000_000
MAX_SIZE: Final = 8192
DIGEST_CHARACTERS: Final = 64
QUALITIES: Final = tuple(each.name for each in fields(Evidence))
# A part of an exported file is at least this long, but for the last.
PART_BYTES: Final = 256 * 1024


def written(exemplars: Iterable[Exemplar], created: str) -> Iterator[bytes]:
    """Yield the parts of a file of exemplars; damaged ones are left out."""
    digest = hashlib.sha256()
    held: list[bytes] = []
    size = count = 0
    for line in _lines(exemplars, created):
        digest.update(line)
        held.append(line)
        size += len(line)
        count += 1
        if size >= PART_BYTES:
            yield b"".join(held)
            held, size = [], 0
    yield b"".join([*held, _line({"exemplars": count - 1, "sha256": digest.hexdigest()})])


def _lines(exemplars: Iterable[Exemplar], created: str) -> Iterator[bytes]:
    yield _line({"format": FORMAT, "version": VERSION, "created": created})
    for each in exemplars:
        if not len(each.embedding):
            continue
        yield _line(
            {
                "speaker": each.speaker,
                "variant": each.variant,
                "version": each.version,
                "bundle": each.bundle,
                "utterances": each.utterances,
                "enrolled": each.enrolled,
                "embedding": base64.b64encode(each.embedding.astype("<f4").tobytes()).decode(),
                "quality": None if each.quality is None else asdict(each.quality),
            }
        )


def _line(values: Mapping[str, object]) -> bytes:
    return json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


class GalleryReader:
    """Reads a file that arrives in parts of any size.

    Attributes:
        exemplars: read so far.
    """

    def __init__(self) -> None:
        self.exemplars: list[Exemplar] = []
        self._rest = b""
        self._digest = hashlib.sha256()
        self._number = 0
        self._ended = False

    def feed(self, part: bytes) -> None:
        """Add a part.

        Raises:
            InvalidArgumentError: the file is no gallery, or a line of it is not valid.
        """
        lines = (self._rest + part).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            self._read(line)
        if len(self._rest) > MAX_LINE_BYTES:
            raise self._refused(f"above {MAX_LINE_BYTES} bytes")

    def finish(self) -> list[Exemplar]:
        """Return the exemplars once all parts were added.

        Raises:
            InvalidArgumentError: the file was cut short, or holds nothing.
        """
        if not self._number and not self._rest:
            raise InvalidArgumentError(Reason.ARGUMENT, "content: empty; send a file that was exported")
        if not self._number:
            raise self._refused("no gallery; send a file that was exported")
        if self._rest or not self._ended:
            raise InvalidArgumentError(
                Reason.ARGUMENT, f"content: ends after line {self._number}, without the line that closes a gallery"
            )
        return self.exemplars

    def _read(self, line: bytes) -> None:
        self._number += 1
        if len(line) > MAX_LINE_BYTES:
            raise self._refused(f"above {MAX_LINE_BYTES} bytes")
        if self._ended:
            raise self._refused("after the line that closes the gallery")
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise self._refused("no JSON object" if self._number > 1 else "no gallery; send a file that was exported")
        if self._number == 1:
            self._check_header(values)
        elif "sha256" in values:
            self._check_end(values)
        else:
            self._add(values)
        self._digest.update(line + b"\n")

    def _check_header(self, values: dict[str, Any]) -> None:
        if values.get("format") != FORMAT:
            raise self._refused("no gallery; send a file that was exported")
        if values.get("version") != VERSION:
            raise self._refused(f"version {quoted(str(values.get('version')))}; this server reads {VERSION}")

    def _check_end(self, values: dict[str, Any]) -> None:
        if values.get("exemplars") != len(self.exemplars):
            raise self._refused(f"says {values.get('exemplars')!s:.20} exemplars, and {len(self.exemplars)} precede it")
        if values["sha256"] != self._digest.hexdigest():
            raise self._refused("the digest of the lines before is another one: the file was altered")
        self._ended = True

    def _add(self, values: dict[str, Any]) -> None:
        if len(self.exemplars) == MAX_EXEMPLARS:
            raise self._refused(f"more than {MAX_EXEMPLARS} exemplars")
        texts = [values.get(name) for name in ("speaker", "variant", "bundle", "enrolled", "embedding")]
        numbers = [values.get(name) for name in ("version", "utterances")]
        if not all(isinstance(each, str) for each in texts):
            raise self._refused("speaker, variant, bundle, enrolled and embedding must be texts")
        if not all(type(each) is int and 0 < each <= MAX_NUMBER for each in numbers):
            raise self._refused("version and utterances must be numbers from 1")
        speaker, variant, bundle, enrolled, embedding = map(str, texts)
        if not VARIANT_NAME.fullmatch(variant):
            raise self._refused("variant must be the name of one: small letters, digits and -, at most 63")
        if len(bundle) != DIGEST_CHARACTERS or set(bundle) - set("0123456789abcdef"):
            raise self._refused("bundle must be a SHA-256 in hexadecimal")
        self.exemplars.append(
            Exemplar(
                speaker,
                variant,
                int(values["version"]),
                bundle,
                int(values["utterances"]),
                self._time(enrolled),
                self._embedding(embedding),
                self._quality(values.get("quality")),
            )
        )

    def _time(self, text: str) -> str:
        """Return a time as the stores have it, as times are compared as texts when old enrolments are removed."""
        try:
            time = datetime.datetime.fromisoformat(text)
            if time.tzinfo is not None:
                return time.astimezone(datetime.UTC).isoformat(timespec="seconds")
        except (ValueError, OverflowError):
            pass
        raise self._refused("enrolled must be a time with a time zone, such as 2026-11-28T10:00:00+00:00")

    def _embedding(self, text: str) -> Any:
        try:
            vector = embedding_of(base64.b64decode(text, validate=True))
        except ValueError:
            vector = np.zeros(0, np.float32)
        if not 0 < len(vector) <= MAX_SIZE:
            raise self._refused("embedding must be base64 of little-endian float32, finite and of length one")
        return vector

    def _quality(self, values: object) -> Evidence | None:
        if values is None:
            return None
        if isinstance(values, dict):
            numbers = [_number(values.get(name)) for name in QUALITIES]
            speech, snr, bandwidth, clipping, level = numbers
            wrong = any(
                number is None and values.get(name) is not None for name, number in zip(QUALITIES, numbers, strict=True)
            )
            if speech is not None and bandwidth is not None and clipping is not None and not wrong:
                return Evidence(speech, snr, bandwidth, clipping, level)
        raise self._refused("quality must be null, or hold finite numbers")

    def _refused(self, why: str) -> InvalidArgumentError:
        return InvalidArgumentError(Reason.ARGUMENT, f"content: line {self._number or 1}: {why}")


def _number(value: object) -> float | None:
    """Return a finite number; None for anything else."""
    if isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value):
        return float(value)
    return None
