"""Curves and points: lines, means with bands, predictions with measured points, clouds, and fields of directions."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from companion.plotting.style import COLOURS, CYCLE, DASHES, MARKERS, floats, panels

#: Numbers along an axis; and, by name, such numbers, points, and two coordinates of many.
Numbers = Sequence[float] | Tensor
Series = Mapping[str, Numbers]
Points = Mapping[str, tuple[float, float]]
Pairs = Mapping[str, tuple[Tensor, Tensor]]
#: By name, x and what each run is there; and, at each x, a mean and the ends of its interval.
Runs = Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]]
Intervals = Mapping[float, tuple[float, float, float]]


def lines(
    x: Numbers,
    series: Series,
    *,
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    log_y: bool = False,
    mark: Points | None = None,
) -> Figure:
    """Draw one line per series over ``x``; ``mark`` puts a labelled point on the figure."""
    figure, (axes,) = panels()
    for j, (name, y) in enumerate(series.items()):
        axes.plot(floats(x), floats(y), label=name, color=CYCLE[j], ls=DASHES[j % 4])
    for j, (name, point) in enumerate((mark or {}).items()):
        axes.plot(*point, "o", color=CYCLE[j], ms=7, mec="black", label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
    axes.legend(fontsize=9, frameon=False)
    return figure


def bands(curves: Runs, *, xlabel: str, ylabel: str, log_y: bool = False, level: float | None = None) -> Figure:
    """Draw for each name the mean of its runs over x, and their range, least to greatest; ``level`` is a horizontal."""
    figure, (axes,) = panels(width=7.4, height=3.6)
    for j, (name, (x, runs)) in enumerate(curves.items()):
        values = np.asarray(runs, dtype=float)
        axes.plot(x, values.mean(axis=0), DASHES[j % 4], color=CYCLE[j % 7], label=name, lw=1.6)
        axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=CYCLE[j % 7], alpha=0.15, lw=0)
    if level is not None:
        axes.axhline(level, color=COLOURS["reference"], lw=1)
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log_y else "linear")
    axes.legend(fontsize=8.5, frameon=False, ncols=2)
    return figure


def curves_with_points(
    x: Numbers, curves: Series, points: Mapping[str, Mapping[str, Intervals]], *, xlabel: str, curve: str
) -> Figure:
    """Draw predicted curves side by side, over a logarithmic axis, and points with intervals on them.

    ``curves`` has one for each panel, named by its vertical axis, over positive ``x``; ``curve`` is their name in the
    legend. ``points`` has, for each series and each panel in it, the mean, low and high end at each ``x``.
    """
    figure, axes = panels(len(curves), width=7.4, height=3.2)
    for axis, (ylabel, y) in zip(axes, curves.items(), strict=True):
        axis.plot(floats(x), floats(y), color=COLOURS["reference"], label=curve)
        for j, (name, panel) in enumerate(points.items()):
            at, found = list(panel[ylabel]), list(panel[ylabel].values())
            bars = [[mean - low for mean, low, _ in found], [high - mean for mean, _, high in found]]
            look: dict[str, Any] = {"ms": 8 - 2 * j, "mfc": "white" if j == 0 else CYCLE[j], "capsize": 3, "lw": 1.2}
            axis.errorbar(at, [mean for mean, _, _ in found], bars, fmt=MARKERS[j], color=CYCLE[j], label=name, **look)
        axis.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), fontsize=9, frameon=False)
    return figure


def scatter(points: Pairs, *, xlabel: str, ylabel: str, slopes: Points | None = None) -> Figure:
    """Draw clouds of points, and for names in ``slopes`` the line (slope, intercept) to lie on, drawn from zero."""
    figure, (axes,) = panels(height=3.8)
    for j, (name, (x, y)) in enumerate(points.items()):
        axes.plot(floats(x), floats(y), MARKERS[j], ms=4, alpha=0.7, color=CYCLE[j], label=name)
        if slopes and name in slopes:
            (slope, intercept), ends = slopes[name], [min(0.0, *floats(x)), max(0.0, *floats(x))]
            axes.plot(ends, [slope * e + intercept for e in ends], color=CYCLE[j], lw=1)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(fontsize=9, frameon=False)
    return figure


def clouds(points: Mapping[str, Tensor], *, columns: int = 3, modes: Tensor | None = None) -> Figure:
    """Draw a cloud of points, ``[n, 2]``, for each title, over crosses at ``modes``, ``[components, 2]``."""
    rows = -(-len(points) // columns)
    figure, _ = panels(width=7.4, height=2.6 * rows)
    figure.clear()  # a full box around each panel: axes added outside the style keep their spines
    for j, (title, cloud) in enumerate(points.items()):
        axes = figure.add_subplot(rows, columns, j + 1)
        if modes is not None:
            axes.plot(*modes.T.numpy(), "+", color=COLOURS["reference"], ms=5, mew=0.7, zorder=1)
        axes.plot(*cloud.T.numpy(), ".", color=COLOURS["target"], ms=1.6, alpha=0.5, zorder=2)
        axes.set_title(title, fontsize=10)
        axes.set(xlim=(-13, 13), ylim=(-13, 13), xticks=[-10, 0, 10], yticks=[-10, 0, 10], aspect="equal")
        axes.tick_params(labelsize=8)
    return figure


def fields(
    xs: Tensor, ys: Tensor, directions: Pairs, *, xlabel: str, ylabel: str, marks: Mapping[str, Points]
) -> Figure:
    """Draw vector fields side by side, as stream lines, with marked points.

    ``xs``, ``[columns]``, and ``ys``, ``[rows]``, are ascending and equally spaced. By the titles of the panels,
    ``directions`` has the two components, ``[rows, columns]`` each, and ``marks`` points by name, seven at most.
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
