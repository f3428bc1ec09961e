"""Begins a chapter: python book/scaffold.py SLUG [--title "..."]

It writes a notebook that builds and passes the tests, executed, the chapter's file in the registry of claims unless it
is planned there already, and its line in the contents. Claims planned for the chapter stay so until `planned = true` is
taken out of their entries.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

REGISTRY = Path("src/companion/claims/registry")
OPENING = """# {title}

The question of this chapter, in a paragraph: what does a reader want to know who comes here, and why is it open?
What must the reader recall?"""
IMPORTS = """import torch

from companion import mdp

torch.set_default_dtype(torch.float64)"""
SECTION = """## The first section

One plain sentence says what the next cell will show."""
EXAMPLE = """problem = mdp.randomise(mdp.small_graph(), torch.Generator().manual_seed(1))
assert mdp.solve(problem, kl_weight=0.7).values[0].isfinite()"""
CLAIMS = """A claim has an entry in the registry, a numbered statement with its assumptions, an anchor, and a cell that
checks it; its deliberate errors stand with the mutants. CONTRIBUTING.md says how.

## Exercises"""
EXERCISE = """```{{exercise}}
:label: ex-{slug}-{which}

The {which} exercise of this chapter.
```

```{{solution-start}} ex-{slug}-{which}
:class: dropdown
```
In words first, then in code."""
CLOSING = "```{solution-end}\n```"


def main() -> None:
    """Write the chapter, execute it, and say what was written. Refuses a slug that is taken, or is none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("slug", help="lower-case words joined by hyphens, such as names-with-a-wish")
    parser.add_argument("--title", help="by default the planned one, or the slug's words")
    options = parser.parse_args()
    slug = options.slug
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug):
        sys.exit(f"NAME is {slug!r}; expected lower-case words joined by hyphens, such as names-with-a-wish.")
    if list(Path("notebooks").glob(f"??-{slug}.ipynb")):
        sys.exit(f"notebooks/ has a chapter {slug} already; expected a new name. Choose another.")
    entry, title = registered(slug, options.title)
    notebook = Path("notebooks", entry.stem).with_suffix(".ipynb")
    nbformat.write(scaffold(slug, title), notebook)
    add_to_contents(notebook)
    subprocess.run([sys.executable, Path(__file__).with_name("execute.py"), notebook], check=True)
    print(f"wrote {notebook}, {entry} and a line of _toc.yml")


def registered(slug: str, title: str | None) -> tuple[Path, str]:
    """Return the chapter's file in the registry, and its title; what is missing is written."""
    planned = list(REGISTRY.glob(f"??-{slug}.toml"))
    if planned:
        text = planned[0].read_text()
        planned[0].write_text(re.sub(r"^(\[\w+\])\n(?!planned)", r"\1\nplanned = true\n", text, flags=re.MULTILINE))
        return planned[0], re.search(r'^title = "(.*)"$', text, flags=re.MULTILINE)[1]
    number = 1 + max(int(path.stem[:2]) for path in REGISTRY.glob("??-*.toml"))
    title = title or slug.replace("-", " ").capitalize()
    path = REGISTRY / f"{number:02d}-{slug}.toml"
    path.write_text(f"title = {json.dumps(title, ensure_ascii=False)}\n")
    return path, title


def scaffold(slug: str, title: str) -> nbformat.NotebookNode:
    """Return the notebook, not executed; its set-up cell is that of every chapter."""
    first = nbformat.read(min(Path("notebooks").glob("??-*.ipynb")), as_version=4)
    setup = next(cell for cell in first.cells if cell.cell_type == "code")
    cells = [
        new_markdown_cell(OPENING.format(title=title)),
        new_code_cell(setup.source, metadata=setup.metadata),
        new_code_cell(IMPORTS),
        new_markdown_cell(SECTION),
        new_code_cell(EXAMPLE),
        new_markdown_cell(CLAIMS),
    ]
    for which in ("first", "second"):
        cells += [new_markdown_cell(EXERCISE.format(slug=slug, which=which)), new_code_cell("assert 1 + 1 == 2")]
        cells += [new_markdown_cell(CLOSING)]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return new_notebook(cells=cells, metadata=metadata)


def add_to_contents(notebook: Path) -> None:
    """Add the chapter to the contents, after the last one with a lower number."""
    path = Path("_toc.yml")
    lines = path.read_text().splitlines()
    listed = [(n, line) for n, line in enumerate(lines) if re.search(r"file: notebooks/\d\d-", line)]
    before = [n for n, line in listed if line.split("notebooks/")[1] < notebook.stem]
    at = (before or [listed[0][0] - 1])[-1] + 1
    lines.insert(at, f"      - file: notebooks/{notebook.stem}")
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
