"""Writes the table of options into the chapter on other people's losses, from what was recorded of the libraries.

``python -m book.options`` writes it; a test compares it with what would be written.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

from companion.claims import notebook

CHAPTER = "one-residual-many-names"
_HEAD = "| library | options | the loss, in our letters | in the figure |\n|---|---|---|---|\n"
#: The line before the table, which goes on to the cell's end.
MARK = "(table-of-options)="


def read(root: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return the rows, and for each library its version and its defaults, by configuration class."""
    given = tomllib.loads((root / "tests/peers/options.toml").read_text())
    libraries = dict(given["read"])
    for name in ("TRL", "verl"):
        recorded = json.loads((root / f"tests/peers/{name.lower()}.json").read_text())
        libraries[name] = {"version": recorded["versions"][name.lower()], "defaults": recorded["defaults"]}
    return [row | {"prefix": given["prefix"]} for row in given["row"]], libraries


def table(root: Path) -> str:
    """Return the table, as MyST Markdown."""
    rows, libraries = read(root)
    lines = [_line(row, libraries[row["library"]]) for row in rows]
    return _HEAD + "\n".join(lines)


def setting(row: dict[str, Any], library: dict[str, Any]) -> tuple[str, str]:
    """Return the library with its version, and the options of a row beside the defaults to be shown."""
    options = [(of, name, value) for of, chosen in row["set"].items() for name, value in chosen.items()]
    shipped = [
        (of, name, library["defaults"][of][name]) for of, names in row.get("shipped", {}).items() for name in names
    ]
    trainer = next(iter(row["set"]))
    where = f"{row['library']} {library['version']}" + (f", `{trainer}`" if trainer.endswith("Config") else "")
    where = where if row["library"] == "TRL" else f"{row['library']} {library['version']}"
    parts = [", ".join(map(_option(row["prefix"]), options)) or "as it comes"]
    parts += [f"shipped: {', '.join(map(_option(row['prefix']), shipped))}"] if shipped else []
    return where, "; ".join(parts)


def _line(row: dict[str, Any], library: dict[str, Any]) -> str:
    where, parts = setting(row, library)
    return f"| {where} | {parts} | {row['loss']} | {row.get('figure', '–')} |"


def _option(prefix: dict[str, str]) -> Any:
    def written(option: tuple[str, str, Any]) -> str:
        of, name, value = option
        return f"`{prefix.get(of, '')}{name}={value if value == 'α' else json.dumps(value)}`"

    return written


def main() -> None:
    """Write the table into the chapter's cell that begins with the mark."""
    root = Path(__file__).resolve().parents[1]
    path = notebook(root, CHAPTER)
    assert path is not None
    page = json.loads(path.read_text())
    (cell,) = [cell for cell in page["cells"] if MARK in "".join(cell["source"])]
    before = "".join(cell["source"]).split(MARK)[0]
    cell["source"] = (before + MARK + "\n" + table(root)).splitlines(keepends=True)
    path.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
