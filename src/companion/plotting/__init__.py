"""The few kinds of figure that the book uses, in its one visual style.

Every function returns a closed matplotlib figure, so that a notebook cell that ends with the call shows it once. The
numbers behind a figure are its arguments, and stay within reach of the reader.
"""

from companion.plotting.curves import bands, clouds, curves_with_points, fields, lines, scatter
from companion.plotting.graphs import graph, machine, tree
from companion.plotting.laws import bars, mode_grids, weights_with_intervals
from companion.plotting.pages import Page, path_slider
from companion.plotting.style import COLOURS, CYCLE, MARKERS, panels
from companion.plotting.tables import cells, grid, vocabularies

__all__ = [
    "COLOURS", "CYCLE", "MARKERS", "Page", "bands", "bars", "cells", "clouds", "curves_with_points", "fields", "graph",
    "grid", "lines", "machine", "mode_grids", "panels", "path_slider", "scatter", "tree",
    "vocabularies", "weights_with_intervals",
]  # fmt: skip
