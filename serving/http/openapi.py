"""The calls offered over HTTP, and their description as OpenAPI 3.1, written from the contract and its comments."""

import re
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from speakerlens._version import __version__
from speakerlens.protos.speakerlens.v1 import identification_pb2 as pb
from speakerlens.serving.http.context import STATUSES, TIMEOUT_HEADER
from speakerlens.serving.http.messages import FORM, JSON, REST

SOURCE = "speakerlens/v1/identification.proto"


class Address(NamedTuple):
    """A method of the service, and where it is: HTTP's method and path, and the type of its requests."""

    method: str
    path: str
    rpc: str
    request: type[Message]


SINGLE = (
    Address("POST", "/v1/identify", "Identify", pb.IdentifyRequest),
    Address("POST", "/v1/identify-batch", "IdentifyBatch", pb.IdentifyBatchRequest),
    Address("POST", "/v1/embed", "Embed", pb.EmbedRequest),
    Address("POST", "/v1/verify", "Verify", pb.VerifyRequest),
    Address("POST", "/v1/search", "Search", pb.SearchRequest),
    Address("POST", "/v1/search-batch", "SearchBatch", pb.SearchBatchRequest),
    Address("POST", "/v1/enroll", "Enroll", pb.EnrollRequest),
    Address("GET", "/v1/speakers", "ListSpeakers", pb.ListSpeakersRequest),
    Address("DELETE", "/v1/speakers/{speaker}", "RemoveSpeaker", pb.RemoveSpeakerRequest),
    Address("GET", "/v1/models", "ListModels", pb.ListModelsRequest),
)
STREAMS = (
    Address("GET", "/v1/identify/live", "IdentifyStream", pb.IdentifyStreamRequest),
    Address("GET", "/v1/search/live", "SearchStream", pb.SearchStreamRequest),
)
NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number", "format": "double"},
    FieldDescriptor.CPPTYPE_FLOAT: {"type": "number", "format": "float"},
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
}
ERROR = {
    "description": "An error: the name of a gRPC status, and one sentence that names the field and the limit.",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
PROBLEM = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "code": {"type": "string", "enum": sorted(set(STATUSES) - {"OK"})},
        "detail": {"type": "string"},
        "request_id": {"type": "string"},
    },
}


@cache
def description() -> dict[str, Any]:
    """Return the OpenAPI document."""
    comments = dict(_comments(resources.files("speakerlens.protos").joinpath(SOURCE).read_text("utf-8")))
    schemas: dict[str, Any] = {"Problem": PROBLEM}
    paths: dict[str, Any] = {}
    for each in SINGLE:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, comments, schemas)
    for each in STREAMS:
        method = _method(each.rpc)
        _collect(method.input_type, comments, schemas)
        _collect(method.output_type, comments, schemas)
        text = (
            f"{comments.get(each.rpc, '')}\n\nA WebSocket. Send a text with `start` ({method.input_type.name}), then "
            'binary messages of samples, then the text `{"end": true}`; every answer is a text '
            f"({method.output_type.name}). An error is a text with `error` (Problem) before the end. A browser sends "
            "its token as the protocol `bearer.` and the token in base64 for URLs, beside the protocol `speakerlens`."
        )
        paths[each.path] = {
            "get": {
                "operationId": each.rpc,
                "summary": each.rpc,
                "description": text.strip(),
                "responses": {"101": {"description": "The connection is a WebSocket from now on."}},
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "speakerlens",
            "version": __version__,
            "description": "Who is speaking, and which parts of the audio the model used. Every call is as by gRPC, "
            "with the same fields, limits, tokens and errors.",
        },
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"token": []}],
    }


def _method(rpc: str) -> Any:
    return pb.DESCRIPTOR.services_by_name["SpeakerIdentification"].methods_by_name[rpc]


