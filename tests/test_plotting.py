"""Every kind of figure: closed, titled, labelled, and holding the numbers that it was given; and the slider."""

import json
import re
from inspect import signature

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from inputs import generator, tensor
from matplotlib.figure import Figure

from companion import mdp, plotting

XS, YS = torch.linspace(-2, 1, 4).double(), torch.linspace(0, 3, 3).double()
DIRECTIONS = {
    "on-policy": (torch.ones(3, 4).double(), torch.zeros(3, 4).double()),
    "off-policy": (torch.zeros(3, 4).double(), torch.ones(3, 4).double()),
}
MARKS = {"on-policy": {"p*": (0.5, 1.0), "start": (-1.0, 2.0)}, "off-policy": {"p*": (0.25, 1.5)}}
MODES = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
CLOUD = torch.randn(20, 2, generator=generator(0))
CLOUDS = {"prior": CLOUD, "target": CLOUD + 1, "RTB": -CLOUD, "other": CLOUD}
WEIGHTS = {"RTB": [[0.2, 0.8], [0.4, 0.6]], "REINFORCE": [[0.3, 0.7], [0.3, 0.7]]}
RUNS = {"RTB": ([0, 1, 2], [[1.0, 0.5, 0.2], [1.0, 0.3, 0.1]])}
SHADES, LABELS = tensor([[0.0, 0.5, 1.0], [1.0, 0.25, 0.0]]), [["a", "b", "c"], ["d", "e", "f"]]
#: From s0 to s1 to s2, and past s1.
DETOUR = mdp.from_edges([(0, 1), (0, 2), (1, 2)])
PAIR = {"xlabel": "x", "ylabel": "y"}
#: One figure of each kind, by the name of the function that draws it.
FIGURES = {
    "bands": lambda: plotting.bands(RUNS, xlabel="iteration", ylabel="distance", log_y=True, level=0.05),
    "bars": lambda: plotting.bars(["a", "b"], {"p": [1.0, 2.0], "q": tensor([0.5, 3.0])}, ylabel="y"),
    "cells": lambda: plotting.cells(
        np.array([[0.0, 0.5], [0.25, 0.66]]), rows=["r1", "r2"], columns=["c1", "c2"], title="map", top=2 / 3, **PAIR
    ),
    "clouds": lambda: plotting.clouds(CLOUDS, modes=MODES),
    "curves_with_points": lambda: plotting.curves_with_points(
        YS,
        {"u": YS, "v": YS**2},
        {"p": {"u": {1.0: (1.0, 0.5, 1.5)}, "v": {2.0: (4.0, 3.0, 5.0)}}},
        xlabel="x",
        curve="c",
    ),
    "fields": lambda: plotting.fields(XS, YS, DIRECTIONS, xlabel="logit", ylabel="log Z", marks=MARKS),
    "graph": lambda: plotting.graph(DETOUR, states=["s0", "s1", "s2"], edges=["e0", "e1", "e2"], names={2: "x"}),
    "grid": lambda: plotting.grid(SHADES, rows=["r1", "r2"], columns=["c1", "c2", "c3"], labels=LABELS, title="table"),
    "lines": lambda: plotting.lines(XS, {"a": XS, "b": [0, 1, 2, 3]}, mark={"m": (0, 1)}, **PAIR),
    "machine": lambda: plotting.machine(
        torch.tensor([[0, 1], [1, 0]]),
        [(0, 1), (1, 0)],
        names=["even", "odd"],
        letters="ab",
        granted=torch.tensor([False, True]),
    ),
    "mode_grids": lambda: plotting.mode_grids(MODES, {"p": tensor([0.25, 0.75])}, kept=torch.tensor([True, False])),
    "scatter": lambda: plotting.scatter({"a": (XS, 2 * XS + 1)}, slopes={"a": (2.0, 1.0)}, **PAIR),
    "tree": lambda: plotting.tree({"b": {"f": ["x", "y"], "g": ["z"]}}, root="r", bold=("g",)),
    "vocabularies": lambda: plotting.vocabularies([("flow", "F(s)", "value"), ("reward", "r(x)", "return")]),
    "weights_with_intervals": lambda: plotting.weights_with_intervals(["a", "b"], [0.25, 0.75], WEIGHTS),
}


def test_the_table_holds_every_kind_of_figure():
    public = {name: getattr(plotting, name) for name in plotting.__all__}
    drawn = {name for name, entry in public.items() if callable(entry) and signature(entry).return_annotation is Figure}
    assert set(FIGURES) == drawn


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_closed_and_can_be_drawn(name):
    """A cell that ends with the call shows it once."""
    drawn = FIGURES[name]()
    assert not plt.get_fignums()
    drawn.canvas.draw()


def test_a_graph_places_each_state_at_its_longest_distance_from_the_root():
    """The edge past s1 bends away from it."""
    (axes,) = FIGURES["graph"]().axes
    places = {text.get_text(): text.xy for text in axes.texts}
    assert [places[state] for state in ("s0", "s1", "s2")] == [(0, -0.5), (1, -0.5), (2, -0.5)]
    assert places["x"] == places["s2"]
    assert {line.get_ydata()[10] for line in axes.get_lines()} == {-0.5, -0.5 - 2.2 / 4}


