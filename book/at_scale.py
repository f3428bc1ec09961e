"""The rows of the atlas on a network: the last table of its page, from the stored runs and the margins before them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from companion import records
from companion.records import Run
from companion.statistics import mean_interval

#: The rows that the study of names has under names of its own.
NAMED = {
    "rtb": "rtb-own",
    "rtb-prior-texts": "rtb-fixed",
    "vargrad-prior-texts": "vargrad-fixed",
    "kimi": "kimi-own",
    "kimi-prior-texts": "kimi-fixed",
    "flowrl": "length-normalised-own",
    "dro-per-token": "dro-per-token-own",
    "grpo-k3-ratio": "grpo-kl-own",
    "grpo-k3": "grpo-k3-own",
    "grpo-std-above": "grpo-std-kl-own",
    "rloo": "rloo-own",
}
_HEAD = ["loss", "texts", "KL of its target to $p^*$", "KL to its target", "KL to $p^*$", "wish", "due", "borne out"]


def judged(runs: list[Run], fixed: dict[str, Any]) -> bool:
    """Return whether runs, one a seed, bear their target out by what was fixed before them."""
    own, star, mass, due, between = (
        records.measure(runs, name)
        for name in ("kl_to_target", "kl_to_p_star", "granted", "target_granted", "target_to_p_star")
    )
    less = mean_interval([x - y for x, y in zip(mass, due, strict=True)])
    if max(-less.low, less.high) >= fixed["granted"]:
        return False
    if between[0] < 1e-4:
        return mean_interval(own).high < fixed["p_star_within"]
    share = mean_interval([x - fixed["share"] * y for x, y in zip(own, star, strict=True)])
    return mean_interval(own).high < fixed["ends_within"] and (between[0] <= fixed["apart"] or share.high < 0)


def stored(root: Path) -> Iterator[tuple[str, list[Run], dict[str, Any]]]:
    """Yield the name of a row, its runs, and what was fixed before them."""
    margins = json.loads((root / "experiments/margins.json").read_text())
    for study, key in (("atlas_names", "method"), ("atlas_rows", "row")):
        for name, runs in records.by(records.load(study, where=root / "results"), key).items():
            row = NAMED.get(name) if study == "atlas_names" else name
            if row is not None:
                yield row, runs, margins[study]


def table(root: Path, titles: dict[str, str], texts: dict[str, str]) -> list[list[str]]:
    """Return the cells of the table, head first; ``titles`` are of the leaves in order, ``texts`` of their kinds."""
    rows = {row: (runs, fixed) for row, runs, fixed in stored(root)}
    cells = [_HEAD, ["---"] * len(_HEAD)]
    for leaf, title in titles.items():
        for kind, word in texts.items():
            if f"{leaf}-{kind}" in rows:
                runs, fixed = rows[f"{leaf}-{kind}"]
                cells.append([f"[{title}](#atlas-{leaf})", word, *_numbers(runs), _verdict(runs, fixed)])
    return cells


def _verdict(runs: list[Run], fixed: dict[str, Any]) -> str:
    return "yes" if judged(runs, fixed) else "no"


def _numbers(runs: list[Run]) -> Iterator[str]:
    between = records.measure(runs, "target_to_p_star")[0]
    yield f"{between:.2f}" if between > 1e-4 else "0"
    for name in ("kl_to_target", "kl_to_p_star"):
        found = mean_interval(records.measure(runs, name))
        yield f"{found.mean:.2f} ± {found.high - found.mean:.2f}"
    mass, due = (sum(x) / len(x) for x in (records.measure(runs, name) for name in ("granted", "target_granted")))
    yield from (f"{mass:.2f}", f"{due:.2f}")
