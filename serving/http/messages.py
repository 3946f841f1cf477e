"""JSON and forms to messages and back, by the JSON mapping of protobuf with the names of the contract's fields."""

import json
import re
from email.message import Message as Headers
from email.parser import BytesHeaderParser
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.errors import InvalidArgumentError, Reason, listed, quoted

MessageT = TypeVar("MessageT", bound=Message)

JSON, FORM = "application/json", "multipart/form-data"
# The part of a form that holds the rest of the request as JSON.
REST = "request"
MAX_PARTS, MAX_PART_HEADER_BYTES = 512, 4096
DEEPEST = 16
BASE64_FIELDS = frozenset({"encoded", "samples"})
NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/_=-]")
UNKNOWN_FIELD = re.compile(r'has no field named "(.*)" at "', re.DOTALL)
BOUNDARY_BYTES = 70


def parse_body(kind: type[MessageT], content_type: str, body: bytes) -> MessageT:
    """Return the request that a body holds.

    Args:
        kind: of message.
        content_type: header of that name: JSON, or a form with files.
        body: the whole of it.

    Raises:
        InvalidArgumentError: the body is not of that type, or does not fit the message.
    """
    media, _, _ = content_type.partition(";")
    if media.strip().lower() == FORM:
        return _parse_form(kind, content_type, body)
    return parse_json(kind, body)


def is_accepted(content_type: str) -> bool:
    """Return whether a body of that type is read."""
    return content_type.partition(";")[0].strip().lower() in (JSON, FORM)


def parse_json(kind: type[MessageT], text: bytes | str) -> MessageT:
    """Return the message of a JSON text.

    Raises:
        InvalidArgumentError: it is not JSON, or does not fit the message.
    """
    try:
        values = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        raise InvalidArgumentError(Reason.MALFORMED, "the body is not JSON in UTF-8") from None
    if not isinstance(values, dict):
        raise InvalidArgumentError(Reason.MALFORMED, "the body must be a JSON object")
    return parse_values(kind, values)


def parse_values(kind: type[MessageT], values: dict[str, Any]) -> MessageT:
    """Return the message of parsed JSON; errors as for `parse_json`."""
    _check(values, "", 0)
    message = kind()
    try:
        json_format.ParseDict(values, message, max_recursion_depth=DEEPEST)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise InvalidArgumentError(Reason.MALFORMED, _fault(kind, str(error))) from None
    return message


def to_json(message: Message) -> bytes:
    """Return a message as JSON; fields without presence are written even at their default, such as `known`."""
    values = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


def _check(value: Any, place: str, depth: int) -> None:
    """Refuse what protobuf's parser would take: text that is not base64, of which it drops what it does not know."""
    if depth > DEEPEST:
        raise InvalidArgumentError(Reason.MALFORMED, "the JSON is nested too deeply")
    if isinstance(value, list):
        for index, each in enumerate(value):
            if isinstance(each, dict | list):
                _check(each, f"{place}[{index}]", depth + 1)
    elif isinstance(value, dict):
        for name, each in value.items():
            inner = f"{place}.{name}".removeprefix(".")
            if isinstance(each, dict | list):
                _check(each, inner, depth + 1)
            elif name in BASE64_FIELDS and isinstance(each, str) and NOT_BASE64.search(each):
                cure = "; leave out what is before the comma of a data: URL" if each.startswith("data:") else ""
                raise InvalidArgumentError(Reason.MALFORMED, f"{inner}: not base64{cure}")


def _fault(kind: type[Message], text: str) -> str:
    """Return one sentence on why values do not fit a message; what the client wrote is quoted."""
    unknown = UNKNOWN_FIELD.search(text)
    if unknown:
        return f"the request has no field {quoted(unknown[1])} there; see /openapi.json for {kind.DESCRIPTOR.name}"
    return f"the JSON does not fit {kind.DESCRIPTOR.name}: {quoted(text)}"


def _parse_form(kind: type[MessageT], content_type: str, body: bytes) -> MessageT:
    """Return the message of a form: the part `request` as JSON, and a file for each field of audio."""
    files: list[tuple[str, bytes]] = []
    rest: bytes | None = None
    audio = _audio_fields(kind)
    for name, content in _parts(content_type, body):
        if name == REST and rest is not None:
            raise InvalidArgumentError(Reason.MALFORMED, f"the form has {REST} twice")
        if name == REST:
            rest = content
        elif name in audio:
            files.append((name, content))
        else:
            raise InvalidArgumentError(
                Reason.MALFORMED, f"the form has a part {quoted(name)}; parts are {listed([REST, *audio])}"
            )
    message = parse_json(kind, rest or b"")
    filled: dict[str, int] = {}
    for name, content in files:
        place = filled.get(name, 0)
        filled[name] = place + 1
        field = getattr(message, name)
        if _repeated(audio[name]):
            target = field[place] if place < len(field) else field.add()
        elif place:
            raise InvalidArgumentError(Reason.MALFORMED, f"the form has {name} twice")
        else:
            target = field
        if target.WhichOneof("source"):
            raise InvalidArgumentError(Reason.MALFORMED, f"the form has {name} as a file and in {REST}")
        target.encoded = content
    return message


def _audio_fields(kind: type[Message]) -> dict[str, FieldDescriptor]:
    return {field.name: field for field in kind.DESCRIPTOR.fields if field.message_type is pb.Audio.DESCRIPTOR}


def _repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _parts(content_type: str, body: bytes) -> list[tuple[str, bytes]]:
    """Return the name and the content of each part of a form (RFC 7578)."""
    header = Headers()
    header["content-type"] = content_type
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not boundary.isascii() or not 1 <= len(boundary) <= BOUNDARY_BYTES:
        raise InvalidArgumentError(Reason.MALFORMED, "content-type: a form needs a boundary")
    _, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode(), MAX_PARTS + 2)
    if not parts or not parts[-1].startswith(b"--"):
        raise InvalidArgumentError(
            Reason.MALFORMED, f"the form does not end with its boundary, or has more than {MAX_PARTS} parts"
        )
    return [_part(each) for each in parts[:-1]]


def _part(text: bytes) -> tuple[str, bytes]:
    end = text.find(b"\r\n\r\n", 0, MAX_PART_HEADER_BYTES)
    if not text.startswith(b"\r\n") or end < 0:
        raise InvalidArgumentError(Reason.MALFORMED, "a part of the form has no headers, or too long ones")
    headers = BytesHeaderParser().parsebytes(text[2 : end + 2])
    name = headers.get_param("name", header="content-disposition")
    if not isinstance(name, str):
        raise InvalidArgumentError(Reason.MALFORMED, "a part of the form has no name")
    return name, text[end + 4 :]
