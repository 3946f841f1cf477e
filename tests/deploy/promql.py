"""Parse PromQL: the selectors of an expression, with the functions and aggregations around each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser as promql


@dataclass(frozen=True)
class Selector:
    """A selector of series.

    Args:
        name: of the metric.
        matchers: by label, as `=~value`.
        around: names of the enclosing functions and aggregations, the innermost first.
        kept: labels that each enclosing aggregation keeps, the innermost first; empty for `without`.
        text: the selector without its range.
    """

    name: str
    matchers: dict[str, str]
    around: tuple[str, ...]
    kept: tuple[frozenset[str], ...]
    text: str


def selectors(expression: str) -> list[Selector]:
    """Return all selectors of an expression without variables; raise ValueError if it cannot be parsed."""
    return list(_walk(promql.parse(expression), (), ()))


def _walk(node: Any, around: tuple[str, ...], kept: tuple[frozenset[str], ...]) -> Iterator[Selector]:
    match node:
        case promql.VectorSelector():
            matchers = {each.name: f"{_operator(each.op)}{each.value}" for each in node.matchers.matchers}
            yield Selector(node.name or "", matchers, around, kept, node.prettify())
        case promql.MatrixSelector():
            yield from _walk(node.vector_selector, around, kept)
        case promql.Call():
            for argument in node.args:
                yield from _walk(argument, (node.func.name, *around), kept)
        case promql.AggregateExpr():
            modifier = node.modifier
            by = modifier is not None and modifier.type == promql.AggModifierType.By
            labels = frozenset(modifier.labels if modifier is not None and by else ())
            yield from _walk(node.expr, (str(node.op), *around), (labels, *kept))
        case promql.BinaryExpr():
            yield from _walk(node.lhs, around, kept)
            yield from _walk(node.rhs, around, kept)
        case promql.ParenExpr() | promql.SubqueryExpr() | promql.UnaryExpr():
            yield from _walk(node.expr, around, kept)
        case promql.NumberLiteral() | promql.StringLiteral():
            pass
        case _:
            raise TypeError(f"{type(node)} is not known here")


def _operator(operator: Any) -> str:
    operators = [
        (promql.MatchOp.Equal, "="),
        (promql.MatchOp.NotEqual, "!="),
        (promql.MatchOp.Re, "=~"),
        (promql.MatchOp.NotRe, "!~"),
    ]
    return next(text for each, text in operators if each == operator)
