"""From schema 1 to 2: a flat list of settings becomes an objective, a schedule and a behaviour; nothing else changes.

The benchmark's one file becomes a record for each number of threads. What is of schema 2 already is left as it is.

python -m experiments.migrations.objectives_as_values
"""

import json
from pathlib import Path
from typing import Any

from companion import objectives, records, samplers, training
from experiments.common import RESULTS, settings

#: The objectives of schema 1, by name: those without an option of their own.
INVERSE_TEMPERATURE = {"rtb": objectives.RTB, "vargrad": objectives.VarGrad}


def objective(old: dict[str, Any]):
    """Return the objective that a flat list of settings named."""
    name, beta = old["objective"], old["beta"]
    if name == "published":
        return objectives.PublishedBaseline(old["kl_weight"])
    if name == "reinforce":
        baseline = objectives.Scalar() if old["baseline"] == "learned" else old["baseline"]
        found = objectives.Reinforce(beta, baseline, old["weights"], old["clip"])
    else:
        found = objectives.TrustPCL(1 / beta) if name == "trust_pcl" else INVERSE_TEMPERATURE[name](beta)
    return objectives.Annealed(found, old["anneal_beta"]) if old["anneal_beta"] else found


def schedule(old: dict[str, Any]) -> training.Schedule:
    """Return its schedule."""
    decay = None if old["decay_from"] is None else training.Linear(old["decay_from"])
    return training.Schedule(old["iterations"], old["batch"], old["rate"], old["scalar_rate"], decay)


def behaviour(old: dict[str, Any]) -> samplers.Exploration | None:
    """Return its behaviour; none where the paths were the policy's own."""
    start, until, end = (old[name] for name in ("exploration", "explore_until", "explore_to"))
    if not (start or old["replayed"]):
        return None
    noise = samplers.Fading(start, until, end) if start else 0.0
    return samplers.Exploration(noise, old["replayed"], old["replay_until"])


def configuration(study: str, old: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration of schema 2, its entries in the old order; the map's noise has an entry of its own."""
    new = {}
    for name, value in old.items():
        new |= settings(objective(value), schedule(value), behaviour(value)) if name == "settings" else {name: value}
        if study == "rarity_map" and name == "rarity":
            new["noise"] = old["settings"]["exploration"]
    return new


def migrate(path: Path) -> bool:
    """Rewrite two lines of a stored run, if it is of schema 1; return whether it was."""
    lines = path.read_text().splitlines(keepends=True)
    if lines[1] != '"schema":1,\n':
        return False
    record = json.loads("".join(lines))
    new = json.dumps(configuration(record["study"], record["configuration"]), separators=(",", ":"))
    lines[1], lines[3] = '"schema":2,\n', f'"configuration":{new},\n'
    records.write_whole(path, lambda file: file.write("".join(lines).encode()))
    return True


def split(path: Path) -> int:
    """Make the benchmark's one file a record for each number of threads; return how many there were."""
    if not path.exists():
        return 0
    runs = json.loads(path.read_text())["runs"]
    for threads, run in runs.items():
        measured_at, programs = run.pop("provenance"), run.pop("programs")
        system, machine = measured_at.pop("system").split()
        provenance = {"commit": measured_at.pop("commit"), "started": measured_at.pop("date"), "machine": machine}
        provenance |= {"system": system} | measured_at
        records.write("benchmark", {"name": f"threads-{threads}"} | run, provenance, programs, where=path.parent)
    path.unlink()
    return len(runs)


if __name__ == "__main__":
    print(f"migrated: {sum(map(migrate, sorted(RESULTS.glob('*/*.json'))))} runs of studies")
    print(f"migrated: {split(RESULTS / 'benchmark.json')} runs of the benchmark")
