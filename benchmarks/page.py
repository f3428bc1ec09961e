"""Writes the book's page on speed, and its figure, from results/benchmark; a test compares them with the records.

The prose is in speed.template.md; each ``<<name>>`` in it stands for something computed here.

python -m benchmarks.page
"""

import io
import re
from pathlib import Path

import matplotlib as mpl

from benchmarks import bound, growth, record
from benchmarks.parts import PARTS
from benchmarks.record import Summary, blocks, ratio, summary
from benchmarks.worker import EXPLORATION, Size
from companion import plotting
from companion.records import Run

TEMPLATE = Path(__file__).with_name("speed.template.md")
#: The programs that are compared, and what the page calls them.
COMPARED = {
    "companion": "this package",
    "torchgfn": "torchgfn, as its example trains",
    "torchgfn, memory kept": "the same, freed memory kept",
    "torchgfn, kept": "torchgfn, log-probabilities kept",
}
#: The passes that :mod:`benchmarks.bound` counts, and what the page calls them.
PASSES = {"policy": "policy, step by step", "prior": "prior, in blocks", "backward": "backward, in blocks"}
#: What the figure calls each series.
AXES = {"steps": "steps of a path, T", "batch": "paths in a batch", "width": "hidden units"}
#: Where the figure may have ticks, in milliseconds.
TICKS = (1, 3, 10, 30, 100, 300, 1000, 3000)


def render(runs: dict[int, Run]) -> str:
    """Return the page as MyST Markdown. Raises ``ValueError`` for records without one on one thread."""
    if 1 not in runs:
        raise ValueError(f"there are runs on {sorted(runs)} threads; expected one on 1. Run make bench.")
    values = _numbers(runs[1]) | _speeds(runs[1]) | _growth(runs[1]) | _tables(runs)
    return re.sub("<<(.*?)>>", lambda match: values[match[1]], TEMPLATE.read_text())


def comparison(run: Run) -> str:
    """Return the table of the programs compared: time and memory of each, and the ratio of ours to it."""
    lines = ["| | ms per step | this package / it | peak memory, MB | above its imports, MB |", "|---|---|---|---|---|"]
    for program, name in COMPARED.items():
        measured = run.measures[program]
        peak, imported = measured["peak_bytes"], measured["imported_bytes"]
        share = "" if program == "companion" else _spread(ratio(run, "companion", program), ".3f")
        time = _times(blocks(run, program))
        lines.append(f"| {name} | {time} | {share} | {peak / 1e6:.0f} | {(peak - imported) / 1e6:.0f} |")
    return "\n".join(lines)


def parts(run: Run) -> str:
    """Return the table of the parts of a step of this package."""
    medians = {name: summary(blocks(run, "parts", name)).median for name in PARTS}
    whole = sum(medians.values())
    lines = [f"| {name} | {1e3 * seconds:.1f} | {seconds / whole:.0%} |" for name, seconds in medians.items()]
    return "\n".join(["| part | ms | share |", "|---|---|---|", *lines])


def least(run: Run) -> str:
    """Return the table of the passes that a step cannot do without, and the least time of each."""
    size = Size(**run.configuration["size"])
    flops, numbers = bound.flops(size), bound.activations(size)
    rows = [(words, flops[name], numbers, blocks(run, "bound", name)) for name, words in PASSES.items()]
    rows.append(("all", sum(flops.values()), len(PASSES) * numbers, blocks(run, "bound")))
    lines = [
        f"| {words} | {operations / 1e9:.2f} | {gelus / 1e6:.1f} | {1e3 * summary(seconds).median:.1f} |"
        for words, operations, gelus, seconds in rows
    ]
    return "\n".join(["| pass | GFLOP | GELUs, millions | at least, ms |", "|---|---|---|---|", *lines])


