"""Tables of cells: shaded and labelled, maps of values, and two vocabularies side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from companion.plotting.style import panels


def grid(
    values: Tensor, *, rows: Sequence[str], columns: Sequence[str], labels: Sequence[Sequence[str]], title: str = ""
) -> Figure:
    """Draw cells shaded by ``values``, ``[rows, columns]`` from 0 to 1, one label each; ``ValueError`` for misfits."""
    if values.shape != (len(rows), len(columns)) or [len(line) for line in labels] != [len(columns)] * len(rows):
        given = f"values is {tuple(values.shape)} for {len(rows)} rows and {len(columns)} columns"
        raise ValueError(f"{given}; expected one value and one label per cell. Pass as many of each.")
    figure, (axes,) = panels(width=7.4, height=0.8 + 0.28 * len(rows))
    for row, line in enumerate(labels):
        for column, label in enumerate(line):
            axes.annotate(label, (column, row), ha="center", va="center", fontsize=8)
    _shade(axes, values.detach().numpy(), rows, columns, title, top=1.6, fontsize=8)
    return figure


def cells(
    values: np.ndarray, *, rows: Sequence[str], columns: Sequence[str], xlabel: str, ylabel: str, title: str, top: float
) -> Figure:
    """Draw a map, ``[rows, columns]``, of values from 0 to ``top``, each written into its cell."""
    figure, (axes,) = panels(height=1.4 + 0.42 * len(rows))
    for (i, j), value in np.ndenumerate(values):
        axes.annotate(f"{value:.2f}", (j, i), ha="center", va="center", color="white" if value > 0.6 * top else "black")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    _shade(axes, values, rows, columns, title, top=1.25 * top)
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


def _shade(
    axes: Axes, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str, *, top: float, **text: Any
) -> None:
    """Give a table its cells, names and title, and take the ticks and the box away."""
    axes.imshow(values, cmap="cividis_r", vmin=0, vmax=top, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, **text)
    axes.set_yticks(range(len(rows)), rows, **text)
    axes.set_title(title, fontsize=10.5)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
