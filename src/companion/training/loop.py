"""One loop for every sampler and every objective: draw a batch under a behaviour, ask for a loss, let Adam take it."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    label: str = "",
    progress: bool = False,
) -> History:
    """Train a sampler in place, and return the history.

    Args:
        sampler: what is trained, such as :class:`companion.samplers.diffusion.DiffusionSampler`.
        objective: what it is trained towards, such as :class:`companion.objectives.RTB`.
        schedule: how long, in which batches, at which rates.
        generator: the source of every draw; its device is the sampler's.
        behaviour: what draws the paths, of the sampler's own type; None for the policy's own paths.
        evaluate: called at the start, every ``evaluate_every`` steps and at the end, for measures by name; what it
            draws comes from a generator of its own.
        checkpoint: a file from which an interrupted run goes on, and which is written, whole or not at all, every
            ``checkpoint_every`` steps and at the end. To go on, make sampler, objective and generator as they were at
            the start of the run, or as the checkpoint left them. It keeps buffers of modules, and, where a run draws
            from torch's global generators, as dropout does, their states; to seed them is up to you.
        evaluate_every, checkpoint_every: steps from one to the next.
        stop_after: a number of steps after which to stop, all else being as in the whole run, to be gone on with.
        label: what else defines the run, above all the reward: of a function a checkpoint knows only the name.
        progress: whether to show a progress bar.

    Raises ``ValueError`` for bad values, samplers, objectives, batches or measures; a loss that does not depend on the
    policy; a behaviour of another sampler; a checkpoint that is damaged, or of another run. Source: Venkatraman et al.
    (2024). Used in chapter ``twenty-five-modes-to-nine``.
    """
    if not isinstance(schedule, Schedule):
        raise ValueError(f"schedule is {schedule!r}; expected a Schedule. Pass companion.training.Schedule(...).")
    _check_methods("sampler", sampler, ("parameters", "draw"), "companion.samplers.DiffusionSampler")
    _check_methods("objective", objective, ("parameters", "loss"), "companion.objectives.RTB")
    trained = list(sampler.parameters())
    _check_trained("sampler", trained, at_least=1)
    learned = list(objective.parameters(trained[0]))
    _check_trained("objective", learned)

    def loss_of(i: int) -> tuple[Tensor, dict[str, float]]:
        now = objective.at(i) if isinstance(objective, Annealed) else objective
        batch = sampler.draw(schedule.batch, generator, behaviour, i)
        _check_batch(batch, schedule.batch)
        loss, row = now.loss(batch, learned), _measures(batch, getattr(objective, "beta", 1.0), learned)
        if not all(math.isfinite(value) for value in row.values()):
            _check_source(loss, batch)
        return loss, row

    settings = {"sampler": type(sampler), "objective": objective, "schedule": schedule, "behaviour": behaviour}
    settings |= {f"sampler's {name}": value for name, value in getattr(sampler, "constants", dict)().items()}
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
        label={"label": label} | {name: describe(value) for name, value in settings.items()},
        modules=list(_modules((sampler, objective), set())),
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
    label: str | Mapping[str, str] = "",
    modules: Sequence[torch.nn.Module] = (),
    progress: bool = False,
) -> History:
    """Run Adam on any loss: the loop under :func:`fine_tune`, for what is not fine-tuning, such as training a prior.

    Args:
        loss_of: the loss of an iteration, 0-d, and more for the history by name, ``"loss"`` and ``"seconds"`` apart.
        groups: tensors to be trained, with the rate of each group; the loss depends on some of each.
        iterations: number of steps.
        generator: the source of every draw in ``loss_of``; a checkpoint keeps its state.
        rate_at: factor on the rates at an iteration.
        evaluate, evaluate_every, checkpoint, checkpoint_every, stop_after, progress: as in :func:`fine_tune`.
        label: what the run is, as one text or as several by name; a checkpoint with another is refused.
        modules: networks whose buffers, such as the statistics of a batch norm, a checkpoint should keep.

    Raises ``ValueError`` as :func:`fine_tune`, for a loss that is no scalar, and measures without a name or under a
    taken one. Source: Adam is torch's. Used in chapter ``twenty-five-modes-to-nine``.
    """
    check_positive_integers(iterations=iterations, evaluate_every=evaluate_every, checkpoint_every=checkpoint_every)
    check_generator(generator)
    if stop_after is not None:
        check_positive_integers(stop_after=stop_after)
    if evaluate is not None and not callable(evaluate):
        raise ValueError(f"evaluate is {evaluate!r}; expected a function. Pass lambda: {{...}}.")
    stop = iterations if stop_after is None else min(iterations, stop_after)
    optimiser = torch.optim.Adam([{"params": list(p), "lr": rate, "base": rate} for p, rate in groups if p])
    settings = dict(label) if isinstance(label, Mapping) else {"label": label}
    for text in settings.values():
        if not isinstance(text, str):
            raise ValueError(f"label is {text!r}; expected text. Pass a str, such as the name of the reward.")
    settings |= {"iterations": str(iterations), "rates": str([group["base"] for group in optimiser.param_groups])}
    settings["evaluations"] = "none" if evaluate is None else f"every {evaluate_every} steps"
    run = Run(optimiser, generator, settings, modules)
    start = 0 if checkpoint is None else checkpoints.begin(checkpoint, run)
    if start == 0 and evaluate is not None:
        _evaluate(run, 0, evaluate)
    for i in tqdm(range(start, stop), initial=start, total=iterations, disable=not progress):
        if run.history.diverged_at is not None:
            break
        _step(run, i, loss_of, rate_at(i))
        diverged = run.history.diverged_at is not None
        taken = i if diverged else i + 1
        if evaluate is not None and (diverged or taken == iterations or taken % evaluate_every == 0):
            _evaluate(run, taken, evaluate)
        if checkpoint is not None and (diverged or taken == stop or taken % checkpoint_every == 0):
            checkpoints.save(checkpoint, run, taken)
    return run.history


def _modules(value: object, seen: set[int]) -> Iterator[torch.nn.Module]:
    """The modules in a value: itself, or among the attributes of what has parameters, as samplers do."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.nn.Module):
        yield value
    elif hasattr(value, "parameters") or isinstance(value, list | tuple):
        for part in value if isinstance(value, list | tuple) else getattr(value, "__dict__", {}).values():
            yield from _modules(part, seen)


