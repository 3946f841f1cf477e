"""The log on stderr: text for people, or one JSON object per line, each with the id of its request.

Lines hold names, numbers and sentences, never audio, embeddings or tokens. What C libraries write to stderr by
themselves stands between the lines as it is.
"""

import faulthandler
import json
import logging
import os
import sys
import threading
import time
from types import TracebackType
from typing import Any, TextIO

from speakerlens.serving.context import current_context

TEXT = "%(asctime)s %(levelname)s %(name)s %(request)s%(message)s"


def configure(level: str, kind: str) -> None:
    """Send the process's log to stderr: `level` as in `Config.log_level`, `kind` as in `Config.log_format`.

    Uncaught errors, in any thread, become lines of the log; a crash in C leaves the traces of all threads.
    """
    faulthandler.enable()
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_note_request)
    handler.setFormatter(JsonFormatter() if kind == "json" else logging.Formatter(TEXT))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


def own_stdout() -> TextIO:
    """Return the process's standard output, for its one line; what anything else prints goes to stderr from now on.

    ONNX Runtime, CUDA's libraries and codecs print from Python and from C.
    """
    sys.stdout.flush()
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return output


class JsonFormatter(logging.Formatter):
    """Formats one JSON object per line: time (UTC), level, logger, message; in a request request_id and caller.

    A record's `extra={"fields": {...}}` become keys of the object, a traceback the key `exception`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        line: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key in ("request_id", "caller") if (value := getattr(record, key, None))}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _note_request(record: logging.LogRecord) -> bool:
    """Add the request's id and the caller's name to the record."""
    call = current_context.get(None)
    record.request_id = call.id if call else None
    record.caller = call.caller if call else None
    caller = f"caller={call.caller} " if call and call.caller else ""
    record.request = f"request={call.id} {caller}" if call else ""
    return True


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger("serving").critical("the process ends with an uncaught error", exc_info=(kind, error, trace))


def _uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
        name = arguments.thread.name if arguments.thread else "unknown"
        logging.getLogger("serving").critical(
            "the thread %s ended with an uncaught error", name, exc_info=arguments.exc_value
        )


def _unraisable(arguments: "sys.UnraisableHookArgs") -> None:
    # Its name only: the repr of such an object may hold anything.
    where = getattr(arguments.object, "__qualname__", type(arguments.object).__name__)
    logging.getLogger("serving").error("an error was ignored in %s", where, exc_info=arguments.exc_value)
