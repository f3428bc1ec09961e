"""Small edits of the syntax tree of algebra: a sign, a power, a factor, an index, a bound, a term or an equation.

Text is never edited, nor the symbols that a check names as free, nor what selects from a list. A base is the name of an
indexed quantity, whose entries have indices that may be shifted.
"""

import ast
import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass

_ADDITIVE, _MULTIPLICATIVE = ast.Add | ast.Sub, ast.Mult | ast.Div
_TIMES, _PLUS, _POWER = ast.Mult(), ast.Add(), ast.Pow()
_OPPOSITE = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}


@dataclass(frozen=True)
class Place:
    """An expression that may be edited, and whether it stands in an index or a bound."""

    node: ast.expr
    in_index: bool


def places(statement: ast.stmt, bases: Collection[str]) -> list[Place]:
    """Return the expressions of a statement that may be edited."""
    return list(_below(statement, bases, False))


def variants(place: Place, bases: Collection[str]) -> Iterator[ast.expr]:
    """Yield what may take the place of an expression, without touching the expression itself."""
    node = place.node
    match node:
        case ast.BinOp(left, op, right) if isinstance(op, _ADDITIVE):
            yield from _of_sum(left, op, right, place.in_index)
        case ast.BinOp(left, op, right) if isinstance(op, _MULTIPLICATIVE):
            yield from _of_product(left, op, right)
        case ast.BinOp(base, ast.Pow(), exponent):
            yield from (ast.BinOp(base, _POWER, _next(exponent)), base)
        case ast.UnaryOp(ast.USub(), operand):
            yield operand
        case ast.Constant(value) if type(value) in (int, float):
            yield ast.Constant(value + 1)
        case ast.Subscript(ast.Name(name), index, ast.Load()) if name in bases:
            yield from _of_entry(node, index, place.in_index)
        case ast.Call(args=[summand, *_]) if _is_sum(node):
            yield from _of_total(node, summand)
        case ast.Dict(keys, values) if not any(isinstance(key, ast.Constant | ast.Tuple | None) for key in keys):
            for i in range(len(keys)):
                yield ast.Dict(keys[:i] + keys[i + 1 :], values[:i] + values[i + 1 :])


def swapped(statement: ast.stmt, old: Collection[ast.expr], new: ast.expr) -> ast.stmt:
    """Return a copy of a statement in which one expression stands in the place of each of some others."""
    return copy.deepcopy(statement, {id(node): new for node in old})


def _below(node: ast.AST, bases: Collection[str], in_index: bool) -> Iterator[Place]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.JoinedStr) or (isinstance(child, ast.keyword) and child.arg == "free"):
            continue
        inside = in_index
        if isinstance(node, ast.Subscript) and child is node.slice:
            # An entry's own rule shifts an index that is a name or a number.
            if not (isinstance(node.value, ast.Name) and node.value.id in bases) or isinstance(child, ast.Constant):
                continue
            inside = True
        if isinstance(node, ast.Call) and _is_sum(node) and isinstance(child, ast.Tuple):
            inside = True
        if isinstance(child, ast.expr):
            yield Place(child, inside)
        yield from _below(child, bases, inside)


def _of_sum(left: ast.expr, op: ast.operator, right: ast.expr, in_index: bool) -> Iterator[ast.expr]:
    """The other sign; without either term; either term twice. The left side's own terms are edited there."""
    yield ast.BinOp(left, _OPPOSITE[type(op)](), right)
    yield left
    if not in_index and not isinstance(right, ast.Constant):
        yield ast.BinOp(left, op, _twice(right))
    if isinstance(left, ast.BinOp) and isinstance(left.op, _ADDITIVE):
        return
    yield right if isinstance(op, ast.Add) else ast.UnaryOp(ast.USub(), right)
    if not in_index and not isinstance(left, ast.Constant):
        yield ast.BinOp(_twice(left), op, right)


def _of_product(left: ast.expr, op: ast.operator, right: ast.expr) -> Iterator[ast.expr]:
    """Divided instead of multiplied, or the other way round; without either factor."""
    yield ast.BinOp(left, _OPPOSITE[type(op)](), right)
    yield left
    if isinstance(left, ast.BinOp) and isinstance(left.op, _MULTIPLICATIVE):
        return
    if isinstance(op, ast.Mult):
        yield right
    elif not isinstance(left, ast.Constant):
        yield ast.BinOp(ast.Constant(1), op, right)


def _of_entry(node: ast.Subscript, index: ast.expr, in_index: bool) -> Iterator[ast.expr]:
    if isinstance(index, ast.Name | ast.Constant):
        yield ast.Subscript(node.value, _next(index), node.ctx)
    if not in_index:
        yield ast.BinOp(node, _POWER, ast.Constant(3))


def _of_total(node: ast.Call, summand: ast.expr) -> Iterator[ast.expr]:
    """The summand twice, unless it has terms of its own; the upper bound shifted, where it is a name."""
    if not (isinstance(summand, ast.BinOp) and isinstance(summand.op, _ADDITIVE)):
        yield ast.Call(node.func, [_twice(summand), *node.args[1:]], node.keywords)
    for i, limit in enumerate(node.args):
        if isinstance(limit, ast.Tuple) and isinstance(limit.elts[-1], ast.Name):
            shifted = ast.Tuple([*limit.elts[:-1], _next(limit.elts[-1])], limit.ctx)
            yield ast.Call(node.func, [*node.args[:i], shifted, *node.args[i + 1 :]], node.keywords)


def _is_sum(call: ast.Call) -> bool:
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    return name == "Sum" or name.startswith("over_")


def _next(node: ast.expr) -> ast.expr:
    if isinstance(node, ast.Constant):
        return ast.Constant(node.value + 1)
    return ast.BinOp(node, _PLUS, ast.Constant(1))


def _twice(node: ast.expr) -> ast.expr:
    return ast.BinOp(ast.Constant(2), _TIMES, node)