def _check_methods(name: str, value: object, methods: Sequence[str], example: str) -> None:
    missing = [method for method in methods if not callable(getattr(value, method, None))]
    if missing or isinstance(value, type):
        lack, wanted = " and no ".join(missing) or "fields, being a class", f"an object with {' and '.join(methods)}"
        raise ValueError(f"{name} is {value!r}, which has no {lack}; expected {wanted}. Make one: {example}(...).")


def _check_trained(name: str, tensors: Sequence[Tensor], *, at_least: int = 0) -> None:
    others = sum(not isinstance(tensor, Tensor) for tensor in tensors)
    frozen = sum(isinstance(tensor, Tensor) and not tensor.requires_grad for tensor in tensors)
    if len(tensors) < at_least or frozen or others:
        given = f"{len(tensors)} tensors to train, {frozen} of them frozen, {others} of them no tensors"
        expected = f"{at_least} or more, none frozen. Call requires_grad_(True) on them, or leave them out."
        raise ValueError(f"The {name} has {given}; expected {expected}")


def _check_batch(batch: Batch, n: int) -> None:
    if not isinstance(batch, Batch) or not batch.log_pi.requires_grad:
        what = "a log_pi without a gradient" if isinstance(batch, Batch) else f"a {type(batch).__name__}"
        raise ValueError(f"The sampler drew {what}; expected a Batch that can train it. Detach nothing on the way.")
    if len(batch.log_pi) != n:
        raise ValueError(f"The sampler drew {len(batch.log_pi)} paths; expected {n}, as asked for. Draw as many.")


