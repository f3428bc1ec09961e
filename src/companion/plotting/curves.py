"""Curves over one axis: lines, means with bands, and predictions with measured points on them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from companion.plotting.style import COLOURS, CYCLE, DASHES, MARKERS, floats, panels


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
        axes.plot(floats(x), floats(y), label=name, color=CYCLE[j], ls=DASHES[j % 4])
    for j, (name, point) in enumerate((mark or {}).items()):
        axes.plot(*point, "o", color=CYCLE[j], ms=7, mec="black", label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
    axes.legend(fontsize=9, frameon=False)
    return figure


def bands(
    curves: Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]],
    *,
    xlabel: str,
    ylabel: str,
    log_y: bool = False,
    level: float | None = None,
) -> Figure:
    """Draw for each name the mean of several runs over ``x``, and the range from the least to the greatest of them.

    ``curves`` holds ``(x, runs)``, one list per run, as long as ``x``; ``level`` draws a horizontal line.
    """
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
