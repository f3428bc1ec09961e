"""Points in the plane: clouds of samples, scatter about lines, and marked points over a field of directions."""

from collections.abc import Mapping

from matplotlib.figure import Figure
from torch import Tensor

from companion.plotting.style import COLOURS, CYCLE, MARKERS, floats, panels


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
        axes.plot(floats(x), floats(y), MARKERS[j], ms=4, alpha=0.7, color=CYCLE[j], label=name)
        if slopes and name in slopes:
            slope, intercept = slopes[name]
            ends = [min(0.0, *floats(x)), max(0.0, *floats(x))]
            axes.plot(ends, [slope * e + intercept for e in ends], color=CYCLE[j], lw=1)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(fontsize=9, frameon=False)
    return figure


def clouds(points: Mapping[str, Tensor], *, columns: int = 3, modes: Tensor | None = None, limit: float = 13) -> Figure:
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
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[-10, 0, 10], yticks=[-10, 0, 10], aspect="equal")
        axes.tick_params(labelsize=8)
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
