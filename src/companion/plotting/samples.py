"""Figures of samples in the plane and of runs over several seeds, in the style of :mod:`companion.plotting`.

Clouds of points beside their target, the weights of modes with intervals, curves with bands, a map of cells, and a
slider over the steps of paths that works in any browser without a network.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from companion.plotting import COLOURS, CYCLE, MARKERS, panels
from companion.statistics import mean_interval


def clouds(points: Mapping[str, Tensor], *, columns: int = 3, modes: Tensor | None = None, limit: float = 13) -> Figure:
    """Draw a cloud of points, ``[n, 2]``, for each title, over crosses at ``modes``, ``[components, 2]``."""
    rows = -(-len(points) // columns)
    figure, _ = panels(1, width=7.4, height=2.6 * rows)
    figure.clear()
    for j, (title, cloud) in enumerate(points.items()):
        axes = figure.add_subplot(rows, columns, j + 1)
        if modes is not None:
            axes.plot(*modes.T.numpy(), "+", color=COLOURS["reference"], ms=5, mew=0.7, zorder=1)
        axes.plot(*cloud.T.numpy(), ".", color=COLOURS["target"], ms=1.6, alpha=0.5, zorder=2)
        axes.set_title(title, fontsize=10)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[-10, 0, 10], yticks=[-10, 0, 10], aspect="equal")
        axes.tick_params(labelsize=8)
    return figure


def weights_with_intervals(
    labels: Sequence[str], target: Sequence[float], methods: Mapping[str, Sequence[Sequence[float]]]
) -> Figure:
    """Draw the target's weights as steps, and for each method the mean over seeds of each weight, with its interval.

    ``methods`` holds, for each name, one list of weights per seed, as long as ``labels``.
    """
    figure, (axes,) = panels(width=7.4, height=3.6)
    places = np.arange(len(labels))
    axes.bar(places, target, 0.92, color="#dddddd", label="target")
    for j, (name, runs) in enumerate(methods.items()):
        found = [mean_interval(column) for column in zip(*runs, strict=True)]
        mean = np.array([entry.mean for entry in found])
        half = np.array([entry.high - entry.mean for entry in found])
        shift = (j - (len(methods) - 1) / 2) * 0.8 / len(methods)
        axes.errorbar(
            places + shift, mean, half, fmt=MARKERS[j % 7], color=CYCLE[j % 7], ms=4.5, lw=1, capsize=2, label=name
        )
    axes.set_xticks(places, labels, fontsize=8)
    axes.set(ylabel="weight", xlabel="mode")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8.5, frameon=False, ncols=2)
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
        style = ["-", "--", "-.", ":"][j % 4]
        axes.plot(x, values.mean(axis=0), style, color=CYCLE[j % 7], label=name, lw=1.6)
        axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=CYCLE[j % 7], alpha=0.15, lw=0)
    if level is not None:
        axes.axhline(level, color=COLOURS["reference"], lw=1)
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log_y else "linear")
    axes.legend(fontsize=8.5, frameon=False, ncols=2)
    return figure


def cells(
    values: np.ndarray, *, rows: Sequence[str], columns: Sequence[str], xlabel: str, ylabel: str, title: str, top: float
) -> Figure:
    """Draw a map, ``[rows, columns]``, of values from 0 to ``top``, each written into its cell."""
    figure, (axes,) = panels(width=6.4, height=1.4 + 0.42 * len(rows))
    axes.imshow(values, cmap="cividis_r", vmin=0, vmax=1.25 * top, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        axes.annotate(f"{value:.2f}", (j, i), ha="center", va="center", color="white" if value > 0.6 * top else "black")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title, fontsize=10.5)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


class Page:
    """A piece of HTML that a notebook shows."""

    def __init__(self, html: str) -> None:
        self.html = html

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return "Page: open the notebook or the book in a browser"


_SLIDER = """<figure class="path-slider" role="group" aria-label="%(about)s">
<div style="display:flex;flex-wrap:wrap;gap:8px">%(canvases)s</div>
<label>step <input type="range" min="0" max="%(last)d" value="%(last)d" style="width:60%%" aria-label="step">
<output></output></label>
<script>(function () {
  const root = document.currentScript.parentElement, data = %(data)s, steps = %(steps)s;
  const modes = %(modes)s, input = root.querySelector("input"), shown = root.querySelector("output");
  const at = (v) => 110 + v * 8;
  function draw() {
    const k = Number(input.value);
    shown.textContent = steps[k];
    root.querySelectorAll("canvas").forEach((canvas, j) => {
      const c = canvas.getContext("2d");
      c.fillStyle = "white"; c.fillRect(0, 0, 220, 220);
      c.strokeStyle = "#7f7f7f"; c.beginPath();
      modes.forEach(([x, y]) => { c.moveTo(at(x) - 3, 220 - at(y)); c.lineTo(at(x) + 3, 220 - at(y));
        c.moveTo(at(x), 217 - at(y)); c.lineTo(at(x), 223 - at(y)); });
      c.stroke(); c.fillStyle = "rgba(0,114,178,0.6)";
      data[j][k].forEach(([x, y]) => { c.beginPath(); c.arc(at(x), 220 - at(y), 1.7, 0, 7); c.fill(); });
    });
  }
  input.addEventListener("input", draw); draw();
})();</script></figure>"""


def path_slider(paths: Mapping[str, Tensor], *, steps: Sequence[int], modes: Tensor, about: str) -> "Page":
    """Return a slider over the steps of paths, ``[n, steps + 1, 2]`` for each title, as HTML that needs no network.

    ``steps`` are the steps shown, ``modes`` crosses to be drawn, ``[components, 2]``, and ``about`` says in words what
    the panels show, for those who cannot see them. Positions are rounded to a tenth.
    """
    canvases = "".join(
        f'<div><div style="font-size:90%">{title}</div><canvas width="220" height="220" role="img" '
        f'aria-label="{title}: points in the plane at the step chosen"></canvas></div>'
        for title in paths
    )
    data = [[np.round(path[:, k].double().numpy(), 1).tolist() for k in steps] for path in paths.values()]
    fill = {"about": about, "canvases": canvases, "last": len(steps) - 1, "data": json.dumps(data)}
    return Page(_SLIDER % (fill | {"steps": json.dumps(list(steps)), "modes": json.dumps(modes.tolist())}))
