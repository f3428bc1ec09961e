"""The registry of claims, and the assertions by which a notebook cell or a test checks one of them.

``registry/NN-chapter.toml`` gives a chapter's title and states each of its claims once. A chapter is known by its
notebook's name without the number, which orders the chapters. There is a check for each kind of evidence. It takes the
ID of its claim; ``what`` says for the reader what is compared. It asserts, then prints what was compared and the bound
that held, never digits that could differ between machines. An unknown claim, one that has no such evidence, and a check
that could not fail are a ``ValueError``.
"""

import math
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import sympy
import torch
from sympy.core.function import AppliedUndef
from torch import Tensor

from companion.symbolic import reduce

#: Kinds of evidence, the strongest first.
KINDS = ("symbolic", "exact", "converged", "statistical", "witness")
#: Rounding allowed, in eps times the size of the terms summed. Sums here have tens of terms, each rounded a few times.
SLACK = 32
#: The most that ``scale`` may be, relative to the largest value, or to one: more is another error than rounding.
LARGEST_SCALE = 1e4
#: What an equation in ``given`` may be about as a whole.
_ENTRIES = (sympy.Sum, sympy.Indexed, sympy.Derivative, AppliedUndef)


@dataclass(frozen=True)
class Claim:
    """One row of the registry.

    ``id`` is the label, such as ``E1``; ``title`` the claim in a few words, ``statement`` in a sentence or three, in
    MyST; ``chapter`` the notebook that derives it, without number and ending; ``evidence`` the kinds that it must have,
    the strongest first; ``planned`` says that it is still to be shown, although its chapter is there, and ``missed``
    which part of it its runs did not bear out, if any.
    """

    id: str
    title: str
    statement: str
    chapter: str
    evidence: tuple[str, ...]
    planned: bool = False
    missed: str = ""


@cache
def registry() -> Mapping[str, Claim]:
    """Return every claim by ID, in the book's order; ``ValueError`` for one that stands twice, or unknown evidence."""
    return _claims(_tables())


def chapter_titles() -> Mapping[str, str]:
    """Return the title of every chapter, written or planned, by its name, in the order of the book."""
    return {chapter: table["title"] for chapter, table in _tables().items()}


def chapter_of(path: Path) -> str:
    """Return the chapter that a file is about: its name without number and ending."""
    return path.stem[3:]


def notebook(root: Path, chapter: str) -> Path | None:
    """Return a chapter's notebook in the project at ``root``, None while it is planned. Two are a ``ValueError``."""
    found = sorted((root / "notebooks").glob(f"[0-9][0-9]-{chapter}.ipynb"))
    if len(found) > 1:
        raise ValueError(f"{chapter} has notebooks {[path.name for path in found]}; expected one. Remove the others.")
    return found[0] if found else None


def written(root: Path, claim: Claim) -> bool:
    """Whether a claim is to be shown by now: its chapter is there, and it is not planned for later."""
    return notebook(root, claim.chapter) is not None and not claim.planned


def check_symbolic(
    claim: str,
    left: sympy.Expr,
    right: sympy.Expr,
    what: str,
    *,
    free: Collection[sympy.Symbol],
    given: Mapping[sympy.Expr, sympy.Expr] | None = None,
) -> None:
    """Assert that ``left - right`` reduces to zero, the symbols in ``free`` (horizon, number of actions) unspecified.

    These must still occur in one side or the other, so that no number was put in for them on the way. ``given`` holds
    equations used at the end, such as ``{over_actions(pi[a]): 1}``: values of sums, entries, functions and derivatives,
    or of other symbols. Raises ``ValueError`` where a symbol of ``free`` is gone or given, or the sides are the same.
    """
    _require(claim, "symbolic")
    left, right = sympy.sympify(left), sympy.sympify(right)
    gone = set(free) - left.free_symbols - right.free_symbols
    if gone or not free:
        names = ", ".join(sorted(map(str, gone))) or "nothing"
        raise ValueError(f"{claim}: expected free symbols that occur in the sides; {names} does not. Keep it symbolic.")
    _refuse_given(claim, given or {}, set(free))
    if left == right:
        raise ValueError(f"{claim}: both sides are {left}; expected two derivations. Make one of them another way.")
    rest = reduce(left - right, given)
    assert rest == 0, f"{claim} fails: {what}; left - right = {rest}"
    _report(claim, "symbolic", what, "for every " + ", ".join(sorted(map(str, free))))


