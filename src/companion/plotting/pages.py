"""Pieces of HTML that move: a slider over the steps of paths that works in any browser without a network."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor


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


def path_slider(paths: Mapping[str, Tensor], *, steps: Sequence[int], modes: Tensor, about: str) -> Page:
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
