"""One fine-tuning loop for every sampler and every objective, and for the whole design space of chapter 7.

A step draws a batch of paths under a behaviour, asks an objective for a loss, and lets torch's Adam take it. Objective,
baseline, weights, exploration, replay and remedies are :class:`Settings`: plain data that can be stored beside the
results. The loop keeps a history, stops where training diverges and says so, and goes on from a checkpoint to the same
numbers as if it had never stopped. Chapters 10 to 12 use it.

Sources: the settings of Venkatraman et al. (2024) and Deleu et al. (2025); each objective names its own.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from companion import reinforce, rtb, trust_pcl
from companion.samplers import Batch, Sampler
from companion.validation import (
    NotFiniteError,
    check_finite,
    check_generator,
    check_number,
    check_positive_integers,
)

#: Objectives that :func:`fine_tune` knows by name.
OBJECTIVES = ("rtb", "vargrad", "trust_pcl", "reinforce", "published")


@dataclass(frozen=True)
class Settings:
    """How to fine-tune: every choice of chapter 7's design space, and of the schedule, as plain data.

    Attributes:
        objective: ``"rtb"`` (log Z learned), ``"vargrad"`` (log Z from the batch), ``"trust_pcl"`` (V(s_0) learned),
            ``"reinforce"`` (KL-regularised) or ``"published"`` (the first published baseline).
        iterations: number of steps.
        batch: paths per step.
        rate: Adam's rate for the policy.
        scalar_rate: Adam's rate for log Z, V(s_0) or a learned baseline.
        decay_from: iteration from which both rates fall, linearly, to zero at the end; None keeps them.
        beta: inverse temperature, 1/alpha.
        baseline: for ``"reinforce"``: as in :func:`companion.reinforce.kl_loss`, or ``"learned"``.
        weights: for ``"reinforce"``: as in :func:`companion.reinforce.kl_loss`.
        kl_weight: for ``"published"``: w.
        exploration: e at the start, passed to the sampler.
        explore_until: iteration up to which e is held.
        explore_to: iteration from which there is none; in between, e is ``exploration * (1 - i / explore_to)``.
        replayed: share of each batch that comes from the sampler's store.
        replay_until: iteration from which nothing is replayed; None replays to the end.
        anneal_beta: iterations over which beta rises linearly from nothing to its value.
        clip: largest size of a path's centred residual, in nats; None clips nothing.

    Raises:
        ValueError: for an unknown objective, a number out of range, a schedule that ends before it begins, or a choice
            that the objective does not use.
    """

    objective: str = "rtb"
    iterations: int = 5000
    batch: int = 500
    rate: float = 1e-3
    scalar_rate: float = 1e-1
    decay_from: int | None = None
    beta: float = 1.0
    baseline: str | float = "batch_mean"
    weights: str = "none"
    kl_weight: float = 0.01
    exploration: float = 0.0
    explore_until: int = 0
    explore_to: int = 0
    replayed: float = 0.0
    replay_until: int | None = None
    anneal_beta: int = 0
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective is {self.objective!r}; expected one of {OBJECTIVES}. Choose one of these.")
        check_positive_integers(iterations=self.iterations, batch=self.batch)
        for name in ("rate", "scalar_rate", "beta"):
            check_number(name, getattr(self, name), above=0)
        for name in ("exploration", "explore_until", "explore_to", "anneal_beta", "kl_weight"):
            check_number(name, getattr(self, name), at_least=0)
        check_number("replayed", self.replayed, at_least=0, at_most=1)
        if self.clip is not None:
            check_number("clip", self.clip, above=0)
        if self.explore_to < self.explore_until or (self.exploration > 0 and self.explore_to == 0):
            raise ValueError(
                f"explore_to is {self.explore_to} with explore_until {self.explore_until} and exploration "
                f"{self.exploration:g}; expected a schedule that ends after it begins. Raise explore_to."
            )
        unused = {"published": ("beta", "clip", "anneal_beta")}.get(self.objective, ())
        unused += () if self.objective == "reinforce" else ("baseline", "weights")
        for name in unused:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ValueError(
                    f"{name} is {getattr(self, name)!r} with the objective {self.objective!r}, which does not use it; "
                    "expected its default. Leave it out."
                )
        for name in ("decay_from", "replay_until"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), at_least=0, at_most=self.iterations)
        if isinstance(self.baseline, str) and self.baseline not in (*reinforce.BASELINES, "learned"):
            names = (*reinforce.BASELINES, "learned")
            raise ValueError(
                f"baseline is {self.baseline!r}; expected one of {names} or a number. Choose one of these."
            )
        if not isinstance(self.baseline, str):
            check_number("baseline", self.baseline)
        if self.weights not in reinforce.WEIGHTS:
            raise ValueError(f"weights is {self.weights!r}; expected one of {reinforce.WEIGHTS}. Choose one of these.")

    def exploration_at(self, i: int) -> float:
        """Return the exploration noise of iteration ``i``: held, then falling linearly, then none."""
        if i >= self.explore_to:
            return 0.0
        return self.exploration if i <= self.explore_until else self.exploration * (1 - i / self.explore_to)

    def beta_at(self, i: int) -> float:
        """Return the inverse temperature of iteration ``i``."""
        return self.beta * min(1.0, (i + 1) / (self.anneal_beta + 1))

    def rate_at(self, i: int) -> float:
        """Return the factor on Adam's rates at iteration ``i``."""
        start = self.iterations if self.decay_from is None else self.decay_from
        return 1.0 if i < start else (self.iterations - i) / (self.iterations - start)

    def replayed_at(self, i: int) -> float:
        """Return the share of the batch that is replayed at iteration ``i``."""
        return self.replayed if self.replay_until is None or i < self.replay_until else 0.0


