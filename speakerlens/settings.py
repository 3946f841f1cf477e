"""Read settings from TOML or YAML and validate them with pydantic.

A file becomes a `Tree`: nested values, and for each key the place it was set. `validate` turns a tree into a model.
Every error is one `SettingsError`, a sentence such as
`run.yaml, line 6: unknown key "updats" in the file; did you mean updates?`.
Values keep the types of the file: `true` is not 1, and `"1"` is not a number.
"""

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from speakerlens.arguments import suggestion

if TYPE_CHECKING:
    import yaml

M = TypeVar("M")
STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=False)
Place = tuple[str | int, ...]
"""Where a value is in a tree: ("network", "blocks", 2)."""

# Of a YAML file, with its aliases resolved.
DEEPEST, MOST_VALUES = 50, 100_000
LARGEST_FILE = 2**24
LONGEST_QUOTE = 60
PROBLEMS = {
    "bool_type": "must be true or false, not {shown}",
    "int_type": "must be a whole number, not {shown}",
    "float_type": "must be a number, not {shown}",
    "finite_number": "must be a finite number, not {shown}",
    "string_type": "must be text, not {shown}",
    "path_type": "must be text, not {shown}",
    "tuple_type": "must be a list, not {shown}",
    "list_type": "must be a list, not {shown}",
    "dict_type": "must be a section of keys, not {shown}",
    "model_type": "must be a section of keys, not {shown}",
    "dataclass_type": "must be a section of keys, not {shown}",
    "literal_error": "must be one of {choices}, not {shown}",
    "greater_than_equal": "must be at least {ge}, not {shown}",
    "less_than_equal": "must be at most {le}, not {shown}",
    "greater_than": "must be above {gt}, not {shown}",
    "less_than": "must be below {lt}, not {shown}",
    "too_short": "has too few values",
    "too_long": "has too many values",
    "string_too_short": "must not be empty",
}
"""What is wrong, by pydantic's type of error."""


UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""pydantic's types of error for an unknown key: of a model, of a dataclass."""


class SettingsError(Exception):
    """Raised when settings cannot be used: one sentence that names the place, the key and what would be right."""


class Settings(BaseModel):
    """Base of a settings model: frozen, strict types, finite numbers, unknown keys refused."""

    model_config = STRICT


