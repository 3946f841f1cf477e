"""What was measured of each run, kept on disk so that it is measured once.

The files are Python's JSON: figures without a value stand as NaN, so that a result is read back as it was written.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from training.errors import UserError
from training.folders import make_folder

Result = TypeVar("Result")


def digest_of(file: Path) -> str:
    """SHA-256 of a file, in hex."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def read_result(path: Path, kind: type[Result], identity: Mapping[str, object]) -> Result | None:
    """Read a result; None if there is none, or it is of something else: another network, corpus or setting.

    Args:
        path: the file.
        kind: what `write_result` was given: dataclasses, tuples, mappings and plain values, to any depth.
        identity: what it must be of.

    Raises:
        UserError: the file is damaged.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["of"] != json.loads(json.dumps(identity)):
            return None
        found: Result = _revive(kind, stored["found"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged; delete it, and it is measured again") from error
    return found


def write_result(path: Path, found: object, identity: Mapping[str, object]) -> None:
    """Write a result in one step: whatever happens, the file is whole or not there."""
    make_folder(path.parent)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    stored = {"of": identity, "found": _plain(found)}
    unfinished.write_text(json.dumps(stored, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


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
