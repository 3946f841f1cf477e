"""YAML into frozen dataclasses; what is wrong is named with its line.

The dataclass is the schema: its annotations say what a value may be, `Annotated[float, Range(...)]` within which
bounds, and a field without a default must be given. Nothing of the text is ever evaluated.
"""

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, cast, get_args, get_origin

import yaml

from speakerlens.training.errors import UserError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, both included unless `above` (then the lower one is not)."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def holds(self, value: float) -> bool:
        """Say whether `value` is finite and within the bounds."""
        return math.isfinite(value) and (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        lower = f"{'above' if self.above else 'at least'} {self.low:g}" if self.low > -math.inf else ""
        upper = f"at most {self.high:g}" if self.high < math.inf else ""
        return " and ".join(part for part in (lower, upper) if part) or "finite"


def load(schema: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Read `path` as one `schema`, with `overrides` of the form `section.key=value` laid over it.

    Raises UserError naming the file and line (or the override) and what would be right.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable configuration: {error}") from error
    return parse(schema, text, str(path), overrides)


def parse(schema: type[T], text: str, name: str, overrides: Sequence[str] = ()) -> T:
    """Read YAML `text` as one `schema`; `name` is what messages call it. Raises UserError."""
    root = _compose(text, name)
    if root is None:
        raise UserError(f"{name}: empty; expected the keys {_names(schema)}")
    for override in overrides:
        _lay_over(root, override)
    return cast(T, _dataclass(schema, root, "the file"))


def dump(value: object) -> str:
    """Write a dataclass as YAML that `parse` reads back to an equal one."""
    return yaml.safe_dump(plain(value), sort_keys=False, default_flow_style=None, width=120)


def plain(value: object) -> Any:
    """Turn nested dataclasses, mappings and tuples into dicts and lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        loader = yaml.SafeLoader(text)
        loader.name = name
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}, line {mark.line + 1}" if mark else name
        raise UserError(f"{where}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not valid YAML: {error}") from error


def _lay_over(root: yaml.Node, override: str) -> None:
    """Set one dotted key of the tree; whether key and value fit is checked with all the rest."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"--set {override}: expected section.key=value, such as optimiser.learning_rate=0.01")
    name = f"--set {override}"
    value = _compose(text, name)
    if value is None:
        raise UserError(f"{name}: no value after the equals sign")
    section = root
    for key in keys[:-1]:
        section = _entry(section, key, yaml.MappingNode("tag:yaml.org,2002:map", [], value.start_mark), replace=False)
    _entry(section, keys[-1], value, replace=True)


def _entry(section: yaml.Node, key: str, value: yaml.Node, replace: bool) -> yaml.Node:
    """Give the value under `key`, after putting `value` there if nothing is, or if it is to be replaced."""
    if not isinstance(section, yaml.MappingNode):
        _fail(value, f'"{key}" cannot be set inside a single value')
    for index, (old_key, old_value) in enumerate(section.value):
        if old_key.value == key:
            if replace:
                section.value[index] = (old_key, value)
            return value if replace else cast(yaml.Node, old_value)
    section.value.append((yaml.ScalarNode("tag:yaml.org,2002:str", key, value.start_mark), value))
    return value


def _fail(node: yaml.Node, problem: str) -> NoReturn:
    mark = node.start_mark
    where = mark.name if mark.name.startswith("--set ") else f"{mark.name}, line {mark.line + 1}"
    raise UserError(f"{where}: {problem}")


def _names(schema: type[object]) -> str:
    return ", ".join(field.name for field in dataclasses.fields(cast(Any, schema)))


def _suggest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f' (did you mean "{near[0]}"?)' if near else ""


def _pairs(node: yaml.Node, section: str, expected: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        _fail(node, f"{section} must be a section of keys: {expected}")
    pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            _fail(key, f"a key of {section} is not a plain word; known keys: {expected}")
        if key.value in pairs:
            _fail(key, f'the key "{key.value}" is given twice in {section}')
        pairs[key.value] = (key, value)
    return pairs


def _dataclass(schema: type[object], node: yaml.Node, section: str) -> object:
    hints = typing.get_type_hints(schema, include_extras=True)
    fields = dataclasses.fields(cast(Any, schema))
    names = [field.name for field in fields]
    pairs = _pairs(node, section, ", ".join(names))
    for name, (key, _) in pairs.items():
        if name not in names:
            _fail(key, f'unknown key "{name}" in {section}{_suggest(name, names)}; known keys: {", ".join(names)}')
    values: dict[str, object] = {}
    for field in fields:
        if field.name in pairs:
            values[field.name] = _value(hints[field.name], pairs[field.name][1], field.name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            _fail(node, f'the key "{field.name}" is missing in {section}')
    try:
        return schema(**values)
    except ValueError as error:  # what a dataclass checks between its own fields
        _fail(node, f"{section}: {error}")


def _value(hint: Any, node: yaml.Node, name: str) -> object:
    bounds = Range()
    if get_origin(hint) is Annotated:
        hint, bounds = get_args(hint)
    origin = get_origin(hint)
    if dataclasses.is_dataclass(hint):
        return _dataclass(cast("type[object]", hint), node, name)
    if origin is tuple:
        return _tuple(get_args(hint), node, name)
    if origin is Mapping:
        return _mapping(get_args(hint), node, name)
    return _scalar(hint, bounds, node, name)


def _tuple(items: tuple[Any, ...], node: yaml.Node, name: str) -> tuple[object, ...]:
    count = None if items[-1] is Ellipsis else len(items)
    if not isinstance(node, yaml.SequenceNode) or count not in (None, len(node.value)):
        _fail(node, f"{name} must be a list{f' of {count} values' if count else ''} such as [a, b]")
    hints = [items[0]] * len(node.value) if count is None else items
    return tuple(_value(hint, item, f"each of {name}") for hint, item in zip(hints, node.value, strict=True))


def _mapping(items: tuple[Any, Any], node: yaml.Node, name: str) -> Mapping[str, object]:
    known = [str(key) for key in get_args(items[0])]
    pairs = _pairs(node, name, ", ".join(known))
    for key, (key_node, _) in pairs.items():
        if key not in known:
            _fail(key_node, f'unknown key "{key}" in {name}{_suggest(key, known)}; known keys: {", ".join(known)}')
    return {key: _value(items[1], value, f"{name}.{key}") for key, (_, value) in pairs.items()}


def _scalar(hint: Any, bounds: Range, node: yaml.Node, name: str) -> object:
    text = node.value if isinstance(node, yaml.ScalarNode) else None
    if get_origin(hint) is Literal:
        choices = [str(choice) for choice in get_args(hint)]
        if text not in choices:
            _fail(node, f"{name} must be one of {', '.join(choices)}, not {text or 'a section or list'}")
        return text
    if hint is bool:
        if text is None or text.lower() not in ("true", "false"):
            _fail(node, f"{name} must be true or false, not {text or 'a section or list'}")
        return text.lower() == "true"
    word = "a whole number" if hint is int else "a number"
    try:
        number: int | float = hint(text)  # `1e-3` too, which YAML 1.1 takes for a word
    except (TypeError, ValueError):
        _fail(node, f"{name} must be {word}, not {text or 'a section or list'}")
    if not bounds.holds(number):
        _fail(node, f"{name} must be {word}, {bounds}, not {text}")
    return number