class Tree:
    """Nested values with the origin of each key.

    Attributes:
        name: what messages call the whole, such as the file's path.
        values: the nested values.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.values: dict[str, Any] = {}
        self._origins: dict[Place, tuple[str, str]] = {}

    def note(self, place: Place, key_origin: str, value_origin: str | None = None) -> None:
        """Record where a key and its value are written, such as `run.yaml, line 3`."""
        self._origins[place] = (key_origin, value_origin or key_origin)

    def origin(self, place: Place, of_key: bool = False) -> str:
        """Return where the value (or the key) at `place` is written, or the nearest section around it."""
        while place and place not in self._origins:
            place = place[:-1]
        return self._origins[place][0 if of_key else 1] if place else self.name

    def set(self, place: Sequence[str], value: Any, origin: str) -> None:
        """Set one value, making the sections around it where they are missing.

        Raises:
            SettingsError: a part of `place` is a single value and not a section.
        """
        section = self.values
        for key in place[:-1]:
            section = section.setdefault(key, {})
            if not isinstance(section, dict):
                raise SettingsError(f'{origin}: "{place[-1]}" cannot be set inside a single value')
        section[place[-1]] = value
        parts = tuple(place)
        for known in [each for each in self._origins if each[: len(parts)] == parts]:
            del self._origins[known]
        for end in range(1, len(parts) + 1):
            if parts[:end] not in self._origins or end == len(parts):
                self.note(parts[:end], origin)


def read_toml(path: Path) -> Tree:
    """Read a TOML file.

    Raises:
        SettingsError: it cannot be read, or is not TOML.
    """
    text = _read(path)
    tree = Tree(str(path))
    try:
        tree.values = tomllib.loads(text)
    except RecursionError as error:
        raise SettingsError(f"{path}: not valid TOML: nested too deeply") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error
    section: Place = ()
    for number, line in enumerate(text.splitlines(), 1):
        # tomllib reports no lines. A line of a multi-line string may be taken for a key: only a message is off then.
        table, key = re.match(r"\s*\[+([^\[\]]+)\]", line), re.match(r"\s*([\w.\"'-]+)\s*=", line)
        if table:
            section = _dotted(table[1])
        place = section if table else (*section, *_dotted(key[1])) if key else ()
        for end in range(1, len(place) + 1):
            if tree.origin(place[:end]) == tree.origin(place[: end - 1]):
                tree.note(place[:end], f"{path}, line {number}")
    return tree


def read_yaml(path: Path) -> Tree:
    """Read a YAML file; needs PyYAML. Errors as for `parse_yaml`, and for a file that cannot be read."""
    return parse_yaml(_read(path), str(path))


def parse_yaml(text: str, name: str) -> Tree:
    """Read YAML text whose top level is a section; `name` is what messages call it.

    Raises:
        SettingsError: it is not YAML, not a section of keys, or sets a key twice.
    """
    tree = Tree(name)
    node = _compose(text, name)
    if node is None:
        raise SettingsError(f"{name}: the file is empty")
    values = _construct(tree, node, (), lambda mark: f"{name}, line {mark.line + 1}")
    if not isinstance(values, dict):
        raise SettingsError(f"{name}, line {node.start_mark.line + 1}: the file must be a section of keys")
    tree.values = values
    return tree


def override_yaml(tree: Tree, override: str) -> None:
    """Lay the `section.key=value` of a flag `--set` over a tree; the value is YAML.

    Raises:
        SettingsError: it has another form, or its place is inside a single value.
    """
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    origin = f"--set {override}"
    if not equals or not all(keys):
        raise SettingsError(f"{origin}: expected section.key=value, such as optimiser.learning_rate=0.01")
    node = _compose(text, origin)
    if node is None:
        raise SettingsError(f"{origin}: no value after the equals sign")
    tree.set(keys, _construct(Tree(), node, (), lambda _: origin), origin)


def text_value(annotation: Any, text: str) -> Any:
    """Return a flag's or an environment variable's text as a value of the type; as text where it is not one."""
    try:
        return TypeAdapter(annotation).validate_strings(text)
    except ValidationError:
        return text


def dotted(place: Place) -> str:
    """Return a place as messages name it: `network.blocks[2]`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def validate(model: type[M], tree: Tree, label: Callable[[Place], str] = dotted) -> M:
    """Return the tree as a model.

    Args:
        model: the settings: a `Settings`, or a dataclass with `__pydantic_config__ = STRICT`.
        tree: values and their origins.
        label: names a place in messages, such as `--port` for ("port",).

    Raises:
        SettingsError: the first thing that is wrong, unknown keys before all others.
    """
    try:
        # By way of JSON, in which strict pydantic takes a list for a tuple and text for a path, but no 1 for true.
        return TypeAdapter(model).validate_json(json.dumps(tree.values, default=str))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        first = min(errors, key=lambda each: each["type"] not in UNKNOWN and each["loc"][-1:] != ("[key]",))
        place: Place = first["loc"]
        unknown = first["type"] in UNKNOWN or place[-1:] == ("[key]",)
        if place[-1:] == ("[key]",):
            place = place[:-1]
        origin = tree.origin(place[:-1] if first["type"] == "missing" else place, of_key=unknown)
        problem = _unknown(model, first) if unknown else _problem(first, label)
        # A flag is its own origin, and the problem begins with its name.
        raise SettingsError(problem if problem.startswith(origin) else f"{origin}: {problem}") from error


def _problem(error: Any, label: Callable[[Place], str]) -> str:
    kind, place, context = error["type"], error["loc"], error.get("ctx", {})
    if kind == "missing" and isinstance(place[-1], str):
        return f'the key "{place[-1]}" is missing in {label(place[:-1]) or "the file"}'
    if kind == "missing":  # an item of a tuple
        kind, place = "too_short", place[:-1]
    if kind == "value_error":
        return f"{label(place)}: {context['error']}" if place else str(context["error"])
    name = label(place) or "the file"
    if kind not in PROBLEMS:
        return f"{name}: {error['msg']}"
    facts = {key: f"{value:.12g}" if isinstance(value, float) else value for key, value in context.items()}
    choices = ", ".join(_choices(context)) if kind == "literal_error" else ""
    return f"{name} {PROBLEMS[kind].format(**facts, shown=_shown(error['input']), choices=choices)}"


