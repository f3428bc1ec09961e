"""The book's one visual style: colours that colour-blind readers can tell apart, and the few kinds of figure it uses.

Every function returns a closed matplotlib figure, so that a notebook cell that ends with the call shows it once. The
numbers behind a figure are its arguments, and stay within reach of the reader.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from companion.mdp import Problem

#: Colours of Okabe and Ito, by what they stand for in every figure.
COLOURS = {
    "reference": "#7f7f7f",
    "target": "#0072B2",
    "policy": "#D55E00",
    "reward": "#009E73",
    "value": "#CC79A7",
    "other": "#E69F00",
}
#: The order in which colours are used where a series has no meaning of its own.
CYCLE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7f7f7f"]
#: Markers that go with :data:`CYCLE`, so that no series is told apart by colour alone.
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]

_STYLE = {
    "figure.dpi": 110,
    "savefig.facecolor": "white",
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=CYCLE),
    "figure.constrained_layout.use": True,
}


def panels(n: int = 1, *, width: float = 6.4, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """Return a closed figure in the book's style with ``n`` axes side by side; sizes in inches."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(1, n, figsize=(width, height), squeeze=False)
        plt.close(figure)
    return figure, list(axes[0])


def graph(
    problem: Problem,
    *,
    states: Sequence[str],
    edges: Sequence[str] | None = None,
    shade: Tensor | None = None,
    title: str = "",
    names: Mapping[int, str] | None = None,
) -> Figure:
    """Draw a small problem from left to right, with a label on each state and edge.

    Args:
        problem: some tens of states at most.
        states: one label per state.
        edges: one label per edge.
        shade: ``[edges]``, between 0 and 1; how dark and thick each edge is drawn.
        title: what the figure shows.
        names: a second label, to the right of the states given, such as the name of x.
    """
    figure, (axes,) = panels(height=1.1 + 0.62 * _widest(problem))
    place = _layout(problem)
    shade = torch.full(problem.source.shape, 0.5) if shade is None else shade
    for edge, (begin, end) in enumerate(zip(problem.source.tolist(), problem.target.tolist(), strict=True)):
        (x0, y0), (x1, y1) = place[begin], place[end]
        weight = float(shade[edge])
        xs, ys = _curve(x0, y0, x1, y1)
        axes.plot(xs, ys, color=COLOURS["target"], alpha=0.2 + 0.8 * weight, lw=1 + 3 * weight, zorder=1)
        if edges is not None:
            at = (xs[12], ys[12])
            box = {"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none"}
            axes.annotate(edges[edge], at, ha="center", va="center", fontsize=8.5, bbox=box, zorder=2)
    for state, (x, y) in place.items():
        box = {"boxstyle": "round,pad=0.3", "fc": "white", "ec": "#444444"}
        axes.annotate(states[state], (x, y), ha="center", va="center", fontsize=9.5, bbox=box, zorder=3)
        if names and state in names:
            axes.annotate(names[state], (x, y), (26, 0), textcoords="offset points", va="center", fontsize=9.5)
    axes.set_title(title, fontsize=10.5)
    axes.set_axis_off()
    axes.margins(x=0.12, y=0.16)
    return figure


def bars(
    labels: Sequence[str], series: Mapping[str, Sequence[float] | Tensor], *, ylabel: str, colours: Sequence[str] = ()
) -> Figure:
    """Draw groups of bars, one group per label and one bar per series, hatched so that colour is not needed."""
    figure, (axes,) = panels()
    width = 0.8 / len(series)
    for j, (name, heights) in enumerate(series.items()):
        at = [i + (j - (len(series) - 1) / 2) * width for i in range(len(labels))]
        colour = COLOURS[colours[j]] if colours else CYCLE[j]
        axes.bar(at, [float(h) for h in heights], width, label=name, color=colour, hatch=["", "//", "..", "xx"][j % 4])
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylabel(ylabel)
    columns = len(series) if len(series) < 4 else 2
    axes.legend(fontsize=9, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=columns)  # clear of the bars
    return figure


