"""Rows of the table of scores: one for each recording and model, the same columns in every format."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from speakerlens.measures.evidence import Evidence
from speakerlens.serving.errors import RequestError
from speakerlens.serving.pipeline.answers import Answer, Failed, Identification

EVIDENCE: Final = tuple(field.name for field in fields(Evidence))


@dataclass(frozen=True)
class Row:
    """What one model says of one recording, or why there is no answer.

    Attributes:
        path: of the recording, as it was given; the number of an array.
        variant: of the model; None where the recording could not be read.
        version: of the model.
        speaker: the most probable known speaker; None for a model without a classifier.
        score: calibrated probability of the speaker, 0 to 1.
        logit: of the speaker, before calibration.
        known: whether the score is high enough for a known speaker.
        seconds: duration of the recording.
        speech: whether any window holds speech.
        evidence: what the answer rests on.
        embedding: float32 [size]; None if it was not asked for.
        maps: file with the saliency maps; None if they were not asked for.
        code: status of the error, such as INVALID_ARGUMENT; None without one.
        error: one sentence; None without one.
    """

    path: str
    variant: str | None = None
    version: int | None = None
    speaker: str | None = None
    score: float | None = None
    logit: float | None = None
    known: bool | None = None
    seconds: float | None = None
    speech: bool | None = None
    evidence: Evidence | None = None
    embedding: NDArray[np.float32] | None = None
    maps: str | None = None
    code: str | None = None
    error: str | None = None

    def document(self) -> dict[str, Any]:
        """Return the row by column, in order; evidence as a dictionary, the embedding as an array."""
        evidence = None if self.evidence is None else asdict(self.evidence)
        return {**{name: getattr(self, name) for name in COLUMNS}, "evidence": evidence}


COLUMNS: Final = tuple(field.name for field in fields(Row))


def columns(rows: Iterable[Row]) -> dict[str, list[Any]]:
    """Return the rows as columns, which pandas, polars and pyarrow make a table of."""
    documents = [row.document() for row in rows]
    return {name: [each[name] for each in documents] for name in COLUMNS}


def rows_of(path: str, result: Identification, maps: dict[str, str]) -> list[Row]:
    """Return the rows of an answered recording.

    Args:
        path: of the recording.
        result: what the pipeline answered.
        maps: the file with the maps, by variant.
    """
    audio = result.audio
    shared: dict[str, Any] = {"seconds": audio.seconds, "speech": audio.speech, "evidence": audio.evidence}
    rows = []
    for answer in result.answers:
        row: dict[str, Any] = {"path": path, "variant": answer.variant, "version": answer.version, **shared}
        if isinstance(answer, Failed):
            row |= {"code": answer.code, "error": answer.message}
        else:
            row |= _answered(answer)
            row["maps"] = maps.get(answer.variant)
        rows.append(Row(**row))
    return rows


def _answered(answer: Answer) -> dict[str, Any]:
    if not answer.speakers:
        return {"embedding": answer.embedding}
    best = answer.speakers[0]
    return {
        "speaker": best.speaker,
        "score": best.probability,
        "logit": best.logit,
        "known": answer.known,
        "embedding": answer.embedding,
    }


def failed_row(path: str, error: Exception) -> Row:
    """Return the row of a recording without any answer."""
    if isinstance(error, RequestError):
        return Row(path, code=error.code, error=str(error))
    if isinstance(error, OSError):
        return Row(path, code="UNREADABLE", error=error.strerror or str(error))
    if isinstance(error, ValueError):
        return Row(path, code="INVALID_ARGUMENT", error=str(error))
    return Row(path, code="INTERNAL", error=f"{type(error).__name__}: {error}")