def _check_source(loss: Tensor, batch: Batch) -> None:
    """Where the loss is not finite, say which of the numbers in it was not. Raises :class:`NotFiniteError`."""
    if isinstance(loss, Tensor) and not bool(loss.isfinite().all()):
        check_finite("log_reward", batch.log_reward, "Mend the reward.")
        check_finite("log_ref", batch.log_ref, "Mend the reference.")
        check_finite("log_pi", batch.log_pi, "Lower the rate.")


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
        loss, row = _checked(loss_of(i), i)
        run.optimiser.zero_grad()
        loss.backward()
        if i == 0:
            _check_depends(run.optimiser)
        check_finite("the loss", loss, "Lower the rate, or clip the residual.")
        for gradient in (tensor.grad for tensor in run.tensors if tensor.grad is not None):
            check_finite("the gradient of the loss", gradient, "Lower the rate, or clip the residual.")
    except NotFiniteError as error:
        if i == 0:
            raise  # nothing was trained yet: the input is at fault
        run.history.diverged_at, run.history.reason = i, f"At iteration {i}: {error}"
        return
    run.optimiser.step()
    run.seconds += time.process_time() - begin
    run.history.append("steps", {"loss": loss.item()} | row | {"seconds": run.seconds})


def _checked(answer: tuple[Tensor, Mapping[str, float]], i: int) -> tuple[Tensor, dict[str, float]]:
    """Refuse what is not a loss to descend, and a row for the history."""
    if not isinstance(answer, tuple) or len(answer) != 2:
        given = type(answer).__name__
        raise ValueError(f"loss_of({i}) is a {given}; expected a loss and a mapping. Return (loss, {{}}).")
    loss, row = answer
    if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
        shape = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else "no tensor"
        given = f"a {type(loss).__name__}, {shape}, requires_grad={getattr(loss, 'requires_grad', False)}"
        mend = "Take the mean over the batch, and detach nothing that is trained."
        raise ValueError(f"The loss of iteration {i} is {given}; expected a 0-d tensor with a gradient. {mend}")
    return loss, _row(f"the row of iteration {i}", row, {"loss", "seconds"})


def _check_depends(optimiser: torch.optim.Optimizer) -> None:
    """Refuse a group of tensors none of which the first loss depends on."""
    for j, group in enumerate(optimiser.param_groups):
        if all(tensor.grad is None for tensor in group["params"]):
            given = f"does not depend on any of the {len(group['params'])} tensors of group {j}"
            groups = "Group 0 is the policy in fine_tune, group 1 what the objective learns"
            mend = f"{groups}: return what is computed from these tensors, not detached, and from no copy of them."
            raise ValueError(f"The loss of iteration 0 {given}; expected it to. {mend}")


def _row(name: str, row: Mapping[str, float], taken: set[str]) -> dict[str, float]:
    """Refuse what is no mapping of names to numbers, and names that the loop has taken."""
    if not isinstance(row, Mapping) or taken & set(row):
        given = f"{type(row).__name__} {sorted(row)}" if isinstance(row, Mapping) else f"a {type(row).__name__}"
        expected = f"a mapping of names, other than {sorted(taken)}, to numbers"
        raise ValueError(f"{name} is {given}; expected {expected}. Rename, or return a dict.")
    try:
        return {str(column): float(value) for column, value in row.items()}
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is {dict(row)!r}; expected numbers alone. Pass plain floats.") from error


def _evaluate(run: Run, taken: int, evaluate: Callable[[], Mapping[str, float]]) -> None:
    """Add a row of measures, unless it is there already, or training diverged and nothing can be measured."""
    if taken in run.history.evaluations.get("iteration", ()):
        return
    try:
        row = _row(f"what evaluate returned after {taken} steps", evaluate(), {"iteration"})
    except NotFiniteError:
        if run.history.diverged_at is None:
            raise
        return
    run.history.append("evaluations", {"iteration": taken} | row)