def figure(run: Run) -> str:
    """Return the figure of growth as SVG, the same text at every call."""
    drawn, panels = plotting.panels(len(growth.SERIES), width=7.4, height=2.7)
    medians = {size: 1e3 * summary(blocks(run, "growth", growth.name_of(size))).median for size in growth.sizes()}
    limits = (0.6 * min(medians.values()), 1.6 * max(medians.values()))
    ticks = [tick for tick in TICKS if limits[0] < tick < limits[1]]
    for axes, (name, values) in zip(panels, growth.SERIES.items(), strict=True):
        times = [medians[size] for size in growth.along(name)]
        published = getattr(Size(), name)
        slope = times[values.index(published)] / published
        axes.plot(values, [slope * value for value in values], "--", color="#7f7f7f", label="in proportion")
        axes.plot(values, times, marker="o", color=plotting.CYCLE[0], label="measured")
        axes.set(xlabel=AXES[name], xscale="log", yscale="log", ylim=limits)
        axes.set_xticks(values, [str(value) for value in values])
        axes.set_yticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
    panels[0].set_ylabel("ms per step")
    panels[0].legend(fontsize=8, frameon=False)
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "speed"}):
        drawn.savefig(text, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def _numbers(run: Run) -> dict[str, str]:
    """The settings, and what the prose says of the comparison."""
    size, versions = Size(**run.configuration["size"]), {name: run.measures[name]["versions"] for name in COMPARED}
    work = sum(bound.torchgfn_flops(size).values()) / sum(bound.flops(size).values())
    sums = [sum(seconds) for seconds in zip(*(blocks(run, "parts", name) for name in PARTS), strict=True)]
    return {
        "steps": str(size.steps),
        "batch": str(size.batch),
        "width": str(size.width),
        "exploration": f"{EXPLORATION:g}",
        "block": str(run.configuration["steps_per_block"]),
        "rounds": str(run.configuration["rounds"]),
        "torchgfn": versions["torchgfn"]["torchgfn"],
        "torch": versions["companion"]["torch"],
        "torch peer": versions["torchgfn"]["torch"],
        "ratio": f"{ratio(run, 'companion', 'torchgfn').median:.3f}",
        "ratio memory": f"{ratio(run, 'companion', 'torchgfn, memory kept').median:.3f}",
        "ratio kept": f"{ratio(run, 'companion', 'torchgfn, kept').median:.3f}",
        "work": f"{work:.1f}",
        "parts sum": f"{1e3 * summary(sums).median:.1f}",
        "step": f"{1e3 * summary(blocks(run, 'companion')).median:.1f}",
        "gaussian steps": str(size.steps - 1),
        "last time": f"{1 - 1 / size.steps:g}",
    }


def _speeds(run: Run) -> dict[str, str]:
    """What the bound is made of."""
    speed = {name: summary(values).median for name, values in run.measures["bound"]["blocks"].items()}
    return {
        "repeats": str(bound.REPEATS),
        "block rows": f"{speed['rows, blocks']:.0f}",
        "product step": f"{speed['flops/s, one step'] / 1e9:.1f}",
        "product blocks": f"{speed['flops/s, blocks'] / 1e9:.1f}",
        "gelu step": f"{1e9 * speed['gelu s, one step']:.2f}",
        "gelu blocks": f"{1e9 * speed['gelu s, blocks']:.2f}",
        "gelu backward": f"{1e9 * speed['gelu backward s, blocks']:.2f}",
        "above bound": _spread(ratio(run, "companion", "bound"), ".2f"),
    }


def _growth(run: Run) -> dict[str, str]:
    """How much longer a step takes at the last value of each series than at the one before, half as large."""
    lines = []
    for name, values in growth.SERIES.items():
        before, last = (blocks(run, "growth", growth.name_of(size)) for size in growth.along(name)[-2:])
        times = summary([b / a for a, b in zip(before, last, strict=True)]).median
        lines.append(f"from {values[-2]} to {values[-1]} {AXES[name]}: {times:.2f} times as long")
    alt = f"Three panels, milliseconds per step against T, batch and width, logarithmic: {'; '.join(lines)}."
    return {"growth": "\n".join(f"- {line[0].upper()}{line[1:]}." for line in lines), "figure": alt}


def _tables(runs: dict[int, Run]) -> dict[str, str]:
    """The tables, the section on threads where more were tried, and where the numbers come from."""
    run = runs[1]
    made, python = run.provenance, run.measures["companion"]["versions"]["python"]
    commit = f"commit `{made['commit'][:12]}`" if made["commit"] else "outside a checkout"
    commit += " with uncommitted changes" if made["uncommitted"] else ""
    provenance = (
        f"Measured on {made['started'][:10]}: {made['processor']}, {made['cores']} cores, {made['system']} "
        f"{made['machine']}, Python {python}, {commit}. The load average before the run was {made['load']:.1f}."
    )
    tables = {"comparison": comparison(run), "parts": parts(run), "least": least(run)}
    return tables | {"threads": _threads(runs) if len(runs) > 1 else "", "provenance": provenance}


def _threads(runs: dict[int, Run]) -> str:
    lines = ["## More threads\n", "| threads | this package, ms | torchgfn, ms | ratio |", "|---|---|---|---|"]
    for threads, run in runs.items():
        ours, theirs = (_times(blocks(run, program)) for program in ("companion", "torchgfn"))
        lines.append(f"| {threads} | {ours} | {theirs} | {_spread(ratio(run, 'companion', 'torchgfn'), '.3f')} |")
    return "\n".join([*lines, "\n"])


def _times(seconds: list[float]) -> str:
    return _spread(summary([1e3 * value for value in seconds]), ".0f")


def _spread(found: Summary, form: str) -> str:
    return f"{found.median:{form}} ({found.low:{form}} to {found.high:{form}})"


def main(root: Path = record.ROOT) -> None:
    """Write the page and the figure, and print the tables."""
    runs = record.load()
    (root / "book" / "speed.md").write_text(render(runs))
    (root / "book" / "_static" / "speed.svg").write_text(figure(runs[1]))
    for threads, run in runs.items():
        above = _spread(ratio(run, "companion", "bound"), ".2f")
        print(f"\nThreads: {threads}\n\n{comparison(run)}\n\n{parts(run)}\n\n{least(run)}\n\nStep / bound: {above}")
    print("\nwrote book/speed.md and book/_static/speed.svg")


if __name__ == "__main__":
    main()
