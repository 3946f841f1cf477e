"""Mutants of a module's source: each has one operator, number, condition or call changed.

Mutated are comparisons, arithmetic, `and` and `or`, conditions (negated), numbers and booleans, `min` and `max`, and
calls whose result is not used (removed). Log calls, messages, annotations and decorators are left alone.
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
SWAPPED = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all", "all": "any"}
LOGGERS = {"log", "logger", "logging"}


@dataclass(frozen=True)
class Mutant:
    """One change of one module.

    Attributes:
        key: stable name within a version of the source: line, column, change.
        line: that is changed.
        code: the module with the change.
    """

    key: str
    line: int
    code: CodeType


def mutants(source: str, file: Path) -> Iterator[Mutant]:
    """Yield every mutant of a module's source."""
    for index in range(len(list(_changes(ast.parse(source))))):
        tree = ast.parse(source)  # again, as a change is made in place
        node, name, change = list(_changes(tree))[index]
        change()
        key = f"{node.lineno}:{node.col_offset} {name}"
        yield Mutant(key, node.lineno, compile(ast.fix_missing_locations(tree), str(file), "exec"))


def unchanged(source: str, file: Path) -> Mutant:
    """Return a module without a change, which its tests must let pass."""
    return Mutant("0:0 unchanged", 0, compile(source, str(file), "exec"))


Change = tuple[Any, str, Callable[[], None]]


def _changes(node: ast.AST) -> Iterator[Change]:
    """Yield the node, the name and the action of each possible change below `node`."""
    yield from _own_changes(node)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not _exempt(child):
                yield from _changes(child)


def _exempt(node: ast.AST) -> bool:
    """Whether a subtree is left alone: messages, log calls, raised errors, type variables."""
    if isinstance(node, ast.JoinedStr | ast.Raise | ast.Import | ast.ImportFrom):
        return True
    call = node.value if isinstance(node, ast.Expr | ast.Assign) else None
    if not isinstance(call, ast.Call):
        return False
    function = call.func
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id in LOGGERS:
        return True
    return isinstance(function, ast.Name) and function.id in ("TypeVar", "ParamSpec", "NewType")


def _own_changes(node: Any) -> Iterator[Change]:
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            for other in COMPARISONS[type(operator)]:
                yield node, f"{type(operator).__name__}->{other.__name__}", _setter(node.ops, place, other())
    elif isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in ARITHMETIC:
        operator_class = ARITHMETIC[type(node.op)]
        yield node, f"{type(node.op).__name__}->{operator_class.__name__}", _attribute(node, "op", operator_class())
    elif isinstance(node, ast.BoolOp):
        swapped = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield node, f"{type(node.op).__name__} swapped", _attribute(node, "op", swapped)
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        negated = ast.UnaryOp(ast.Not(), node.test)
        yield node, "negated", _attribute(node, "test", ast.copy_location(negated, node.test))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield node, f"{node.value}", _attribute(node, "value", not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        other_number = node.value + 1 if isinstance(node.value, int) else node.value * 1.5 + (not node.value)
        yield node, f"{node.value}->{other_number}", _attribute(node, "value", other_number)
    elif isinstance(node, ast.Name) and node.id in SWAPPED:
        yield node, f"{node.id} swapped", _attribute(node, "id", SWAPPED[node.id])
    elif isinstance(node, ast.Attribute) and node.attr in SWAPPED:
        yield node, f"{node.attr} swapped", _attribute(node, "attr", SWAPPED[node.attr])
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await):
        yield node, "call removed", _attribute(node, "value", ast.copy_location(ast.Constant(None), node.value))


def _setter(values: list[Any], place: int, value: Any) -> Callable[[], None]:
    return lambda: values.__setitem__(place, value)


def _attribute(node: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(node, name, value)
