"""A small language that chooses rows of a table: `name == "B/16" and adapt_resolution >= 384`.

It compares columns with numbers and texts, and joins comparisons by `and`, `or`, `not` and
parentheses, as Python and pandas write them. Python's parser reads it; nothing is ever executed.
"""

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from vit_jax.errors import UserError, short, suggest

Row = Mapping[str, Any]
Value = Callable[[Row], Any]

_MAX_LENGTH = 1000  # characters: Python's parser, and this one, nest as deep as a text is long
_EXAMPLE = """'name == "B/16" and adapt_resolution >= 384'"""
_ORDERS: dict[type, Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_NUMBER, _TEXT = "a number", "a text"


def compiled(query: str, columns: Mapping[str, type]) -> Callable[[Row], bool]:
    """Whether a row is meant by the query, as a function of the row.

    A row that has None in a column is not meant by a comparison of that column but by `!=` and
    `not in`.

    Args:
      query: The text.
      columns: What there is to compare, and whether it is `float`, numbers, or `str`, texts.

    Raises:
      UserError: for what is no query, an unknown column, or a text that is compared with a number.
    """
    return _Compiler(query, columns).condition(_parsed(query).body)


def _parsed(query: str) -> ast.Expression:
    if len(query) > _MAX_LENGTH:
        raise UserError(f"a query has at most {_MAX_LENGTH} characters; this one has {len(query)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unknown escapes in texts
            return ast.parse(query.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else "it cannot be parsed"
        raise UserError(
            f"{short(query)!r} is no query: {reason}. Expected comparisons such as {_EXAMPLE}"
        ) from None


class _Compiler:
    """One method for what may stand where; whatever else Python knows is refused."""

    def __init__(self, query: str, columns: Mapping[str, type]):
        self._query, self._columns = query.strip(), columns

    def condition(self, node: ast.expr) -> Callable[[Row], bool]:
        match node:
            case ast.BoolOp(op=op, values=values):
                parts = [self.condition(value) for value in values]
                join = all if isinstance(op, ast.And) else any
                return lambda row: join(part(row) for part in parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                part = self.condition(operand)
                return lambda row: not part(row)
            case ast.Compare(left=left, ops=ops, comparators=others):
                pairs = zip([left, *others], ops, others, strict=False)
                parts = [self._comparison(*pair) for pair in pairs]
                return lambda row: all(part(row) for part in parts)
        raise self._refused(node, f"is no comparison; expected such as {_EXAMPLE}")

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Value:
        kind, value = self._value(left)
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple | ast.Set):
                raise self._refused(right, 'is no list; expected such as ("B/16", "B/32")')
            options = [self._same_kind(item, kind, left) for item in right.elts]
            wanted = isinstance(op, ast.In)
            return lambda row: (value(row) in [option(row) for option in options]) is wanted
        if type(op) not in _ORDERS:
            raise self._refused(right, "follows `is`; compare with == or !=")
        holds, other = _ORDERS[type(op)], self._same_kind(right, kind, left)
        if isinstance(op, ast.NotEq):
            return lambda row: value(row) != other(row)

        def compare(row: Row) -> bool:
            x, y = value(row), other(row)
            return x is not None and y is not None and holds(x, y)

        return compare

    def _same_kind(self, node: ast.expr, kind: str, beside: ast.expr) -> Value:
        found, value = self._value(node)
        if found != kind:
            raise self._refused(node, f"is {found}, and {self._text(beside)} is {kind}")
        return value

    def _value(self, node: ast.expr) -> tuple[str, Value]:
        """Whether it is a number or a text, and a function that gives it."""
        match node:
            case ast.Constant(value=str() as text):
                return _TEXT, lambda row: text
            case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
                return _NUMBER, lambda row: number
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() as operand):
                kind, value = self._value(operand)
                if kind == _NUMBER:
                    return kind, lambda row: -value(row)
            case ast.Name(id=name):
                kind = _TEXT if self._column(name) is str else _NUMBER
                return kind, lambda row: row[name]
        why = "is no column, number or quoted text; `and`, `or` and `not` join comparisons"
        raise self._refused(node, why)

    def _column(self, name: str) -> type:
        if name not in self._columns:
            known = ", ".join(self._columns)
            raise UserError(
                f"no column {name!r}.{suggest(name, self._columns)} Known: {known}. A text stands "
                "in quotes"
            )
        return self._columns[name]

    def _refused(self, node: ast.expr, why: str) -> UserError:
        return UserError(f"in the query {short(self._query)!r}, {self._text(node)} {why}")

    def _text(self, node: ast.expr) -> str:
        return short(ast.get_source_segment(self._query, node) or "this")