def check_exact(claim: str, left: Tensor, right: Tensor, what: str, *, scale: Tensor | float) -> None:
    """Assert that two tensors agree to rounding: ``|left - right| <= SLACK eps scale``, entry by entry.

    The sides, of an enumerated problem, are float64 or float32, of one shape; to claim that ``left`` vanishes, pass
    zeros. ``scale`` is the size of the terms that were summed, a number or a tensor of their shape: see
    :func:`size_of_terms`. Raises ``ValueError`` for sides that cannot disagree: one tensor, shapes or dtypes that
    differ, nothing to compare, a scale that is not positive, or a tolerance as large as the values or without need.
    """
    _require(claim, "exact")
    left, right = left.detach(), right.detach()
    _refuse_different(claim, left, right)
    tolerance = SLACK * torch.finfo(left.dtype).eps * torch.as_tensor(scale, dtype=left.dtype)
    _refuse_vacuous(claim, left, right, tolerance, scale)
    largest, most = max(1.0, float(right.abs().max())), float(torch.as_tensor(scale).max())
    if most > LARGEST_SCALE * largest:
        given = f"scale is up to {most:.3g} for values up to {largest:.3g}; expected what rounding explains"
        raise ValueError(f"{claim}: {given}. Use check_converged for what an optimiser found, or smaller terms.")
    gap, allowed = (left - right).abs(), float(tolerance.max())
    failure = f"{what}; the sides differ by up to {float(gap.max()):.3g}, beyond the tolerance of {allowed:.3g}"
    assert bool((gap <= tolerance).all()), f"{claim} fails: {failure}"
    _report(claim, "exact", what, f"{_count(left)} within 1e{math.ceil(math.log10(allowed)):+03d}")


def check_converged(claim: str, left: Tensor, right: Tensor, what: str, *, within: float) -> None:
    """Assert that what only ends near its answer, an optimiser with exact gradients say, came within a tolerance of it.

    ``left`` is where it ended, ``right`` the answer, found in another way: tensors as for :func:`check_exact`, zeros
    for a distance that should vanish. Raises ``ValueError`` as that, with ``within``, the largest difference allowed.
    """
    _require(claim, "converged")
    left, right = left.detach(), right.detach()
    _refuse_different(claim, left, right)
    _refuse_vacuous(claim, left, right, torch.as_tensor(within, dtype=left.dtype), within)
    gap = float((left - right).abs().max())
    assert gap <= within, f"{claim} fails: {what}; it ended {gap:.3g} away, more than {within:g}"
    _report(claim, "converged", what, f"{_count(left)} within {within:g}")


def check_statistical(
    claim: str, low: float, high: float, what: str, *, within: tuple[float, float], seeds: int
) -> None:
    """Assert that an interval lies inside a margin, and print the margin, not the interval, which training moves.

    ``low`` and ``high`` are its ends, over ``seeds`` independent runs, as :func:`companion.statistics.mean_interval`
    returns them; ``within`` is the margin, fixed beforehand, of which one end may be infinite. Raises ``ValueError``
    for fewer than two seeds, no interval, or a margin that nothing can leave.
    """
    _require(claim, "statistical")
    if seeds < 2 or not -math.inf < low <= high < math.inf:
        raise ValueError(f"{claim}: {seeds} seed(s), [{low}, {high}]; expected two seeds or more, a finite interval.")
    if not within[0] < within[1] or (math.isinf(within[0]) and math.isinf(within[1])):
        raise ValueError(f"{claim}: the margin is {within}; expected low < high, one of them finite. Fix a margin.")
    inside, found = within[0] < low and high < within[1], f"the interval [{low:.4g}, {high:.4g}]"
    assert inside, f"{claim} fails: {what}; {found} is not inside {within}"
    ends = [f"{word} {end:g}" for word, end in zip(("above", "below"), within, strict=True) if abs(end) < math.inf]
    _report(claim, "statistical", what, f"{seeds} seeds, interval {' and '.join(ends)}")


def check_witness(claim: str, gap: float, what: str, *, above: float) -> None:
    """Assert that a gap, the size of a failure, is above a threshold, fixed beforehand and beyond rounding."""
    _require(claim, "witness")
    if not above >= 1e-6:
        raise ValueError(f"{claim}: above is {above!r}; expected at least 1e-6, far above rounding. Widen the example.")
    assert above < float(gap) < math.inf, f"{claim} fails: {what} is {float(gap):.3g}, not above {above:g}"
    _report(claim, "witness", what, f"more than {above:g}")


def size_of_terms(
    log_pi: Tensor, log_ref: Tensor, reward: Tensor, log_z: Tensor | float = 0.0, *, alpha: float = 1.0
) -> Tensor:
    """Return the size of the terms in a residual, ``alpha (|log Z| + sum |log_pi| + sum |log_ref|) + sum |reward|``.

    Rounding errors are multiples of eps times this. ``log_pi`` and ``log_ref`` are ``[batch, steps]``; ``reward`` is
    that or ``[batch]``; ``log_z`` is a number, 0-d or ``[batch]``. Returns ``[batch]``, in units of reward, at least 1.
    """
    logs = log_pi.detach().abs().sum(dim=1) + log_ref.abs().sum(dim=1) + torch.as_tensor(log_z).detach().abs()
    rewards = reward.abs().sum(dim=1) if reward.ndim == 2 else reward.abs()
    return alpha * logs + rewards + 1.0