@dataclass
class History:
    """What a run left behind.

    Attributes:
        steps: by name, one number per iteration: the loss, the mean of log r, the ELBO estimate of the batch (a mean
            over the behaviour's paths), the learned scalar, seconds of processor time so far.
        evaluations: by name, one number per evaluation; ``"iteration"`` says after how many steps.
        diverged_at: the iteration whose loss or gradient was not finite, where the run stopped; None if none was.
    """

    steps: dict[str, np.ndarray] = field(default_factory=dict)
    evaluations: dict[str, np.ndarray] = field(default_factory=dict)
    diverged_at: int | None = None

    def append(self, table: str, row: Mapping[str, float]) -> None:
        """Add one row to ``"steps"`` or ``"evaluations"``."""
        columns = getattr(self, table)
        for name, value in row.items():
            columns[name] = np.append(columns.get(name, np.empty(0)), float(value))


def fine_tune(
    sampler: Sampler,
    settings: Settings,
    generator: torch.Generator,
    *,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    evaluate_every: int = 500,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 500,
    stop_after: int | None = None,
    progress: bool = False,
) -> History:
    """Train a sampler in place, and return the history.

    Args:
        sampler: what is trained, such as :class:`companion.samplers.DiffusionSampler`.
        settings: objective, behaviour and schedule.
        generator: the source of every draw; its device is the sampler's.
        evaluate: called before the first step, every ``evaluate_every`` steps and at the end; returns measures by name.
            It must draw from a generator of its own.
        evaluate_every: steps from one evaluation to the next.
        checkpoint: a file from which an interrupted run goes on, and which is written, whole or not at all, every
            ``checkpoint_every`` steps and at the end. It holds arrays only, no pickles.
        checkpoint_every: steps from one checkpoint to the next.
        stop_after: a number of steps after which to stop, the schedule being that of the whole run: the start of a
            run, to be looked at or to be gone on with.
        progress: whether to show a progress bar.

    Raises:
        ValueError: for bad settings or samplers, and for a checkpoint of other settings.

    Source: Venkatraman et al. (2024). Used in chapter 10.
    """
    objective = Objective(settings, sampler.parameters()[0])

    def loss_of(i: int) -> tuple[Tensor, dict[str, float]]:
        batch = sampler.draw(
            settings.batch, generator, exploration=settings.exploration_at(i), replayed=settings.replayed_at(i)
        )
        return objective.loss(batch, i), objective.measures(batch, i)

    return optimise(
        loss_of,
        [(sampler.parameters(), settings.rate), (objective.parameters(), settings.scalar_rate)],
        settings.iterations,
        generator,
        rate_at=settings.rate_at,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        stop_after=stop_after,
        label=json.dumps(asdict(settings), sort_keys=True),
        progress=progress,
    )


