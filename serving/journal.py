"""The journal of decisions: one JSON line each, for those who must be able to account for them.

It holds names, scores and reasons, never audio or embeddings. The file is bounded: when it is full it gets the suffix
`.1`, and the oldest of five goes.
"""

import datetime
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

from google.protobuf.json_format import MessageToDict

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.context import CallContext, current_context
from speakerlens.serving.errors import StartupError

log = logging.getLogger(__name__)

MAX_BYTES: Final = 64 * 2**20
OLDER_FILES: Final = 4

_Window = pb.WindowAnswer | pb.SearchWindowAnswer


class _File(RotatingFileHandler):
    """A file that only its owner reads."""

    def _open(self) -> Any:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the base class's
        """Raise the error of a line, which the base class would print."""
        raise  # noqa: PLE0704 - called while the error is handled


class Journal:
    """Writes decisions in a thread of its own.

    Args:
        path: of the file; appended to if it exists.
        count: called with whether a line was written.

    Raises:
        StartupError: the file cannot be written.
    """

    def __init__(self, path: Path, count: Callable[[bool], None]) -> None:
        try:
            self._file = _File(path, maxBytes=MAX_BYTES, backupCount=OLDER_FILES)
        except OSError as error:
            raise StartupError(f"--journal {path}: cannot be written: {error.strerror}") from error
        self._count = count
        self._failed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")

    def identified(self, answers: Iterable[pb.ModelAnswer], window: _Window | None = None) -> None:
        """Write the answers of an identification, a line for each model; `window` is the part of a stream, if any."""
        for each in answers:
            if not each.HasField("failure"):
                scores = [{"speaker": one.speaker, "probability": one.probability} for one in each.speakers]
                self._write("identify", each, {**_times(window), "known": each.known, "speakers": scores})

    def identified_in_stream(self, answer: pb.IdentifyStreamResponse) -> None:
        """Write the answers for a window of a stream, or for its whole; a window without speech has none."""
        if answer.HasField("window"):
            self.identified(answer.window.answers, answer.window)
        else:
            self.identified(answer.whole.answers)

    def verified(self, answer: pb.VerifyResponse, speaker: str | None) -> None:
        """Write the answer of a verification; `speaker` is the enrolled one, None for a second recording."""
        # Without a calibration the threshold is infinite, and JSON has no infinity.
        threshold = answer.threshold if math.isfinite(answer.threshold) else None
        scores = {"score": answer.score, "threshold": threshold, "same": answer.same}
        self._write("verify", answer, {"speaker": speaker, **scores})

    def searched_in_stream(self, answer: pb.SearchStreamResponse) -> None:
        """Write the answer for a window of a stream, or for its whole; a window without speech has none."""
        if answer.HasField("whole"):
            self.searched(answer.whole.answer)
        elif answer.window.HasField("answer"):
            self.searched(answer.window.answer, answer.window)

    def searched(self, answer: pb.SearchAnswer, window: _Window | None = None) -> None:
        """Write the answer of a search; `window` is the part of a stream, if any."""
        kept = pb.SearchAnswer()
        kept.CopyFrom(answer)
        for name in ("variant", "version", "explanation", "difference", "outlook"):
            kept.ClearField(name)
        self._write("search", answer, {**_times(window), **MessageToDict(kept, preserving_proto_field_name=True)})

    def _write(self, kind: str, answer: Any, values: Mapping[str, Any]) -> None:
        call: CallContext | None = current_context.get(None)
        line = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "request": None if call is None else call.id,
            "caller": None if call is None else call.caller,
            "kind": kind,
            "model": f"{answer.variant}/{answer.version}",
            **values,
        }
        self._thread.submit(self._append, json.dumps(line, ensure_ascii=False))

    def _append(self, line: str) -> None:
        try:
            self._file.emit(logging.makeLogRecord({"msg": "%s", "args": (line,)}))
        except (OSError, ValueError) as error:
            self._count(False)
            if not self._failed:
                log.error("a decision could not be written to the journal: %s", error)  # noqa: TRY400 (no trace)
            self._failed = True
        else:
            self._count(True)
            self._failed = False

    def close(self) -> None:
        """Write the lines that wait, and close the file."""
        self._thread.shutdown()
        self._file.close()


def _times(window: _Window | None) -> dict[str, float]:
    """Return where a window begins and ends, in seconds from the start of its stream; nothing for a whole."""
    return {} if window is None else {"start_s": window.start_s, "end_s": window.end_s}
