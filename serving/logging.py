"""The log on stderr: lines for people, or one JSON object a line, each with the id of the request it belongs to.

What a line may hold is decided where it is written: names, numbers and sentences, never audio, embeddings or tokens.
"""

import json
import logging
import sys
import threading
import time
from types import TracebackType
from typing import Any

from speakerlens.serving.context import current_context
from speakerlens.serving.standard_error import capture

TEXT = "%(asctime)s %(levelname)s %(name)s %(request)s%(message)s"


def configure(level: str, kind: str) -> None:
    """Sends the process's log to stderr: `level` as in `Config.log_level`, `kind` as in `Config.log_format`.

    What nobody catches, in any thread, becomes a line of the log, too; as JSON, also what C libraries write to stderr.
    """
    handler = logging.StreamHandler(capture() if kind == "json" else sys.stderr)
    handler.addFilter(_note_request)
    handler.setFormatter(JsonFormatter() if kind == "json" else logging.Formatter(TEXT))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message; request_id and caller in a request; exception.

    A record's `extra={"fields": {...}}` are keys of the object.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record's line, without a line break in it."""
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
    """Writes into the record which request it belongs to, and the name of the token that the request came with."""
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
    logging.getLogger("serving").critical("ends because of an error nobody caught", exc_info=(kind, error, trace))


def _uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
        name = arguments.thread.name if arguments.thread else "unknown"
        logging.getLogger("serving").critical(
            "the thread %s ended because of an error", name, exc_info=arguments.exc_value
        )


def _unraisable(arguments: "sys.UnraisableHookArgs") -> None:
    # Its name only, as what such an object prints of itself may be anything.
    where = getattr(arguments.object, "__qualname__", type(arguments.object).__name__)
    logging.getLogger("serving").error("an error was ignored in %s", where, exc_info=arguments.exc_value)
