"""Serialises large messages in steps.

Protobuf holds the interpreter's lock for as long as it serialises a message, so that doing it in another thread does
not free the event loop: an answer of 34 MB stops it for 85 ms. Here every part of a message is serialised by itself,
and a long field of bytes is not touched at all until everything is joined, which lets the lock go. `ByteSize` is no
help to learn which messages are large: it serialises them.
"""

import math
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

LARGE_BYTES = 64 * 1024
# Wire type of everything that has a length: messages, strings and bytes.
LENGTH_DELIMITED = 2
MEASURED = (FieldDescriptor.CPPTYPE_MESSAGE, FieldDescriptor.CPPTYPE_STRING)
NUMBER_BYTES = {FieldDescriptor.TYPE_DOUBLE: 8, FieldDescriptor.TYPE_FLOAT: 4}
# A field's number with its length, and a whole number, mostly.
TAG_BYTES, VARINT_BYTES = 2, 2


def is_large(message: Message) -> bool:
    """Whether it takes long enough to serialise to be done away from the event loop."""
    return size_of(message, LARGE_BYTES) >= LARGE_BYTES


def size_of(message: Message, enough: float = math.inf) -> int:
    """About how many bytes a message has; not looked at any further once it has `enough`."""
    size = 0
    for field, value in message.ListFields():
        for part in value if field.is_repeated and field.cpp_type in MEASURED else (value,):
            size += TAG_BYTES + _size(field, part, enough - size)
            if size >= enough:
                return size
    return size


def _size(field: Any, value: Any, enough: float) -> int:
    if isinstance(value, Message):
        return size_of(value, enough)
    if field.cpp_type in MEASURED:  # the key of a map is counted for the entry
        return len(value)
    return NUMBER_BYTES.get(field.type, VARINT_BYTES) * (len(value) if field.is_repeated else 1)


def serialised(message: Message) -> bytes:
    """The same message as `SerializeToString` writes, though not always the same bytes; maps are not supported."""
    return b"".join(_parts(message)) if is_large(message) else message.SerializeToString()


def _parts(message: Message) -> Iterator[bytes]:
    small = type(message)()  # what is left of it once its parts are taken out
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_MESSAGE, field.TYPE_BYTES):
            _copy(small, field, value)
            continue
        for item in value if field.is_repeated else (value,):
            parts = [item] if isinstance(item, bytes) else list(_parts(item) if is_large(item) else _whole(item))
            yield _varint(field.number << 3 | LENGTH_DELIMITED) + _varint(sum(map(len, parts)))
            yield from parts
    yield small.SerializeToString()


def _whole(message: Message) -> Iterator[bytes]:
    yield message.SerializeToString()


def _copy(target: Message, field: Any, value: Any) -> None:
    if field.is_repeated:
        getattr(target, field.name).extend(value)
    else:
        setattr(target, field.name, value)


def _varint(number: int) -> bytes:
    """A number as the wire format has it: seven bits a byte, the low ones first."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)
