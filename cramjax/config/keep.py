"""The filter `data.keep`: an expression over the fields of a record, as "score >= 3".

It is a small part of Python, parsed by `ast` and evaluated here by hand: nothing is ever executed.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import operator
from collections.abc import Mapping
from typing import Any

_COMPARISONS = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
    ast.In: lambda item, group: item in group, ast.NotIn: lambda item, group: item not in group,
}  # fmt: skip
_EXAMPLE = "as in \"score >= 3 and lang in ['en', 'de']\""
_MAX_CHARS = 1000


@dataclasses.dataclass(frozen=True)
class Keep:
    """A filter of records.

    Attributes:
        expression: What `problem` finds nothing wrong with.
    """

    expression: str

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that the expression names, sorted; of "meta.lang" it is "meta"."""
        names = set()
        for node in ast.walk(_parsed(self.expression)):
            if isinstance(node, ast.Name):
                names.add(node.id)
        return tuple(sorted(names))

    def accepts(self, record: Mapping[str, Any]) -> bool:
        """Return True if the expression is true of a record.

        A comparison with a field that the record lacks, or that is of another kind, is neither true
        nor false, and neither is its opposite.
        """
        return _truth(_parsed(self.expression), record) is True


def problem(expression: str | None) -> str | None:
    """Return what is wrong with an expression, or None."""
    if expression is None:
        return None
    if len(expression) > _MAX_CHARS:
        return f"must have at most {_MAX_CHARS} characters"
    try:
        body = _parsed(expression)
        wrong = _foreign_part(body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return f"must be an expression over the fields of a record, {_EXAMPLE}"
    if wrong is not None:
        return (
            f"may compare fields with numbers and strings, join comparisons by and, or, not, and "
            f"look for values by in; not {ast.unparse(wrong)!r:.60}; {_EXAMPLE}"
        )
    if not Keep(expression).fields:
        return f"names no field of a record, {_EXAMPLE}"
    return None


@functools.lru_cache(maxsize=8)
def _parsed(expression: str) -> ast.expr:
    return ast.parse(expression.strip(), mode="eval").body


def _foreign_part(node: ast.expr) -> ast.expr | None:
    """Return the part of an expression that stands for a truth value and is not known, or None."""
    if isinstance(node, ast.BoolOp):
        parts = map(_foreign_part, node.values)
        return next((part for part in parts if part is not None), None)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return _foreign_part(node.operand)
    if isinstance(node, ast.Compare):
        for operand in (node.left, *node.comparators):
            if not _is_operand(operand):
                return operand
        is_known = all(type(comparison) in _COMPARISONS for comparison in node.ops)
        return None if is_known else node
    return None if _is_field(node) else node


def _is_operand(node: ast.expr) -> bool:
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return all(_is_constant(item) for item in node.elts)
    return _is_constant(node) or _is_field(node)


def _is_constant(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        node = node.operand
        return isinstance(node, ast.Constant) and type(node.value) in (int, float)
    return isinstance(node, ast.Constant) and isinstance(
        node.value, (int, float, str, bool, type(None))
    )


def _is_field(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute):
        return _is_field(node.value)
    return isinstance(node, ast.Name)


def _truth(node: ast.expr, record: Mapping[str, Any]) -> bool | None:
    """Return the truth of an expression, or None where it cannot be told."""
    if isinstance(node, ast.UnaryOp):
        truth = _truth(node.operand, record)
        return None if truth is None else not truth
    if isinstance(node, ast.BoolOp):
        # One part decides: a false one of "and", a true one of "or".
        decisive = isinstance(node.op, ast.Or)
        truths = [_truth(part, record) for part in node.values]
        if decisive in truths:
            return decisive
        return None if None in truths else not decisive
    if isinstance(node, ast.Compare):
        return _comparison(node, record)
    value = _value(node, record)
    return None if value is None else bool(value)


def _comparison(node: ast.Compare, record: Mapping[str, Any]) -> bool | None:
    """Return the truth of "a < b" or of a chain "a < b <= c"."""
    values = [_value(part, record) for part in (node.left, *node.comparators)]
    truths: list[bool | None] = []
    for kind, left, right in zip(node.ops, values, values[1:], strict=False):
        try:
            # None is a field that is not there, unless it is asked for.
            is_asked = any(_is_none(part) for part in (node.left, *node.comparators))
            if (left is None or right is None) and not is_asked:
                truths.append(None)
            else:
                truths.append(bool(_COMPARISONS[type(kind)](left, right)))
        except TypeError:
            truths.append(None)
    if False in truths:
        return False
    return None if None in truths else True


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _value(node: ast.expr, record: Mapping[str, Any]) -> Any:
    """Return the value of a constant, a list of constants or a field; None for a missing field."""
    if isinstance(node, ast.Name):
        return record.get(node.id)
    if isinstance(node, ast.Attribute):
        outer = _value(node.value, record)
        return outer.get(node.attr) if isinstance(outer, Mapping) else None
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return [ast.literal_eval(item) for item in node.elts]
    return ast.literal_eval(node)
