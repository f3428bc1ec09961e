"""The book's one visual style: colours that colour-blind readers can tell apart, markers, and empty axes."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

#: Colours of Okabe and Ito, by what they stand for in every figure.
COLOURS = {"reference": "#7f7f7f", "target": "#0072B2", "policy": "#D55E00"}
#: The order in which colours are used where a series has no meaning of its own.
CYCLE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7f7f7f"]
#: Markers that go with :data:`CYCLE`, so that no series is told apart by colour alone.
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]
#: Line styles that go with :data:`CYCLE`.
DASHES = ["-", "--", "-.", ":"]

_STYLE: dict[Any, Any] = {
    "figure.dpi": 110, "savefig.facecolor": "white", "figure.facecolor": "white", "figure.constrained_layout.use": True,
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.prop_cycle": cycler(color=CYCLE),
}  # fmt: skip


def panels(n: int = 1, *, rows: int = 1, width: float = 6.4, height: float = 3.4) -> tuple[Figure, list[Axes]]:
    """Return a closed figure in the book's style with ``rows`` rows of ``n`` axes, row by row; sizes in inches."""
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(rows, n, figsize=(width, height), squeeze=False)
        plt.close(figure)
    return figure, list(axes.flat)


def floats(values: Sequence[float] | Tensor) -> list[float]:
    """Return the entries of a sequence, or of a tensor of one dimension, as Python numbers."""
    return [float(v) for v in values]