class Objective:
    """A loss chosen by its settings, with the scalar that it learns, if it does: log Z, V(s_0) or a baseline.

    Args:
        settings: which objective, and its options.
        like: a tensor of the dtype and on the device of the sampler.

    Source: chapter 7, which derives every objective here and its fixed point.
    """

    def __init__(self, settings: Settings, like: Tensor) -> None:
        self.settings = settings
        learns = settings.objective in ("rtb", "trust_pcl") or settings.baseline == "learned"
        self.scalar = torch.zeros((), dtype=like.dtype, device=like.device, requires_grad=True) if learns else None

    def parameters(self) -> list[Tensor]:
        """Return the learned scalar, if there is one."""
        return [] if self.scalar is None else [self.scalar]

    def loss(self, batch: Batch, i: int = 0) -> Tensor:
        """Return the loss of a batch at iteration ``i``: a scalar with gradients. Raises ``ValueError``."""
        settings, beta = self.settings, self.settings.beta_at(i)
        log_reward = batch.log_reward if settings.clip is None else _clipped(batch, beta, settings.clip)
        if settings.objective == "rtb":
            return rtb.loss(batch.log_pi, batch.log_ref, log_reward, self.scalar, beta=beta)
        if settings.objective == "vargrad":
            return rtb.vargrad_loss(batch.log_pi, batch.log_ref, log_reward, beta=beta)
        if settings.objective == "trust_pcl":
            return self._trust_pcl(batch, log_reward, beta)
        if settings.objective == "published":
            return reinforce.published_baseline_loss(
                batch.log_pi, batch.log_ref, batch.log_reward, kl_weight=settings.kl_weight
            )
        return self._reinforce(batch, log_reward, beta)

    def measures(self, batch: Batch, i: int = 0) -> dict[str, float]:
        """Return what the history keeps of a batch: mean log r, the ELBO over the batch's paths, the scalar."""
        log_ratio = (batch.log_pi.detach() - batch.log_ref).sum(dim=1)
        row = {"log_reward": batch.log_reward.mean().item()}
        row["elbo"] = (self.settings.beta * batch.log_reward - log_ratio).mean().item()
        return row if self.scalar is None else row | {"scalar": self.scalar.item()}

    def _trust_pcl(self, batch: Batch, log_reward: Tensor, beta: float) -> Tensor:
        """Trust-PCL on whole paths: the reward at the last step, V(s_0) learned, the values between never used."""
        n, steps = batch.log_pi.shape
        rewards = torch.cat([log_reward.new_zeros(n, steps - 1), log_reward[:, None]], dim=1)
        values = torch.cat([self.scalar.expand(n, 1), log_reward.new_zeros(n, steps)], dim=1)
        return trust_pcl.loss(batch.log_pi, batch.log_ref, rewards, values, kl_weight=1 / beta)

    def _reinforce(self, batch: Batch, log_reward: Tensor, beta: float) -> Tensor:
        weights = self.settings.weights
        if weights != "none" and batch.log_behaviour is None:
            raise ValueError(f"weights={weights!r} with replayed paths, whose behaviour has no density. Use 'none'.")
        given = {"beta": beta, "weights": weights, "log_behaviour": batch.log_behaviour if weights != "none" else None}
        arguments = (batch.log_pi, batch.log_ref, log_reward)
        if self.scalar is None:
            return reinforce.kl_loss(*arguments, baseline=self.settings.baseline, **given)
        policy = reinforce.kl_loss(*arguments, baseline=self.scalar.item(), **given)
        return policy + reinforce.critic_loss(*arguments, self.scalar, **given)


def _clipped(batch: Batch, beta: float, clip: float) -> Tensor:
    """The log-rewards under which no path's return is further than ``clip / beta`` from the batch's mean return."""
    penalty = (batch.log_pi.detach() - batch.log_ref).sum(dim=1) / beta
    returns = batch.log_reward - penalty
    mean = returns.mean()
    return mean + (returns - mean).clamp(-clip / beta, clip / beta) + penalty


def optimise(
    loss_of: Callable[[int], tuple[Tensor, Mapping[str, float]]],
    groups: list[tuple[list[Tensor], float]],
    iterations: int,
    generator: torch.Generator,
    *,
    rate_at: Callable[[int], float] = lambda i: 1.0,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    evaluate_every: int = 500,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 500,
    stop_after: int | None = None,
    label: str = "",
    progress: bool = False,
) -> History:
    """Run Adam on any loss: the loop under :func:`fine_tune`, for what is not fine-tuning, such as training a prior.

    Args:
        loss_of: the loss of an iteration, and what the history should keep of it.
        groups: tensors to be trained, with the rate of each group.
        iterations: number of steps.
        generator: the source of every draw in ``loss_of``; a checkpoint keeps its state.
        rate_at: factor on the rates at an iteration.
        evaluate: as in :func:`fine_tune`.
        evaluate_every: as in :func:`fine_tune`.
        checkpoint: as in :func:`fine_tune`.
        checkpoint_every: as in :func:`fine_tune`.
        stop_after: as in :func:`fine_tune`.
        label: what a checkpoint must have been written for; another label is refused.
        progress: as in :func:`fine_tune`.

    Raises:
        ValueError: for a bad number, no generator, or a checkpoint with another label.

    Source: Adam is torch's. Used in chapter 10.
    """
    check_positive_integers(iterations=iterations, evaluate_every=evaluate_every, checkpoint_every=checkpoint_every)
    check_generator(generator)
    if stop_after is not None:
        check_positive_integers(stop_after=stop_after)
    stop = iterations if stop_after is None else min(iterations, stop_after)
    optimiser = torch.optim.Adam([{"params": list(p), "lr": rate, "base": rate} for p, rate in groups if p])
    run = _Run(optimiser, generator, label)
    start = run.load(checkpoint) if checkpoint is not None and Path(checkpoint).exists() else 0
    if start == 0 and evaluate is not None:
        run.evaluate(0, evaluate)
    for i in tqdm(range(start, stop), initial=start, total=iterations, disable=not progress):
        if run.history.diverged_at is not None:
            break
        run.step(i, loss_of, rate_at(i))
        diverged = run.history.diverged_at is not None
        taken = i if diverged else i + 1
        last = diverged or taken == stop
        if evaluate is not None and (last or taken % evaluate_every == 0):
            run.evaluate(taken, evaluate)
        if checkpoint is not None and (last or taken % checkpoint_every == 0):
            run.save(checkpoint, taken)
    return run.history


