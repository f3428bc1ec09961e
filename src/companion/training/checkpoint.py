"""Checkpoints: all that a run is made of, in one file of arrays without pickles, whole or not there at all."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.records import write_whole
from companion.training.history import History


@dataclass
class Run:
    """The state of a run.

    Attributes:
        optimiser: torch's, with the tensors that it trains.
        generator: the source of every draw.
        label: what the run is; a checkpoint with another label belongs to another run.
        history: what it has left behind so far.
        seconds: of processor time so far.
    """

    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    label: str
    history: History = field(default_factory=History)
    seconds: float = 0.0

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that are trained, in the order of the optimiser's groups."""
        return [tensor for group in self.optimiser.param_groups for tensor in group["params"]]


def save(path: Path | str, run: Run, done: int) -> None:
    """Write a run after ``done`` steps, whole or not at all."""
    arrays = {f"tensor/{j}": tensor.detach().cpu().numpy() for j, tensor in enumerate(run.tensors)}
    for j, state in run.optimiser.state_dict()["state"].items():
        arrays |= {f"optimiser/{j}/{name}": value.cpu().numpy() for name, value in state.items()}
    for table in ("steps", "evaluations"):
        arrays |= {f"{table}/{name}": column for name, column in getattr(run.history, table).items()}
    about = {"label": run.label, "done": done, "seconds": run.seconds, "diverged_at": run.history.diverged_at}
    arrays |= {"generator": run.generator.get_state().numpy(), "about": np.array(json.dumps(about))}
    write_whole(Path(path), lambda file: np.savez(file, allow_pickle=False, **arrays))


def load(path: Path | str, run: Run) -> int:
    """Take up a checkpoint, and return the number of steps done. Raises ``ValueError`` for that of another run."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    about = json.loads(str(arrays["about"]))
    _restore_tensors(path, run, arrays, about["label"])
    state: dict[int, dict[str, Tensor]] = {j: {} for j in range(len(run.tensors))}
    for name, value in arrays.items():
        if name.startswith("optimiser/"):
            _, j, what = name.split("/")
            state[int(j)][what] = torch.from_numpy(value)
    groups = run.optimiser.state_dict()["param_groups"]
    run.optimiser.load_state_dict({"state": state, "param_groups": groups})
    run.generator.set_state(torch.from_numpy(arrays["generator"]))
    for table in ("steps", "evaluations"):
        columns = {name.removeprefix(f"{table}/"): a for name, a in arrays.items() if name.startswith(f"{table}/")}
        setattr(run.history, table, columns)
    run.history.diverged_at, run.seconds = about["diverged_at"], about["seconds"]
    return int(about["done"])


def _restore_tensors(path: Path | str, run: Run, arrays: dict[str, NDArray[Any]], label: str) -> None:
    kept = [torch.from_numpy(arrays[f"tensor/{j}"]) for j in range(len(arrays)) if f"tensor/{j}" in arrays]
    kinds = [[(tensor.shape, tensor.dtype) for tensor in tensors] for tensors in (kept, run.tensors)]
    if label != run.label or kinds[0] != kinds[1]:
        raise ValueError(
            f"{path} is the checkpoint of another run, {label}; expected {run.label}. Remove the file, or pass another "
            "name."
        )
    with torch.no_grad():
        for tensor, value in zip(run.tensors, kept, strict=True):
            tensor.copy_(value)
