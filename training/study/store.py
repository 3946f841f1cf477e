"""What was measured of each run, kept on disk so that it is measured once, with the revision of the code that did.

The files are Python's JSON: figures without a value stand as NaN, so that a result is read back as it was written.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from speakerlens.training.checkpoint import code_revision
from speakerlens.training.errors import UserError
from speakerlens.training.files import write_whole

Result = TypeVar("Result")


_DAMAGED = "damaged; delete it, and it is measured again"


class Stored(NamedTuple, Generic[Result]):
    """A result, and the revision of the code that found it."""

    found: Result
    code_revision: str


def digest_of(file: Path) -> str:
    """SHA-256 of a file, in hex."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_result(path: Path, kind: type[Result], identity: Mapping[str, object]) -> Stored[Result] | None:
    """Read a result; None if there is none, or it is of another network, corpus, version or setting.

    Args:
        path: the file.
        kind: what `write_result` was given: dataclasses, tuples, mappings and plain values, to any depth.
        identity: what it must be of.

    Raises:
        UserError: the file is damaged, was changed by hand, or cannot be read.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["of"] != json.loads(json.dumps(identity)):
            return None
        whole = stored["digest"] == _digest(stored["found"])
        result: Stored[Result] = Stored(_revive(kind, stored["found"]), str(stored["code_revision"]))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); clear the way, or name another --out") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {_DAMAGED}") from error
    if not whole:
        raise UserError(f"{path}: {_DAMAGED}")
    return result


def write_result(path: Path, found: object, identity: Mapping[str, object]) -> None:
    """Write a result in one step: whatever happens, the file is whole or not there. UserError if it cannot be."""
    plain = json.loads(json.dumps(_plain(found)))
    stored = {"of": identity, "code_revision": code_revision(), "digest": _digest(plain), "found": plain}
    write_whole(path, json.dumps(stored, ensure_ascii=False) + "\n")


def _digest(plain: object) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _revive(kind: Any, value: Any) -> Any:
    """Turn JSON back into what it was."""
    arguments = get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        fields = {field.name: _revive(hints[field.name], value[field.name]) for field in dataclasses.fields(kind)}
        return kind(**fields)  # type: ignore[operator]
    if get_origin(kind) is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_revive(item, part) for item, part in zip(kinds, value, strict=True))
    if get_origin(kind) is Mapping:
        return {key: _revive(arguments[1], item) for key, item in value.items()}
    if isinstance(kind, UnionType):
        return None if value is None else _revive(next(item for item in arguments if item is not type(None)), value)
    return value
