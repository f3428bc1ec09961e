"""Laws over few outcomes: bars, weights with intervals, and weights of modes as squares in the plane."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from companion.plotting.style import COLOURS, CYCLE, MARKERS, floats, panels
from companion.statistics import mean_interval


def bars(labels: Sequence[str], series: Mapping[str, Sequence[float] | Tensor], *, ylabel: str) -> Figure:
    """Draw groups of bars, one group per label and one bar per series, hatched so that colour is not needed."""
    figure, (axes,) = panels()
    width = 0.8 / len(series)
    for j, (name, heights) in enumerate(series.items()):
        at = [i + (j - (len(series) - 1) / 2) * width for i in range(len(labels))]
        axes.bar(at, floats(heights), width, label=name, color=CYCLE[j], hatch=["", "//", "..", "xx"][j % 4])
    axes.set(xticks=range(len(labels)), xticklabels=labels, ylabel=ylabel)
    columns = len(series) if len(series) < 4 else 2
    axes.legend(fontsize=9, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=columns)  # clear of the bars
    return figure


def weights_with_intervals(
    labels: Sequence[str],
    target: Sequence[float] | None,
    methods: Mapping[str, Sequence[Sequence[float]]],
    *,
    xlabel: str = "mode",
    ylabel: str = "weight",
) -> Figure:
    """Draw the target's weights, if any, as steps, and each method's mean over seeds, a list each, with intervals."""
    figure, (axes,) = panels(width=7.4, height=3.6)
    places = np.arange(len(labels))
    if target is not None:
        axes.bar(places, target, 0.92, color="#dddddd", label="target")
    for j, (name, runs) in enumerate(methods.items()):
        found = [mean_interval(column) for column in zip(*runs, strict=True)]
        mean, half = [entry.mean for entry in found], [entry.high - entry.mean for entry in found]
        at = places + (j - (len(methods) - 1) / 2) * 0.8 / len(methods)
        axes.errorbar(at, mean, half, fmt=MARKERS[j % 7], color=CYCLE[j % 7], ms=4.5, lw=1, capsize=2, label=name)
    axes.set_xticks(places, labels, fontsize=8)
    axes.set(ylabel=ylabel, xlabel=xlabel, ylim=(0, None))
    axes.legend(fontsize=8.5, frameon=False, ncols=2)
    return figure


def mode_grids(means: Tensor, laws: Mapping[str, Tensor], *, kept: Tensor) -> Figure:
    """Draw mode weights in panels, three to a row, each weight as a square at its mean whose area is the weight.

    A grey dot marks each of the ``means``, ``[modes, 2]``, on a grid, whose place the largest weight of the first law
    fills; a law is ``[modes]``, by its title. What is not ``kept``, ``[modes]``, bool, is hatched, in another colour.
    """
    rows = -(-len(laws) // 3)
    figure, axes = panels(3, rows=rows, height=2.2 * rows)
    for axis in axes:
        axis.set_axis_off()
    spacing, largest = float(torch.pdist(means).min()), float(next(iter(laws.values())).max())
    low, high = float(means.min()) - 0.8 * spacing, float(means.max()) + 0.8 * spacing
    for axis, (title, weights) in zip(axes, laws.items(), strict=False):
        axis.plot(floats(means[:, 0]), floats(means[:, 1]), ".", ms=3, color="#9a9a9a")
        for mode in weights.argsort(descending=True).tolist():  # small squares on top of large ones
            side = 0.95 * spacing * float(weights[mode] / largest) ** 0.5
            x, y = floats(means[mode])
            fc, ec, hatch = (COLOURS["target"], "white", "") if kept[mode] else ("white", COLOURS["policy"], "//////")
            axis.add_patch(Rectangle((x - side / 2, y - side / 2), side, side, zorder=2, fc=fc, ec=ec, hatch=hatch))
        axis.set_title(title, fontsize=10)
        axis.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    return figure
