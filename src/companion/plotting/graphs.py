"""Small problems and automata, drawn as graphs."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from companion.mdp import Problem
from companion.plotting.style import COLOURS, panels


def graph(
    problem: Problem,
    *,
    states: Sequence[str],
    edges: Sequence[str] | None = None,
    shade: Tensor | None = None,
    title: str = "",
    names: Mapping[int, str] | None = None,
) -> Figure:
    """Draw a problem of some tens of states at most, from left to right, with a label on each state and edge.

    ``shade``, ``[edges]`` between 0 and 1, is how dark and thick each edge is drawn; ``names`` has a second label, such
    as the name of x, to the right of the states given; ``title`` says what the figure shows.
    """
    columns = _columns(problem)
    tallest = max(map(len, columns))
    figure, (axes,) = panels(height=1.1 + 0.62 * tallest)
    place: dict[int, tuple[float, float]] = {}
    for x, members in enumerate(columns):
        place |= {state: (float(x), -(row + 0.5) * (tallest / len(members))) for row, state in enumerate(members)}
    shade = torch.full(problem.source.shape, 0.5) if shade is None else shade
    for edge, (begin, end) in enumerate(zip(problem.source.tolist(), problem.target.tolist(), strict=True)):
        weight = float(shade[edge])
        xs, ys = _curve(*place[begin], *place[end])
        axes.plot(xs, ys, color=COLOURS["target"], alpha=0.2 + 0.8 * weight, lw=1 + 3 * weight, zorder=1)
        if edges is not None:
            box = {"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none"}
            axes.annotate(edges[edge], (xs[12], ys[12]), ha="center", va="center", fontsize=8.5, bbox=box, zorder=2)
    for state, at in place.items():
        box = {"boxstyle": "round,pad=0.3", "fc": "white", "ec": "#444444"}
        axes.annotate(states[state], at, ha="center", va="center", fontsize=9.5, bbox=box, zorder=3)
        if names and state in names:
            axes.annotate(names[state], at, (26, 0), textcoords="offset points", va="center", fontsize=9.5)
    axes.set_title(title, fontsize=10.5)
    axes.set_axis_off()
    axes.margins(x=0.12, y=0.16)
    return figure


def machine(
    moves: Tensor, places: Sequence[tuple[float, float]], *, names: Sequence[str], letters: str, granted: Tensor
) -> Figure:
    """Draw an automaton: a box for each state, thick where ``granted``, and an arrow for letters that lead on.

    ``moves`` is ``[states, letters]``, ``places`` and ``names`` one a state; more than three letters are "other".
    """
    figure, (axes,) = panels(height=3.6)
    middle, boxes = sum(y for _, y in places) / len(places), []
    for state, (name, at) in enumerate(zip(names, places, strict=True)):
        box = {"boxstyle": "round,pad=0.4", "fc": "white", "ec": COLOURS["target"], "lw": 3 if granted[state] else 1}
        drawn = axes.annotate(name, at, ha="center", va="center", fontsize=9.5, bbox=box, zorder=3)
        boxes.append(drawn.get_bbox_patch())
    for begin, row in enumerate(moves.tolist()):
        for end in sorted(set(row)):
            (x, y), (u, v) = places[begin], places[end]
            up, loop = 1 if y >= middle else -1, begin == end
            bend, wide = (-2.0 * up, 0.06) if loop else (0.16, 0.0)
            arrow = {"arrowstyle": "-|>", "color": "#444444", "connectionstyle": f"arc3,rad={bend}", "shrinkB": 2}
            arrow |= {"shrinkA": 12, "shrinkB": 12} if loop else {"patchA": boxes[begin], "patchB": boxes[end]}
            axes.annotate("", (u + wide, v), (x - wide, y), arrowprops=arrow, zorder=1)
            at = (x, y + 0.36 * up) if loop else ((x + u + 0.18 * (v - y)) / 2, (y + v - 0.18 * (u - x)) / 2)
            read = [letter for letter, to in zip(letters, row, strict=True) if to == end]
            box = {"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none"}
            text = "other" if len(read) > 3 else ", ".join(read)
            axes.annotate(text, at, ha="center", va="center", fontsize=9.5, bbox=box, zorder=2)
    axes.set(xlim=(-0.4, 1.4), ylim=(-0.45, 1.45))
    axes.set_axis_off()
    return figure


def tree(forks: Mapping[str, Mapping[str, Sequence[str]]], *, root: str, bold: Collection[str] = ()) -> Figure:
    """Draw a tree from left to right: root, branches, forks, and in a row the leaves of each, bold if in ``bold``."""
    rows = [(branch, fork, leaves) for branch, under in forks.items() for fork, leaves in under.items()]
    figure, (axes,) = panels(width=7.6, height=0.6 + 0.36 * len(rows))
    box = {"boxstyle": "round,pad=0.35", "fc": "white", "ec": COLOURS["target"]}
    line: dict[str, Any] = {"color": "#BBBBBB", "lw": 1.5, "zorder": 1}
    text: dict[str, Any] = {"va": "center", "fontsize": 9, "zorder": 3}
    middle = -(len(rows) - 1) / 2
    axes.annotate(root, (0.0, middle), ha="center", bbox=box, **text)
    for branch in forks:
        at = [-row for row, (owner, _, _) in enumerate(rows) if owner == branch]
        y = sum(at) / len(at)
        axes.plot([0.0, 0.19], [middle, y], **line)
        axes.annotate(branch, (0.19, y), ha="center", bbox=box, **text)
        for row in at:
            axes.plot([0.19, 0.32], [y, row], **line)
    for row, (_, fork, leaves) in enumerate(rows):
        axes.annotate(fork, (0.33, -row), ha="left", color="#555555", **text)
        axes.annotate(" · ".join(leaves), (0.63, -row), ha="left", weight="bold" if fork in bold else "normal", **text)
    axes.set(xlim=(-0.08, 1.02), ylim=(-len(rows) + 0.4, 0.6))
    axes.set_axis_off()
    return figure


def _curve(x0: float, y0: float, x1: float, y1: float) -> tuple[list[float], list[float]]:
    """Points from one state to another: a line, or, past a column in between, an arc that keeps clear of its states."""
    bend = 0.0 if x1 - x0 < 1.5 else -2.2
    along = [k / 20 for k in range(21)]
    return [x0 + u * (x1 - x0) for u in along], [y0 + u * (y1 - y0) + bend * u * (1 - u) for u in along]


def _columns(problem: Problem) -> list[list[int]]:
    """States by their longest distance from the root, in the order of their numbers."""
    depth = [0] * problem.n_states
    for begin, end in zip(problem.source.tolist(), problem.target.tolist(), strict=True):
        depth[end] = max(depth[end], depth[begin] + 1)
    return [[state for state, at in enumerate(depth) if at == column] for column in range(max(depth) + 1)]