def _unknown(model: type[Any], error: Any) -> str:
    place = error["loc"]
    if place[-1] == "[key]":
        key, section, known = place[-2], place[:-2], _choices(error["ctx"])
    else:
        key, section = place[-1], place[:-1]
        known = list(_fields(_model_at(model, section)))
    where = dotted(section) or "the file"
    return f'unknown key "{key}" in {where}{suggestion(str(key), known) or "; known keys: " + ", ".join(known)}'


def _model_at(model: type[Any], place: Place) -> type[Any]:
    for part in place:
        annotation = _fields(model)[str(part)]
        found = [each for each in (annotation, *get_args(annotation)) if isinstance(each, type)]
        model = next((each for each in found if issubclass(each, BaseModel) or is_dataclass(each)), model)
    return model


def _fields(model: type[Any]) -> dict[str, Any]:
    """Return the names and types of a model's or a dataclass's fields."""
    if issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    return {field.name: get_type_hints(model)[field.name] for field in fields(model)}


def _choices(context: Mapping[str, Any]) -> list[str]:
    """Return the names in pydantic's `'a', 'b' or 'c'`."""
    return re.findall(r"'([^']*)'", context["expected"])


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value)
    return text if len(text) <= LONGEST_QUOTE else text[:LONGEST_QUOTE] + "…"


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:  # of a device there is no end
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise SettingsError(f"{path}: larger than {LARGEST_FILE:,} bytes, not a file of settings")
        return content.decode("utf-8")
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8 text") from error


def _dotted(text: str) -> Place:
    return tuple(part.strip().strip("\"'") for part in text.split("."))


def _compose(text: str, name: str) -> "yaml.Node | None":
    import yaml  # noqa: PLC0415  (only training has YAML, and the extra that brings it)

    try:
        node = yaml.compose(text, yaml.SafeLoader)
    except RecursionError as error:
        raise SettingsError(f"{name}: not valid YAML: nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}, line {mark.line + 1}" if mark else name
        raise SettingsError(f"{where}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{name}: not valid YAML: {error}") from error
    _check_size(node, name)
    return node


def _check_size(node: Any, name: str) -> None:
    """Refuse what aliases make endless or very large, before it is built."""
    waiting, count = [(node, 0)], 0
    while waiting:
        each, depth = waiting.pop()
        count += 1
        if depth > DEEPEST or count > MOST_VALUES:
            raise SettingsError(
                f"{name}: not valid YAML: {'nested too deeply' if depth > DEEPEST else 'too many values'}"
            )
        if isinstance(getattr(each, "value", None), list):
            pairs = (part if isinstance(part, tuple) else (part,) for part in each.value)
            waiting += [(item, depth + 1) for pair in pairs for item in pair]


def _construct(tree: Tree, node: Any, place: Place, where: Callable[[Any], str]) -> Any:
    """Return a node's value, and note the origin of everything below it."""
    import yaml  # noqa: PLC0415

    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            tree.note((*place, index), where(item.start_mark))
        return [_construct(tree, item, (*place, index), where) for index, item in enumerate(node.value)]
    if not isinstance(node, yaml.MappingNode):
        return _scalar(node)
    section: dict[str, Any] = {}
    for key, value in node.value:
        inside = f"in {dotted(place) or 'the file'}"
        if not isinstance(key, yaml.ScalarNode):
            raise SettingsError(f"{where(key.start_mark)}: a key {inside} is not a plain word")
        if key.value in section:
            raise SettingsError(f'{where(key.start_mark)}: the key "{key.value}" is given twice {inside}')
        inner = (*place, key.value)
        tree.note(inner, where(key.start_mark), where(value.start_mark))
        section[key.value] = _construct(tree, value, inner, where)
    return section


def _scalar(node: Any) -> Any:
    """Return a scalar by the rules of YAML 1.2's core schema: `1e-3` is a number, `yes` and `2020-01-01` are text."""
    text: str = node.value
    if node.style in ("'", '"', "|", ">"):
        return text
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text.lower() in ("", "~", "null"):
        return None
    for kind in (int, float):
        try:
            return kind(text.removeprefix(".") if text.lower() in (".nan", ".inf") else text)
        except ValueError:
            continue
    return text