def lines(
    x: Sequence[float] | Tensor,
    series: Mapping[str, Sequence[float] | Tensor],
    *,
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    log_y: bool = False,
    mark: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Draw one line per series over ``x``; ``mark`` puts a labelled point on the figure."""
    figure, (axes,) = panels()
    for j, (name, y) in enumerate(series.items()):
        axes.plot(_floats(x), _floats(y), label=name, color=CYCLE[j], ls=["-", "--", "-.", ":"][j % 4])
    for j, (name, point) in enumerate((mark or {}).items()):
        axes.plot(*point, "o", color=CYCLE[j], ms=7, mec="black", label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
    axes.legend(fontsize=9, frameon=False)
    return figure


def scatter(
    points: Mapping[str, tuple[Tensor, Tensor]],
    *,
    xlabel: str,
    ylabel: str,
    slopes: Mapping[str, tuple[float, float]] | None = None,
) -> Figure:
    """Draw clouds of points, and for each name in ``slopes`` the line (slope, intercept) that it should
    lie on, drawn from zero."""
    figure, (axes,) = panels(height=3.8)
    for j, (name, (x, y)) in enumerate(points.items()):
        axes.plot(_floats(x), _floats(y), MARKERS[j], ms=4, alpha=0.7, color=CYCLE[j], label=name)
        if slopes and name in slopes:
            slope, intercept = slopes[name]
            ends = [min(0.0, *_floats(x)), max(0.0, *_floats(x))]
            axes.plot(ends, [slope * e + intercept for e in ends], color=CYCLE[j], lw=1)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(fontsize=9, frameon=False)
    return figure


def fields(
    xs: Tensor,
    ys: Tensor,
    directions: Mapping[str, tuple[Tensor, Tensor]],
    *,
    xlabel: str,
    ylabel: str,
    marks: Mapping[str, Mapping[str, tuple[float, float]]],
) -> Figure:
    """Draw vector fields side by side, as stream lines, with marked points.

    Args:
        xs: ``[columns]``, ascending and equally spaced.
        ys: ``[rows]``, ascending and equally spaced.
        directions: for each panel's title the two components, ``[rows, columns]`` each.
        xlabel: what the horizontal axis is.
        ylabel: what the vertical axis is.
        marks: for each panel's title its points, by name, seven at most; a panel may be left out.
    """
    figure, axes = panels(len(directions), width=7.4, height=3.1)
    for axis, (title, (u, v)) in zip(axes, directions.items(), strict=True):
        axis.streamplot(xs.numpy(), ys.numpy(), u.numpy(), v.numpy(), density=0.9, color="#9a9a9a", linewidth=0.8)
        for j, (name, point) in enumerate(marks.get(title, {}).items()):
            axis.plot(*point, MARKERS[j], color=CYCLE[j], ms=8, mec="black", label=name, zorder=3)
        axis.set_title(title, fontsize=10)
        axis.set(xlabel=xlabel, xlim=(float(xs[0]), float(xs[-1])), ylim=(float(ys[0]), float(ys[-1])))
        if marks.get(title):
            axis.legend(fontsize=8, loc="lower right", framealpha=0.9)
    axes[0].set_ylabel(ylabel)
    return figure


def grid(
    values: Tensor, *, rows: Sequence[str], columns: Sequence[str], labels: Sequence[Sequence[str]], title: str = ""
) -> Figure:
    """Draw a table of cells shaded by ``values``, ``[rows, columns]`` between 0 and 1, each with a label.

    Raises ``ValueError`` where the names or the labels do not fit the values.
    """
    if values.shape != (len(rows), len(columns)) or [len(line) for line in labels] != [len(columns)] * len(rows):
        raise ValueError(
            f"values is {tuple(values.shape)} for {len(rows)} rows and {len(columns)} columns; expected one value and "
            "one label per cell. Pass as many of each."
        )
    figure, (axes,) = panels(width=7.4, height=0.8 + 0.28 * len(rows))
    axes.imshow(values.detach().numpy(), cmap="cividis_r", vmin=0, vmax=1.6, aspect="auto")
    for row, line in enumerate(labels):
        for column, label in enumerate(line):
            axes.annotate(label, (column, row), ha="center", va="center", fontsize=8)
    axes.set_xticks(range(len(columns)), columns, fontsize=8)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    axes.set_title(title, fontsize=10.5)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def vocabularies(rows: Sequence[tuple[str, str, str]]) -> Figure:
    """Draw the two vocabularies: for each row, the GFlowNet word, the thing itself, and the RL word."""
    figure, (axes,) = panels(width=7.2, height=0.45 * len(rows) + 0.7)
    for i, (left, middle, right) in enumerate(rows):
        y = -i
        axes.annotate(left, (0.0, y), ha="left", va="center", fontsize=10, color="#8A3B00")
        box = {"boxstyle": "round,pad=0.35", "fc": "#F2F2F2", "ec": "#444444"}
        axes.annotate(middle, (0.5, y), ha="center", va="center", fontsize=10, bbox=box, zorder=3)
        axes.annotate(right, (1.0, y), ha="right", va="center", fontsize=10, color="#00518A")
        axes.plot([0.30, 0.70], [y, y], color="#BBBBBB", lw=1, zorder=1)
    for x, name, ha in ((0.0, "GFlowNet", "left"), (0.5, "what it is", "center"), (1.0, "RL", "right")):
        axes.annotate(name, (x, 0.85), ha=ha, va="center", fontsize=11, fontweight="bold")
    axes.set(xlim=(-0.02, 1.02), ylim=(-len(rows) + 0.4, 1.2))
    axes.set_axis_off()
    return figure


def _floats(values: Sequence[float] | Tensor) -> list[float]:
    return [float(v) for v in values]


def _curve(x0: float, y0: float, x1: float, y1: float) -> tuple[list[float], list[float]]:
    """Points from one state to another: a line, or, past a column in between, an arc that keeps clear of its states."""
    bend = 0.0 if x1 - x0 < 1.5 else -2.2
    along = [k / 20 for k in range(21)]
    return [x0 + u * (x1 - x0) for u in along], [y0 + u * (y1 - y0) + bend * u * (1 - u) for u in along]


def _depths(problem: Problem) -> list[int]:
    """Longest distance of each state from the root."""
    depth = [0] * problem.n_states
    for begin, end in zip(problem.source.tolist(), problem.target.tolist(), strict=True):
        depth[end] = max(depth[end], depth[begin] + 1)
    return depth


def _widest(problem: Problem) -> int:
    depth = _depths(problem)
    return max(depth.count(d) for d in depth)


def _layout(problem: Problem) -> dict[int, tuple[float, float]]:
    """Place states in columns by depth, each column centred, in the order of their numbers."""
    depth = _depths(problem)
    tall = _widest(problem)
    place = {}
    for column in set(depth):
        members = [s for s in range(problem.n_states) if depth[s] == column]
        gap = tall / len(members)
        for row, state in enumerate(members):
            place[state] = (float(column), -(row + 0.5) * gap)
    return place


# Figures of chapter 11.


def mode_grids(means: Tensor, laws: Mapping[str, Tensor], *, kept: Tensor) -> Figure:
    """Draw mode weights in panels, three to a row, each weight as a square at its mean whose area is the weight.

    Args:
        means: ``[modes, 2]``, on a grid; a grey dot marks each.
        laws: for each panel's title its weights, ``[modes]``. The largest of the first law fills its place on the grid.
        kept: ``[modes]``, bool; squares of the others are hatched and of another colour.
    """
    rows = -(-len(laws) // 3)
    with plt.rc_context(_STYLE | {"hatch.linewidth": 0.7}):
        figure, axes = plt.subplots(rows, 3, figsize=(6.4, 2.2 * rows), squeeze=False)
        plt.close(figure)
    for axis in axes.flat:
        axis.set_axis_off()
    spacing, largest = float(torch.pdist(means).min()), float(next(iter(laws.values())).max())
    low, high = float(means.min()) - 0.8 * spacing, float(means.max()) + 0.8 * spacing
    for axis, (title, weights) in zip(axes.flat, laws.items(), strict=False):
        axis.plot(_floats(means[:, 0]), _floats(means[:, 1]), ".", ms=3, color="#9a9a9a")
        for mode in weights.argsort(descending=True).tolist():  # small squares on top of large ones
            side = 0.95 * spacing * float(weights[mode] / largest) ** 0.5
            corner = [float(centre) - side / 2 for centre in means[mode]]
            look = {"fc": COLOURS["target"], "ec": "white"}
            if not kept[mode]:
                look = {"fc": "white", "ec": COLOURS["policy"], "hatch": "//////"}
            axis.add_patch(plt.Rectangle(corner, side, side, zorder=2, **look))
        axis.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axis.set_title(title, fontsize=10)
    return figure


def curves_with_points(
    x: Sequence[float] | Tensor,
    curves: Mapping[str, Sequence[float] | Tensor],
    points: Mapping[str, Mapping[str, Mapping[float, tuple[float, float, float]]]],
    *,
    xlabel: str,
    curve: str,
) -> Figure:
    """Draw predicted curves side by side, over a logarithmic axis, and points with intervals on them.

    Args:
        x: where the curves are given, positive.
        curves: for each panel, named by its vertical axis, the curve.
        points: for each series, and each panel in it, the mean, low and high end at each ``x``.
        xlabel: what the horizontal axis is.
        curve: name of the curves in the legend.
    """
    figure, axes = panels(len(curves), width=7.4, height=3.2)
    for axis, (ylabel, y) in zip(axes, curves.items(), strict=True):
        axis.plot(_floats(x), _floats(y), color=COLOURS["reference"], label=curve)
        for j, (name, panel) in enumerate(points.items()):
            at, found = list(panel[ylabel]), list(panel[ylabel].values())
            bars = [[mean - low for mean, low, _ in found], [high - mean for mean, _, high in found]]
            look = {"color": CYCLE[j], "ms": 8 - 2 * j, "mfc": "white" if j == 0 else CYCLE[j], "capsize": 3}
            axis.errorbar(at, [mean for mean, _, _ in found], bars, fmt=MARKERS[j], lw=1.2, label=name, **look)
        axis.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), fontsize=9, frameon=False)
    return figure


from companion.plotting.samples import (  # noqa: E402
    Page,
    bands,
    cells,
    clouds,
    path_slider,
    weights_with_intervals,
)

__all__ = ["Page", "bands", "cells", "clouds", "path_slider", "weights_with_intervals"]
