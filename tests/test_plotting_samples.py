"""The figures of samples and seeds, and the slider: closed, titled, and holding the numbers that they were given."""

import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from companion import plotting

MODES = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
CLOUD = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))


def clouds():
    return plotting.clouds({"prior": CLOUD, "target": CLOUD + 1, "RTB": -CLOUD, "other": CLOUD}, modes=MODES)


def weights():
    runs = {"RTB": [[0.2, 0.8], [0.4, 0.6]], "REINFORCE": [[0.3, 0.7], [0.3, 0.7]]}
    return plotting.weights_with_intervals(["a", "b"], [0.25, 0.75], runs)


def bands():
    runs = {"RTB": ([0, 1, 2], [[1.0, 0.5, 0.2], [1.0, 0.3, 0.1]])}
    return plotting.bands(runs, xlabel="iteration", ylabel="distance", log_y=True, level=0.05)


def cells():
    values = np.array([[0.0, 0.5], [0.25, 0.66]])
    names = {"rows": ["r1", "r2"], "columns": ["c1", "c2"], "xlabel": "x", "ylabel": "y", "title": "map"}
    return plotting.cells(values, top=2 / 3, **names)


@pytest.mark.parametrize("figure", [clouds, weights, bands, cells])
def test_a_figure_is_closed_and_can_be_drawn(figure):
    """A cell that ends with the call shows it once."""
    drawn = figure()
    assert not plt.get_fignums()
    drawn.canvas.draw()


def test_clouds_have_a_panel_for_each_sampler_with_every_point_and_mode():
    figure = clouds()
    assert [axes.get_title() for axes in figure.axes] == ["prior", "target", "RTB", "other"]
    modes, points = figure.axes[2].get_lines()
    assert np.allclose(np.array(modes.get_data()).T, MODES) and np.allclose(np.array(points.get_data()).T, -CLOUD)


def test_weights_stand_at_their_means():
    (axes,) = weights().axes
    assert [bar.get_height() for bar in axes.patches] == [0.25, 0.75]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["target", "RTB", "REINFORCE"]
    heights = [container.lines[0].get_ydata().tolist() for container in axes.containers[1:]]
    assert np.allclose(heights, [[0.3, 0.7], [0.3, 0.7]])


def test_a_band_reaches_from_the_least_run_to_the_greatest_around_their_mean():
    (axes,) = bands().axes
    assert np.allclose(axes.get_lines()[0].get_ydata(), [1.0, 0.4, 0.15])
    corners = axes.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(0.1) and corners[:, 1].max() == pytest.approx(1.0)
    assert axes.get_yscale() == "log"


def test_a_map_writes_its_values_into_its_cells():
    (axes,) = cells().axes
    assert [text.get_text() for text in axes.texts] == ["0.00", "0.50", "0.25", "0.66"]


def test_the_slider_holds_the_paths_and_asks_nothing_of_the_network():
    paths = torch.arange(24.0).view(2, 4, 3)[..., :2].contiguous() / 7
    page = plotting.path_slider({"RTB": paths}, steps=[0, 3], modes=MODES, about="Two paths.")
    html = page._repr_html_()
    (data,) = re.findall(r"data = (\[.*?\]), steps", html)
    assert np.allclose(json.loads(data), [[paths[:, k].numpy().round(1).tolist() for k in (0, 3)]], atol=0.051)
    assert 'aria-label="Two paths."' in html and 'max="1"' in html and "http" not in html
    assert repr(page) == repr(plotting.Page(""))
