"""One loop for every sampler and every objective: draw a batch under a behaviour, ask for a loss, let Adam take it."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from companion.objectives import Annealed, Objective
from companion.plain import describe
from companion.samplers.batch import Batch, Sampler
from companion.training import checkpoint as checkpoints
from companion.training.checkpoint import Run
from companion.training.history import History
from companion.training.schedule import Schedule
from companion.validation import NotFiniteError, check_finite, check_generator, check_number, check_positive_integers

#: The loss of an iteration, and what the history should keep of it.
LossOf = Callable[[int], tuple[Tensor, Mapping[str, float]]]


def fine_tune(
    sampler: Sampler,
    objective: Objective,
    *,
    schedule: Schedule,
    generator: torch.Generator,
    behaviour: object = None,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    evaluate_every: int = 500,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 500,
    stop_after: int | None = None,
    progress: bool = False,
) -> History:
    """Train a sampler in place, and return the history.

    Args:
        sampler: what is trained, such as :class:`companion.samplers.diffusion.DiffusionSampler`.
        objective: what it is trained towards, such as :class:`companion.objectives.RTB`.
        schedule: how long, in which batches, at which rates.
        generator: the source of every draw; its device is the sampler's.
        behaviour: what draws the paths, of the sampler's own type; None for the policy's own paths.
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
        ValueError: for bad values or samplers, a behaviour of another sampler, and a checkpoint of another run.

    Source: Venkatraman et al. (2024). Used in chapter ``twenty-five-modes-to-nine``.
    """
    trained = list(sampler.parameters())
    _check_trained(trained, schedule)
    learned = list(objective.parameters(trained[0]))

    def loss_of(i: int) -> tuple[Tensor, dict[str, float]]:
        now = objective.at(i) if isinstance(objective, Annealed) else objective
        batch = sampler.draw(schedule.batch, generator, behaviour, i)
        if not isinstance(batch, Batch) or not batch.log_pi.requires_grad:
            what = "a log_pi without a gradient" if isinstance(batch, Batch) else f"a {type(batch).__name__}"
            raise ValueError(f"The sampler drew {what}; expected a Batch that can train it. Do not detach log_pi.")
        loss = now.loss(batch, learned)
        return loss, _measures(batch, getattr(objective, "beta", 1.0), learned)

    # A module that shares weights with the policy must not have them trained twice.
    own = [tensor for tensor in learned if all(tensor is not other for other in trained)]
    history = optimise(
        loss_of,
        [(trained, schedule.rate), (own, schedule.learned_rate)],
        schedule.iterations,
        generator,
        rate_at=schedule.rate_at,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        stop_after=stop_after,
        label="; ".join(describe(value) for value in (objective, schedule, behaviour)),
        progress=progress,
    )
    history.learned = [tensor.detach().clone() for tensor in learned]
    return history


def optimise(
    loss_of: LossOf,
    groups: Iterable[tuple[Sequence[Tensor], float]],
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

    Source: Adam is torch's. Used in chapter ``twenty-five-modes-to-nine``.
    """
    check_positive_integers(iterations=iterations, evaluate_every=evaluate_every, checkpoint_every=checkpoint_every)
    check_generator(generator)
    if stop_after is not None:
        check_positive_integers(stop_after=stop_after)
    stop = iterations if stop_after is None else min(iterations, stop_after)
    optimiser = torch.optim.Adam([{"params": list(p), "lr": rate, "base": rate} for p, rate in groups if p])
    run = Run(optimiser, generator, label)
    start = checkpoints.load(checkpoint, run) if checkpoint is not None and Path(checkpoint).exists() else 0
    if start == 0 and evaluate is not None:
        _evaluate(run, 0, evaluate)
    for i in tqdm(range(start, stop), initial=start, total=iterations, disable=not progress):
        if run.history.diverged_at is not None:
            break
        _step(run, i, loss_of, rate_at(i))
        diverged = run.history.diverged_at is not None
        taken = i if diverged else i + 1
        last = diverged or taken == stop
        if evaluate is not None and (last or taken % evaluate_every == 0):
            _evaluate(run, taken, evaluate)
        if checkpoint is not None and (last or taken % checkpoint_every == 0):
            checkpoints.save(checkpoint, run, taken)
    return run.history


def _check_trained(trained: Sequence[Tensor], schedule: Schedule) -> None:
    if not isinstance(schedule, Schedule):
        raise ValueError(f"schedule is {schedule!r}; expected a Schedule. Pass companion.training.Schedule(...).")
    frozen = sum(not tensor.requires_grad for tensor in trained)
    if not trained or frozen:
        raise ValueError(
            f"The sampler has {len(trained)} tensors to train, {frozen} of them frozen; expected one or more, none "
            "frozen. Call requires_grad_(True) on the policy, or leave out of parameters() what is not trained."
        )


@torch.no_grad()
def _measures(batch: Batch, beta: float, learned: Sequence[Tensor]) -> dict[str, float]:
    """What the history keeps of a batch; the ELBO is at beta = 1 where an objective has no inverse temperature."""
    row = {"log_reward": batch.log_reward.mean().item(), "elbo": batch.log_weights(beta=beta).mean().item()}
    return row | {"scalar": learned[0].item()} if len(learned) == 1 and learned[0].ndim == 0 else row


def _step(run: Run, i: int, loss_of: LossOf, factor: float) -> None:
    """Take one step, unless the loss or its gradient is not finite: then nothing is changed but the history."""
    check_number(f"the factor on the rates at iteration {i}", factor, at_least=0)
    begin = time.process_time()
    for group in run.optimiser.param_groups:
        group["lr"] = group["base"] * factor
    try:
        loss, row = loss_of(i)
        run.optimiser.zero_grad()
        loss.backward()
        for tensor in (loss, *(tensor.grad for tensor in run.tensors if tensor.grad is not None)):
            check_finite("the loss or its gradient", tensor, "Lower the rate, or clip the residual.")
    except NotFiniteError:
        if i == 0:
            raise  # nothing was trained yet: the input is at fault
        run.history.diverged_at = i
        return
    run.optimiser.step()
    run.seconds += time.process_time() - begin
    run.history.append("steps", {"loss": loss.item()} | dict(row) | {"seconds": run.seconds})


def _evaluate(run: Run, taken: int, evaluate: Callable[[], Mapping[str, float]]) -> None:
    """Add a row of measures, unless it is there already, or training diverged and nothing can be measured."""
    if taken in run.history.evaluations.get("iteration", ()):
        return
    try:
        run.history.append("evaluations", {"iteration": taken} | dict(evaluate()))
    except NotFiniteError:
        if run.history.diverged_at is None:
            raise