def _operation(address: Address, comments: dict[str, str], schemas: dict[str, Any]) -> dict[str, Any]:
    method = _method(address.rpc)
    _collect(method.output_type, comments, schemas)
    timeout = {
        "name": TIMEOUT_HEADER,
        "in": "header",
        "description": "Deadline in milliseconds from now.",
        "schema": {"type": "integer"},
    }
    found: dict[str, Any] = {
        "operationId": address.rpc,
        "summary": address.rpc,
        "description": comments.get(address.rpc, ""),
        "parameters": [timeout],
        "responses": {
            "200": {"description": "The answer.", "content": {JSON: {"schema": _reference(method.output_type)}}},
            "default": ERROR,
        },
    }
    if address.method != "POST":
        for field in method.input_type.fields:
            place = "path" if f"{{{field.name}}}" in address.path else "query"
            schema = _schema(field, comments, schemas)
            found["parameters"].append({"name": field.name, "in": place, "required": place == "path", "schema": schema})
        return found
    _collect(method.input_type, comments, schemas)
    content: dict[str, Any] = {JSON: {"schema": _reference(method.input_type)}}
    files = [field for field in method.input_type.fields if field.message_type is pb.Audio.DESCRIPTOR]
    if files:
        parts: dict[str, Any] = {
            REST: {"description": "The other fields, as JSON.", **_reference(method.input_type)},
        }
        for field in files:
            file = {"type": "string", "contentMediaType": "audio/*", "description": "A file."}
            parts[field.name] = {"type": "array", "items": file} if _repeated(field) else file
        content[FORM] = {"schema": {"type": "object", "properties": parts}}
    found["requestBody"] = {"required": True, "content": content}
    return found


def _reference(message: Descriptor | EnumDescriptor) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{message.name}"}


def _collect(message: Descriptor, comments: dict[str, str], schemas: dict[str, Any]) -> None:
    """Add a message, and all that it refers to, to the schemas."""
    if message.name in schemas:
        return
    schema: dict[str, Any] = {"type": "object", "description": comments.get(message.name, ""), "properties": {}}
    schemas[message.name] = schema
    for field in message.fields:
        about = comments.get(f"{message.name}.{field.name}", "")
        if field.containing_oneof is not None and len(field.containing_oneof.fields) > 1:
            others = ", ".join(each.name for each in field.containing_oneof.fields if each is not field)
            about = f"{about} Instead of {others}.".strip()
        described = {"description": about} if about else {}
        schema["properties"][field.name] = {**_schema(field, comments, schemas), **described}


def _schema(field: FieldDescriptor, comments: dict[str, str], schemas: dict[str, Any]) -> dict[str, Any]:
    if field.message_type is not None:
        _collect(field.message_type, comments, schemas)
        schema: dict[str, Any] = dict(_reference(field.message_type))
    elif field.enum_type is not None:
        names = [value.name for value in field.enum_type.values]
        about = "; ".join(f"{name}: {comments[name]}" for name in names if comments.get(name))
        schemas.setdefault(field.enum_type.name, {"type": "string", "enum": names, "description": about})
        schema = dict(_reference(field.enum_type))
    elif field.type == FieldDescriptor.TYPE_BYTES:
        schema = {"type": "string", "contentEncoding": "base64"}
    else:
        schema = dict(NUMBERS.get(field.cpp_type, {"type": "string"}))
    return {"type": "array", "items": schema} if _repeated(field) else schema


def _repeated(field: FieldDescriptor) -> bool:
    return bool(field.is_repeated)


def _unwrapped(lines: list[str]) -> str:
    """Return a comment with its line breaks only where a paragraph or an entry of a list, such as a status, begins."""
    text = ""
    for line in lines:
        begins = not line or not text or text.endswith("\n") or re.match(r"[A-Z_]{4,}\s|- ", line)
        text += line if not text else f"\n{line}" if begins else f" {line}"
    return text.strip()


def _comments(source: str) -> Iterator[tuple[str, str]]:
    """Yield the comment above each message, field (`Message.field`), enum, value and method of the contract."""
    block: list[str] = []
    around: list[str] = []
    for line in map(str.strip, source.splitlines()):
        if line.startswith("//"):
            block.append(line.removeprefix("//").strip())
            continue
        text, block = _unwrapped(block), []
        named = re.match(r"(?:message|enum|service|oneof|rpc)\s+(\w+)", line)
        field = re.match(r"(?:(?:repeated|optional)\s+)?[\w.]+\s+(\w+)\s*=\s*\d+;", line)
        value = re.match(r"([A-Z][A-Z0-9_]+)\s*=\s*\d+;", line)
        if text and named:
            yield named[1], text
        elif text and value:
            yield value[1], text
        elif text and field:
            yield f"{around[0]}.{field[1]}", text
        if line.endswith("{"):
            around.append(named[1] if named else "")
        elif line == "}":
            around.pop()