class _Run:
    """The state of a run: parameters, optimiser, generator, history. All of it goes into a checkpoint."""

    def __init__(self, optimiser: torch.optim.Optimizer, generator: torch.Generator, label: str) -> None:
        self.optimiser, self.generator, self.label, self.history = optimiser, generator, label, History()
        self.tensors = [tensor for group in optimiser.param_groups for tensor in group["params"]]
        self.seconds = 0.0

    def step(self, i: int, loss_of: Callable, factor: float) -> None:
        """Take one step, unless the loss or its gradient is not finite: then nothing is changed but the history."""
        begin = time.process_time()
        for group in self.optimiser.param_groups:
            group["lr"] = group["base"] * factor
        try:
            loss, row = loss_of(i)
            self.optimiser.zero_grad()
            loss.backward()
            for tensor in (loss, *(tensor.grad for tensor in self.tensors if tensor.grad is not None)):
                check_finite("the loss or its gradient", tensor, "Lower the rate, or clip the residual.")
        except NotFiniteError:
            if i == 0:
                raise  # nothing was trained yet: the input is at fault
            self.history.diverged_at = i
            return
        self.optimiser.step()
        self.seconds += time.process_time() - begin
        self.history.append("steps", {"loss": loss.item()} | dict(row) | {"seconds": self.seconds})

    def evaluate(self, taken: int, evaluate: Callable[[], Mapping[str, float]]) -> None:
        """Add a row of measures, unless it is there already, or training diverged and nothing can be measured."""
        if taken in self.history.evaluations.get("iteration", ()):
            return
        try:
            self.history.append("evaluations", {"iteration": taken} | dict(evaluate()))
        except NotFiniteError:
            if self.history.diverged_at is None:
                raise

    def save(self, path: Path | str, done: int) -> None:
        """Write the checkpoint beside its place and move it there, so that it is whole whenever it is there."""
        arrays = {f"tensor/{j}": tensor.detach().cpu().numpy() for j, tensor in enumerate(self.tensors)}
        for j, state in self.optimiser.state_dict()["state"].items():
            arrays |= {f"optimiser/{j}/{name}": value.cpu().numpy() for name, value in state.items()}
        for table in ("steps", "evaluations"):
            arrays |= {f"{table}/{name}": column for name, column in getattr(self.history, table).items()}
        about = {"label": self.label, "done": done, "seconds": self.seconds, "diverged_at": self.history.diverged_at}
        arrays |= {"generator": self.generator.get_state().numpy(), "about": np.array(json.dumps(about))}
        path = Path(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(beside, "wb") as file:
                np.savez(file, **arrays)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)

    def load(self, path: Path | str) -> int:
        """Take up a checkpoint, and return the number of steps done. Raises ``ValueError`` for another run's."""
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        about = json.loads(str(arrays["about"]))
        kept = [torch.from_numpy(arrays[f"tensor/{j}"]) for j in range(len(arrays)) if f"tensor/{j}" in arrays]
        kinds = [[(tensor.shape, tensor.dtype) for tensor in tensors] for tensors in (kept, self.tensors)]
        if about["label"] != self.label or kinds[0] != kinds[1]:
            raise ValueError(
                f"{path} is the checkpoint of another run, {about['label']}; expected {self.label}. Remove the file, "
                "or pass another name."
            )
        with torch.no_grad():
            for j, tensor in enumerate(self.tensors):
                tensor.copy_(kept[j])
        state = {j: {} for j in range(len(self.tensors))}
        for name, value in arrays.items():
            if name.startswith("optimiser/"):
                _, j, what = name.split("/")
                state[int(j)][what] = torch.from_numpy(value)
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.generator.set_state(torch.from_numpy(arrays["generator"]))
        for table in ("steps", "evaluations"):
            columns = {name.removeprefix(f"{table}/"): a for name, a in arrays.items() if name.startswith(f"{table}/")}
            setattr(self.history, table, columns)
        self.history.diverged_at, self.seconds = about["diverged_at"], about["seconds"]
        return about["done"]