@cache
def _tables() -> dict[str, dict[str, Any]]:
    """The files of ``registry/`` by chapter, in the order of the book."""
    found = sorted(files("companion.claims").joinpath("registry").iterdir(), key=lambda path: path.name)
    return {chapter_of(Path(p.name)): tomllib.loads(p.read_text()) for p in found if p.name.endswith(".toml")}


def _claims(chapters: Mapping[str, dict[str, Any]]) -> dict[str, Claim]:
    claims: dict[str, Claim] = {}
    for chapter, table in chapters.items():
        rows = {key: row for key, row in table.items() if key != "title"}
        twice = sorted(set(rows) & set(claims))
        if twice:
            raise ValueError(f"{chapter} has {twice}, as another chapter has; expected every claim once. Drop one.")
        for key, row in rows.items():
            unknown = set(row["evidence"]) - set(KINDS)
            if unknown or not row["evidence"]:
                given = f"{key} lists evidence {sorted(unknown)}"
                raise ValueError(f"{given}; expected one or more of {KINDS}. Mend that of {chapter}.")
            tidy = {"statement": row["statement"].strip(), "evidence": tuple(row["evidence"])}
            claims[key] = Claim(id=key, chapter=chapter, **(row | tidy))
    return claims


def _require(claim: str, kind: str) -> None:
    if claim not in registry():
        raise ValueError(f"{claim!r} is no claim; expected one of {', '.join(registry())}. Register it first.")
    if kind not in registry()[claim].evidence:
        raise ValueError(f"{claim} has no {kind} evidence in the registry; expected {registry()[claim].evidence}.")


def _refuse_different(claim: str, left: Tensor, right: Tensor) -> None:
    kinds, floats = [(tuple(side.shape), side.dtype) for side in (left, right)], (torch.float32, torch.float64)
    if kinds[0] != kinds[1] or left.dtype not in floats or left.numel() == 0:
        given = " and ".join(f"{shape} {dtype}" for shape, dtype in kinds)
        expected = "float64 or float32 of both, and equal shapes and dtypes, not empty"
        raise ValueError(f"{claim}: the sides are {given}; expected {expected}. Nothing is broadcast.")


def _refuse_vacuous(claim: str, left: Tensor, right: Tensor, tolerance: Tensor, scale: Tensor | float) -> None:
    if tolerance.ndim and tolerance.shape != left.shape:
        raise ValueError(f"{claim}: scale is {tuple(tolerance.shape)}; expected one number, or {tuple(left.shape)}.")
    if left.data_ptr() == right.data_ptr():
        raise ValueError(f"{claim}: both sides are one tensor; expected two computations. Compute one of them anew.")
    if not bool((tolerance > 0).all()):
        raise ValueError(f"{claim}: {scale} is given; expected a positive number, the size of the terms. Pass it.")
    zero_claimed, allowed = bool((right == 0).all()), f"{float(tolerance.max()):.3g}"
    if zero_claimed and bool((tolerance > torch.finfo(left.dtype).eps ** 0.5).any()):
        expected = "at most the root of eps. Take smaller terms."
        raise ValueError(f"{claim}: the tolerance around zero is {allowed}; expected {expected}")
    if not zero_claimed and 2 * int((right.abs() > tolerance).sum()) < right.numel():
        expected = "a comparison that could fail. Take larger values, or a smaller scale."
        raise ValueError(f"{claim}: most values are below the tolerance of {allowed}; expected {expected}")


def _refuse_given(claim: str, given: Mapping[sympy.Expr, sympy.Expr], free: set[sympy.Symbol]) -> None:
    """Refuse equations that put something in for a free symbol; inside a sum or an index it may stand."""
    for key in map(sympy.sympify, given):
        bare = key.replace(lambda e: isinstance(e, _ENTRIES), lambda e: sympy.Dummy())
        touched = ", ".join(sorted(map(str, bare.free_symbols & free)))
        if touched:
            raise ValueError(f"{claim}: given puts a value in for {key}, and {touched} is said to be free. Drop one.")


def _count(values: Tensor) -> str:
    return f"{values.numel():,} value{'s' * (values.numel() > 1)}"


def _report(claim: str, kind: str, what: str, bound: str) -> None:
    print(f"✓ {claim} {kind}: {what} ({bound})")