def test_an_automaton_has_a_box_for_each_state_and_an_arrow_for_letters_that_lead_to_one_state():
    """Thick where the wish is granted; four letters or more of one arrow are "other"."""
    (axes,) = FIGURES["machine"]().axes
    assert [text.get_text() for text in axes.texts if text.get_text()] == ["even", "odd", "a", "b", "b", "a"]
    assert [text.get_bbox_patch().get_linewidth() for text in axes.texts[:2]] == [1, 3]
    assert sum(text.arrow_patch is not None for text in axes.texts if not text.get_text()) == 4
    one = {"names": ["all"], "granted": torch.tensor([True])}
    for letters, label in (("abc", "a, b, c"), ("abcd", "other")):
        (axes,) = plotting.machine(torch.zeros(1, len(letters)).long(), [(0, 0)], letters=letters, **one).axes
        assert axes.texts[-1].get_text() == label


def test_fields_have_a_panel_for_each_direction_with_its_title_labels_and_ranges():
    figure = FIGURES["fields"]()
    assert [axes.get_title() for axes in figure.axes] == list(DIRECTIONS)
    assert [axes.get_xlabel() for axes in figure.axes] == ["logit", "logit"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["log Z", ""]
    for axes in figure.axes:
        assert axes.get_xlim() == (-2, 1) and axes.get_ylim() == (0, 3)


def test_fields_put_every_mark_in_its_panel_and_in_its_legend():
    for axes in FIGURES["fields"]().axes:
        marks = MARKS[axes.get_title()]
        assert {line.get_label(): (*line.get_xdata(), *line.get_ydata()) for line in axes.get_lines()} == marks
        assert [text.get_text() for text in axes.get_legend().get_texts()] == list(marks)
        assert len({line.get_marker() for line in axes.get_lines()}) == len(marks)


def test_fields_of_one_direction_and_of_marks_that_miss_a_panel():
    one = plotting.fields(XS, YS, {"on-policy": DIRECTIONS["on-policy"]}, marks=MARKS, **PAIR)
    assert len(one.axes) == 1
    both = plotting.fields(XS, YS, DIRECTIONS, marks={"on-policy": MARKS["on-policy"]}, **PAIR)
    assert [axes.get_legend() is None for axes in both.axes] == [False, True]


def test_a_grid_has_one_label_in_each_cell_and_names_its_rows_and_columns():
    (axes,) = FIGURES["grid"]().axes
    assert {text.get_text(): text.xy for text in axes.texts} == {
        label: (column, row) for row, line in enumerate(LABELS) for column, label in enumerate(line)
    }
    assert axes.get_title() == "table"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["c1", "c2", "c3"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["r1", "r2"]
    (image,) = axes.images
    assert image.get_array().tolist() == SHADES.tolist()


def test_a_grid_whose_names_do_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected one value and one label per cell"):
        plotting.grid(torch.zeros(1, 2), rows=["a"], columns=["b"], labels=[["c", "d"]])


def test_a_map_writes_its_values_into_its_cells():
    (axes,) = FIGURES["cells"]().axes
    assert [text.get_text() for text in axes.texts] == ["0.00", "0.50", "0.25", "0.66"]


def test_clouds_have_a_panel_for_each_sampler_with_every_point_and_mode():
    figure = FIGURES["clouds"]()
    assert [axes.get_title() for axes in figure.axes] == list(CLOUDS)
    modes, points = figure.axes[2].get_lines()
    assert np.allclose(np.array(modes.get_data()).T, MODES) and np.allclose(np.array(points.get_data()).T, -CLOUD)


def test_weights_stand_at_their_means():
    (axes,) = FIGURES["weights_with_intervals"]().axes
    assert [bar.get_height() for bar in axes.patches] == [0.25, 0.75]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["target", "RTB", "REINFORCE"]
    heights = [container.lines[0].get_ydata().tolist() for container in axes.containers[1:]]
    assert np.allclose(heights, [[0.3, 0.7], [0.3, 0.7]])
    (bare,) = plotting.weights_with_intervals(["a", "b"], None, WEIGHTS, xlabel="wish", ylabel="KL").axes
    assert not bare.patches and (bare.get_xlabel(), bare.get_ylabel()) == ("wish", "KL")


def test_a_band_reaches_from_the_least_run_to_the_greatest_around_their_mean():
    (axes,) = FIGURES["bands"]().axes
    assert np.allclose(axes.get_lines()[0].get_ydata(), [1.0, 0.4, 0.15])
    corners = axes.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(0.1) and corners[:, 1].max() == pytest.approx(1.0)
    assert axes.get_yscale() == "log"


def test_the_slider_holds_the_paths_and_asks_nothing_of_the_network():
    paths = torch.arange(24.0).view(2, 4, 3)[..., :2].contiguous() / 7
    page = plotting.path_slider({"RTB": paths}, steps=[0, 3], modes=MODES, about="Two paths.")
    html = page._repr_html_()
    (data,) = re.findall(r"data = (\[.*?\]), steps", html)
    assert np.allclose(json.loads(data), [[paths[:, k].numpy().round(1).tolist() for k in (0, 3)]], atol=0.051)
    assert 'aria-label="Two paths."' in html and 'max="1"' in html and "http" not in html
    assert repr(page) == repr(plotting.Page(""))
