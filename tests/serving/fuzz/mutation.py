"""Damaged bytes and wild messages, drawn by hypothesis so that what fails is made small."""

import struct
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
MOST_OPERATIONS = 4
MOST_WILD_FIELDS = 3
DEEPER = 4

WHOLE = st.one_of(
    st.integers(-3, 20),
    st.sampled_from([2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1, 16_000, 960_000]),
)
FRACTIONS = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1e-45, 1e38, float("nan"), float("inf"), -float("inf")]))
TEXTS = st.one_of(
    st.sampled_from(
        ["", "da", "clean", "audio", "\x00", "../..", "a\r\nb", "é" * 300, "x" * 5000, "speaker-03", "1", "-1"]
    ),
    st.text(max_size=20),
)
BYTES = st.one_of(
    st.binary(max_size=64), st.sampled_from([bytes(4), bytes(64_000), b"\xff" * 4096, b"\x00\x3c" * 20_000])
)
KINDS: dict[int, tuple[st.SearchStrategy[Any], tuple[int, int] | None]] = {
    FieldDescriptor.CPPTYPE_INT32: (WHOLE, (-(2**31), 2**31 - 1)),
    FieldDescriptor.CPPTYPE_UINT32: (WHOLE, (0, 2**32 - 1)),
    FieldDescriptor.CPPTYPE_INT64: (WHOLE, (-(2**63), 2**63 - 1)),
    FieldDescriptor.CPPTYPE_UINT64: (WHOLE, (0, 2**64 - 1)),
    FieldDescriptor.CPPTYPE_ENUM: (WHOLE, (-(2**31), 2**31 - 1)),
    FieldDescriptor.CPPTYPE_FLOAT: (FRACTIONS, None),
    FieldDescriptor.CPPTYPE_DOUBLE: (FRACTIONS, None),
    FieldDescriptor.CPPTYPE_BOOL: (st.booleans(), None),
}


SeedT = TypeVar("SeedT")


class Seeds(Generic[SeedT]):
    """What is damaged; hypothesis writes out its arguments, and these are long."""

    def __init__(self, seeds: Iterable[SeedT]) -> None:
        self._seeds = tuple(seeds)

    def __repr__(self) -> str:
        return f"<{len(self._seeds)} seeds>"

    def draw(self, draw: Callable[[st.SearchStrategy[int]], int]) -> SeedT:
        """One of them."""
        return self._seeds[draw(st.integers(0, len(self._seeds) - 1))]


@st.composite
def damaged(draw: st.DrawFn, seeds: Seeds[bytes]) -> bytes:
    """One of the seeds after some operations: bytes changed, cut out, doubled, put in, or another seed's end."""
    data = bytearray(seeds.draw(draw))
    for _ in range(draw(st.integers(1, MOST_OPERATIONS))):
        data = _operated(draw, data, seeds)
    return bytes(data)


def _operated(draw: st.DrawFn, data: bytearray, seeds: Seeds[bytes]) -> bytearray:
    at = _position(draw, len(data))
    size = draw(st.sampled_from([1, 2, 4, 8, 33, 1000, 20_000]))
    kind = draw(st.sampled_from(["flip", "number", "noise", "cut", "double", "insert", "end", "splice"]))
    if kind == "flip" and at < len(data):
        data[at] ^= 1 << draw(st.integers(0, 7))
    elif kind == "number":
        data[at : at + 4] = struct.pack(draw(st.sampled_from(["<I", ">I"])), draw(st.sampled_from(EXTREMES)))
    elif kind == "noise":
        data[at : at + size] = draw(st.binary(min_size=1, max_size=16)) * (size // 16 + 1)
    elif kind == "cut":
        del data[at : at + size]
    elif kind == "double":
        data[at:at] = data[at : at + size]
    elif kind == "insert":
        data[at:at] = draw(st.binary(max_size=32))
    elif kind == "end":
        del data[at:]
    else:
        other = seeds.draw(draw)
        data[at:] = other[_position(draw, len(other)) :]
    return data


def _position(draw: st.DrawFn, size: int) -> int:
    """Somewhere; every fourth time in the first bytes, where headers are."""
    return draw(st.integers(0, min(size, 64) if draw(st.integers(0, 3)) == 0 else size))


@st.composite
def wild(draw: st.DrawFn, templates: Seeds[Message]) -> Any:
    """A valid message of a template's type, in which some fields, at any depth, have wild values."""
    template = templates.draw(draw)
    message = type(template)()
    message.CopyFrom(template)
    for _ in range(draw(st.integers(1, MOST_WILD_FIELDS))):
        _set_wild(draw, message)
    return message


def _set_wild(draw: st.DrawFn, message: Any) -> None:
    fields = list(message.DESCRIPTOR.fields)
    if not fields:
        return
    # What is deep down is rarely reached else.
    fields += [field for field in fields if field.message_type is not None] * DEEPER
    field = fields[draw(st.integers(0, len(fields) - 1))]
    if draw(st.integers(0, 9)) == 0:
        message.ClearField(field.name)
    elif field.message_type is None:
        _set_value(draw, message, field)
    elif field.message_type.GetOptions().map_entry:
        _set_entry(draw, getattr(message, field.name), field.message_type)
    elif field.is_repeated:
        items = getattr(message, field.name)
        change = draw(st.sampled_from(["add", "remove", "within", "within"]))
        if change == "add" or not items:
            _set_wild(draw, items.add())
        elif change == "remove":
            del items[draw(st.integers(0, len(items) - 1))]
        else:
            _set_wild(draw, items[draw(st.integers(0, len(items) - 1))])
    else:
        inner = getattr(message, field.name)
        inner.SetInParent()
        _set_wild(draw, inner)


def _set_value(draw: st.DrawFn, message: Any, field: FieldDescriptor) -> None:
    if not field.is_repeated:
        setattr(message, field.name, _value(draw, field))
        return
    items = getattr(message, field.name)
    if draw(st.booleans()) or not items:
        items.extend([_value(draw, field)] * draw(st.sampled_from([1, 2, 9, 1000])))
    else:
        items[draw(st.integers(0, len(items) - 1))] = _value(draw, field)


def _set_entry(draw: st.DrawFn, entries: Any, entry: Any) -> None:
    key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
    names = st.sampled_from(["priority", "timeout", "sequence_id", "classification", "shared_memory_region"])
    text = key.cpp_type == FieldDescriptor.CPPTYPE_STRING
    name = draw(st.one_of(names, TEXTS)) if text else _value(draw, key)
    if value.message_type is None:
        entries[name] = _value(draw, value)
    else:
        _set_wild(draw, entries[name])


def _value(draw: st.DrawFn, field: FieldDescriptor) -> Any:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return draw(BYTES if field.type == FieldDescriptor.TYPE_BYTES else TEXTS)
    strategy, limits = KINDS[field.cpp_type]
    value = draw(strategy)
    return value if limits is None else min(max(value, limits[0]), limits[1])
