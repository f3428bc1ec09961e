"""Checkpoints: all that a run is made of, in one file of arrays without pickles, whole or not there at all.

A checkpoint names its run, by settings, weights and generator at the start: for any other, or changed, it is refused.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.plain import digest, digest_of_arrays, to_array
from companion.records import read_arrays, write_whole
from companion.training.history import History


@dataclass
class Run:
    """The state of a run.

    ``settings`` say by name what it is, and ``identity`` what there was at the start too, which :func:`begin` sets: a
    checkpoint with others belongs to another run. ``optimiser`` is torch's; every draw is from ``generator``;
    ``modules`` are networks whose buffers, such as the statistics of a batch norm, change; ``history`` is what it left
    behind so far, in ``seconds`` of processor time. ``around`` is a digest of torch's global generators at the start,
    which a run without dropout leaves alone.
    """

    optimiser: torch.optim.Optimizer
    generator: torch.Generator
    settings: Mapping[str, str]
    modules: Sequence[torch.nn.Module] = ()
    history: History = field(default_factory=History)
    seconds: float = 0.0
    identity: dict[str, str] = field(default_factory=dict)
    around: str = ""

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that are trained, in the order of the optimiser's groups."""
        return [tensor for group in self.optimiser.param_groups for tensor in group["params"]]

    @property
    def buffers(self) -> list[Tensor]:
        """The buffers of the modules, each once."""
        return list({id(buffer): buffer for module in self.modules for buffer in module.buffers()}.values())

    def state(self) -> dict[str, str]:
        """Return a digest of each part that changes as it trains."""
        parts = {f"weights of group {j}": group["params"] for j, group in enumerate(self.optimiser.param_groups)}
        parts |= {"buffers": self.buffers, "generator": [self.generator.get_state()]}
        return {f"{name} at the start": digest(tensors) for name, tensors in parts.items()}


def begin(path: Path | str, run: Run) -> int:
    """Take up a checkpoint, if there; return the steps done. ``ValueError`` for no path, damage, or another run."""
    path = Path(path)
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"checkpoint is {path}; expected a file in a folder that is there. Make the folder first.")
    trained = {id(tensor) for tensor in run.tensors}
    frozen = [weight for module in run.modules for weight in module.parameters() if id(weight) not in trained]
    run.identity = {**run.settings, "weights that are not trained": digest(frozen)} | run.state()
    run.around = digest(_around(run.generator))
    return _load(path, run) if path.exists() else 0


def save(path: Path | str, run: Run, done: int) -> None:
    """Write a run after ``done`` steps, whole or not at all."""
    parts = {"tensor": run.tensors, "buffer": run.buffers, "generator": [run.generator.get_state()]}
    if digest(_around(run.generator)) != run.around:
        parts["around"] = _around(run.generator)
    arrays = {f"{part}/{j}": to_array(tensor) for part, tensors in parts.items() for j, tensor in enumerate(tensors)}
    for j, state in run.optimiser.state_dict()["state"].items():
        arrays |= {f"optimiser/{j}/{name}": to_array(value) for name, value in state.items()}
    for table in ("steps", "evaluations"):
        arrays |= {f"{table}/{name}": column for name, column in getattr(run.history, table).items()}
    ended = {name: getattr(run.history, name) for name in ("diverged_at", "reason")}
    about = {"identity": run.identity, "left": run.state(), "done": done, "seconds": run.seconds, "ended": ended}
    arrays["about"] = np.array(json.dumps(about))
    arrays["digest"] = np.array(digest_of_arrays(arrays))
    write_whole(Path(path), lambda file: np.savez(file, allow_pickle=False, **arrays))


def _load(path: Path, run: Run) -> int:
    arrays = _read(path)
    about = json.loads(str(arrays["about"]))
    _check_same(path, run.identity, about["identity"], about["left"])
    run.identity = about["identity"]
    with torch.no_grad():
        for part, tensors in (("tensor", run.tensors), ("buffer", run.buffers)):
            for j, tensor in enumerate(tensors):
                tensor.copy_(torch.from_numpy(arrays[f"{part}/{j}"]))
    state: dict[int, dict[str, Tensor]] = {j: {} for j in range(len(run.tensors))}
    for name, value in _those(arrays, "optimiser").items():
        number, what = name.split("/")
        state[int(number)][what] = torch.from_numpy(value)
    run.optimiser.load_state_dict({"state": state, "param_groups": run.optimiser.state_dict()["param_groups"]})
    run.generator.set_state(torch.from_numpy(arrays["generator/0"]))
    _set_around(run, [torch.from_numpy(value) for value in _those(arrays, "around").values()])
    run.history = History(_those(arrays, "steps"), _those(arrays, "evaluations"), **about["ended"])
    run.seconds = about["seconds"]
    return int(about["done"])


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """Read a checkpoint. Whatever is wrong with the file shows in its digest, or in that it cannot be read at all."""
    with contextlib.suppress(ValueError, KeyError):
        arrays = read_arrays(path)
        if str(arrays.pop("digest")) == digest_of_arrays(arrays):
            return arrays
    mend = "Remove it, to begin the run anew, or pass another path."
    raise ValueError(f"{path} is damaged, or no checkpoint; expected what fine_tune or optimise wrote. {mend}")


def _check_same(path: Path, now: Mapping[str, str], then: Mapping[str, str], left: Mapping[str, str]) -> None:
    """Refuse another run. What changes as it trains may be as it was at the start, or as the checkpoint left it."""
    names = [name for name in {**then, **now} if now.get(name) not in (then.get(name), left.get(name, then.get(name)))]
    if names:
        differ = "; ".join(f"its {name}: {then.get(name, 'none')}, here: {now.get(name, 'none')}" for name in names)
        mend = "Remove the file, or pass another; to go on, make its sampler and generator as they were at the start."
        raise ValueError(f"{path} is the checkpoint of another run ({differ}); expected the same. {mend}")


def _those(arrays: Mapping[str, NDArray[Any]], part: str) -> dict[str, NDArray[Any]]:
    """The arrays of one part, by the rest of their names, in the order in which they were written."""
    return {name.removeprefix(f"{part}/"): array for name, array in arrays.items() if name.startswith(f"{part}/")}


def _around(generator: torch.Generator) -> list[Tensor]:
    """The states of torch's global generators: of the processor, and of the device that the run is on."""
    states = [torch.get_rng_state()]
    return states + [torch.cuda.get_rng_state(generator.device)] if generator.device.type == "cuda" else states


def _set_around(run: Run, states: Sequence[Tensor]) -> None:
    """Put the global generators where a run that draws from them left them; those of any other run stay as they are."""
    for j, state in enumerate(states):
        torch.cuda.set_rng_state(state, run.generator.device) if j else torch.set_rng_state(state)
    if states:
        run.around = ""  # it draws from them: every later checkpoint keeps them too
