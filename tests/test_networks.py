"""The network and its hand-written backward pass, against plain torch operations and torch's own gradients."""

import copy
import gc
import math
import weakref

import numpy as np
import pytest
import torch
from inputs import generator
from torch import Tensor

from companion.samplers import diffusion, drifts, networks, tape

#: Steps, paths, rows of a block, width, dimension. A block holds the rows' whole number of steps, and one at least.
SIZES = [
    (5, 3, 7, 5, 2),  # blocks of 2, 2, 1 steps
    (7, 1, 3, 5, 1),  # 3, 3, 1
    (7, 1, 3, 5, 3),
    (4, 5, 3, 4, 2),  # more paths than rows: step by step
    (6, 2, 7, 8, 3),  # 3, 3: even
    (1, 4, 7, 5, 1),  # a path of one step
    (9, 4, 5000, 1, 2),  # one block, and a single hidden unit
]
EXACT = {"rtol": 1e-12, "atol": 1e-12}
PROCESS = diffusion.Process(steps=5)


def made(steps=5, width=5, dim=2, seed=0, dtype=torch.float64) -> networks.DriftNetwork:
    """A network of its own for these sizes."""
    return networks.DriftNetwork(diffusion.Process(steps=steps, dim=dim), generator(seed), width=width).to(dtype)


def drawn(network, n=3, steps=5, seed=1) -> tuple[Tensor, Tensor, Tensor]:
    """Random states, the times of the steps, and a random direction in which to take the gradient."""
    dim, dtype = network.state.in_features, network.phases.dtype
    states, direction = torch.randn(2, n, steps, dim, generator=generator(seed), dtype=torch.float64).to(dtype)
    return states, torch.arange(steps, dtype=dtype) / steps, direction


def plain(network, states: Tensor, times: Tensor) -> Tensor:
    """The same network, spelled out from its weights."""

    def linear(layer, x):
        return x @ layer.weight.T + layer.bias

    def gelu(x):
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    angles = times[..., None] * network.frequencies + network.phases
    of_time = gelu(linear(network.time[0], torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)))
    hidden = linear(network.state, states) + linear(network.time[2], of_time)
    for layer in (network.joint[1], network.joint[3], network.last):
        hidden = linear(layer, gelu(hidden))
    return hidden


def gradients(network, moves: Tensor, direction: Tensor) -> list[Tensor]:
    """The gradient of every parameter that is to be trained."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad((moves * direction).sum(), trained))


def assert_right(network, *given, moves: Tensor | None = None, tolerance=EXACT) -> None:
    """Assert that a pass, or the moves of one made before, has the drifts and the gradients of the plain network."""
    states, times, direction = given
    moves = network(states, times) if moves is None else moves
    expected = plain(network, states, times)
    torch.testing.assert_close(moves, expected, **tolerance)
    ours, theirs = gradients(network, moves, direction), gradients(network, expected, direction)
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, **tolerance)


@pytest.mark.parametrize(("steps", "n", "rows", "width", "dim"), SIZES)
def test_drifts_and_gradients_are_those_of_the_plain_network(monkeypatch, steps, n, rows, width, dim):
    """Whatever the size of a block, and wherever the last one ends."""
    monkeypatch.setattr(tape, "BLOCK_ROWS", rows)
    network = made(steps, width, dim)
    assert_right(network, *drawn(network, n, steps))


@pytest.mark.parametrize(("steps", "n", "rows", "width", "dim"), SIZES)
def test_a_pass_without_gradients_gives_the_same_drifts(monkeypatch, steps, n, rows, width, dim):
    """It works in the memory of one block."""
    monkeypatch.setattr(tape, "BLOCK_ROWS", rows)
    network = made(steps, width, dim)
    states, times, _ = drawn(network, n, steps)
    with torch.no_grad():
        moves = network(states, times)
        torch.testing.assert_close(moves, plain(network, states, times), **EXACT)
    assert not moves.requires_grad


def test_single_precision_is_near_double(monkeypatch):
    """Angles up to 100 are exact to 4e-6 in float32; sums of a few hundred terms keep five digits."""
    monkeypatch.setattr(tape, "BLOCK_ROWS", 7)
    network = made(width=16, dtype=torch.float32)
    states, times, direction = drawn(network)
    exact = copy.deepcopy(network).double()
    moves, expected = network(states, times), plain(exact, states.double(), times.double())
    assert moves.dtype == torch.float32
    torch.testing.assert_close(moves.double(), expected, rtol=0, atol=1e-5)
    theirs = gradients(exact, expected, direction.double())
    for found, wanted in zip(gradients(network, moves, direction), theirs, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-5 * float(1 + wanted.abs().max()))


@pytest.mark.parametrize("shape", [(), (4,), (4, 3), (2, 4, 3)])
def test_states_and_times_of_any_other_shape_go_by_the_plain_way(shape):
    """One state, a list, one time for each state, and a time that all share."""
    network = made()
    states = torch.randn(*shape, 2, generator=generator(1), dtype=torch.float64)
    for times in (torch.rand(shape, generator=generator(2), dtype=torch.float64), torch.tensor(0.3).double()):
        torch.testing.assert_close(network(states, times), plain(network, states, times), **EXACT)


def test_states_that_need_gradients_get_them():
    network = made()
    states, times, direction = drawn(network)
    found, wanted = states.clone().requires_grad_(), states.clone().requires_grad_()
    (network(found, times) * direction).sum().backward()
    ours = [found.grad, *(parameter.grad for parameter in network.parameters())]
    network.zero_grad()
    (plain(network, wanted, times) * direction).sum().backward()
    theirs = [wanted.grad, *(parameter.grad for parameter in network.parameters())]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_gradients_reach_every_parameter(monkeypatch):
    """The phases too."""
    monkeypatch.setattr(tape, "BLOCK_ROWS", 7)
    network = made()
    states, times, direction = drawn(network)
    (network(states, times) * direction).sum().backward()
    for name, parameter in network.named_parameters():
        assert bool((parameter.grad != 0).all()), name


class Once(torch.autograd.Function):
    """Takes the gradient with the loss: ``gradcheck`` asks for it several times, and a pass gives it once."""

    @staticmethod
    def forward(ctx, network, given, *parameters):
        states, times, direction = given
        with torch.enable_grad():
            leaves = [parameter.detach().requires_grad_() for parameter in parameters]
            named = {name: leaf for (name, _), leaf in zip(network.named_parameters(), leaves, strict=True)}
            loss = (torch.func.functional_call(network, named, (states, times)) * direction).sum()
            ctx.save_for_backward(*torch.autograd.grad(loss, leaves))
        return loss.detach()

    @staticmethod
    def backward(ctx, grad):
        return None, None, *(grad * saved for saved in ctx.saved_tensors)


def test_gradients_are_those_of_finite_differences(monkeypatch):
    """Of every parameter, by torch's gradcheck."""
    monkeypatch.setattr(tape, "BLOCK_ROWS", 5)
    network = made(steps=3, width=3)
    given = drawn(network, n=2, steps=3)
    assert torch.autograd.gradcheck(
        lambda *parameters: Once.apply(network, given, *parameters), [*network.parameters()]
    )


def test_second_derivatives_are_refused():
    """They would silently leave out what the hand-written pass does not record."""
    network = made()
    states, times, direction = drawn(network)
    loss = (network(states, times) - direction).square().sum()
    first = torch.autograd.grad(loss, network.last.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first[0].sum().backward()


@pytest.mark.parametrize("rows", [3, 7, 5000])
def test_a_rollout_and_a_batched_pass_agree(monkeypatch, rows):
    """The tape filled step by step has the drifts and gradients of the one filled at once, and of the plain network."""
    monkeypatch.setattr(tape, "BLOCK_ROWS", rows)
    network = made()
    states, moves = diffusion.traced_rollout(PROCESS, network, 3, generator(2), dtype=torch.float64)
    times, direction = PROCESS.times(states), drawn(network)[2]
    at_once = network(states[:, :-1], times)
    torch.testing.assert_close(moves, at_once, **EXACT)
    ours, theirs = gradients(network, moves, direction), gradients(network, at_once, direction)
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, **EXACT)
    assert_right(network, states[:, :-1], times, direction)


def test_the_gradient_can_be_taken_once_only():
    network = made()
    states, times, _ = drawn(network)
    loss = network(states, times).sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="taken already; expected once"):
        loss.backward()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_passes_before_either_gradient_share_no_memory(order):
    """After a third whose memory is free to be used again."""
    network = made()
    network(*drawn(network, seed=9)[:2]).sum().backward()
    network.zero_grad()
    given = [drawn(network, seed=seed) for seed in (1, 2)]
    moves = [network(states, times) for states, times, _ in given]
    for which in order:
        assert_right(network, *given[which], moves=moves[which])


def test_a_pass_that_is_over_is_freed_at_once():
    """Its memory is not held by a circle of references until the garbage collector comes by."""
    network = made()
    states, times, _ = drawn(network)
    gc.disable()
    try:
        tape = network.record(times, len(states))
        tape.run(states.transpose(0, 1))
        moves, held = tape.moves(), weakref.ref(tape)
        del tape
        assert held() is not None  # for the gradient
        del moves
        assert held() is None
    finally:
        gc.enable()


def test_a_later_pass_leaves_earlier_results_alone():
    """With and without gradients, by rollout and at once: all of them use the same memory in turn."""
    network = made()
    (states, times, _), (others, *_) = drawn(network, seed=1), drawn(network, seed=2)
    with torch.no_grad():
        results = [network(states, times), network(others, times)]
        results += [diffusion.traced_rollout(PROCESS, network, 3, generator(3), dtype=torch.float64)[1]]
    moves = network(states, times)
    moves.sum().backward()
    results.append(moves.detach())
    before = [result.clone() for result in results]
    network(others, times).sum().backward()
    with torch.no_grad():
        network(others + 1, times)
    for result, kept in zip(results, before, strict=True):
        assert torch.equal(result, kept)


def test_a_pass_without_gradients_leaves_a_pending_gradient_alone():
    network = made()
    given = drawn(network)
    moves = network(*given[:2])
    with torch.no_grad():
        network(*drawn(network, seed=2)[:2])
    assert_right(network, *given, moves=moves)


def test_the_number_of_paths_may_change_from_call_to_call():
    """And the number of steps, and the dtype."""
    network = made()
    for n, steps in ((4, 5), (1, 5), (7, 5), (4, 5), (4, 3), (4, 5)):
        assert_right(network, *drawn(network, n, steps))
        with torch.no_grad():
            states, times, _ = drawn(network, n, steps, seed=2)
            torch.testing.assert_close(network(states, times), plain(network, states, times), **EXACT)
    network.float()
    assert_right(network, *drawn(network, 4), tolerance={"rtol": 1e-4, "atol": 1e-4})


def test_a_gradient_is_that_of_the_weights_at_the_time():
    """After a step of training the next pass sees the new weights."""
    network = made()
    given = drawn(network)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(3):
        assert_right(network, *given)
        optimiser.zero_grad()
        (network(*given[:2]) * given[2]).sum().backward()
        optimiser.step()


@pytest.mark.parametrize("trained", ["phases", "state.bias", "joint.3.weight", "last.bias"])
def test_one_parameter_may_be_trained_alone(trained):
    network = made().requires_grad_(False)
    network.get_parameter(trained).requires_grad_()
    assert_right(network, *drawn(network))


def test_a_frozen_network_makes_no_graph():
    """At once and by rollout."""
    network = made().requires_grad_(False)
    states, times, _ = drawn(network)
    moves = network(states, times)
    torch.testing.assert_close(moves, plain(network, states, times), **EXACT)
    of_paths = diffusion.traced_rollout(PROCESS, network, 3, generator(2), dtype=torch.float64)
    assert not any(tensor.requires_grad for tensor in (moves, *of_paths))


def test_a_copy_stands_alone():
    """It gives the same drifts, shares no memory, and training it leaves the original as it was."""
    network = made()
    given = drawn(network)
    assert_right(network, *given)  # so that there is memory to be used again
    before = network(*given[:2])
    other = copy.deepcopy(network)
    other(*drawn(network, seed=2)[:2]).sum().backward()
    torch.optim.SGD(other.parameters(), lr=0.1).step()
    assert not torch.equal(other(*given[:2]), before)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert_right(network, *given, moves=before)
    assert_right(other, *given)


def test_weights_can_be_stored_and_loaded(tmp_path):
    """As a state_dict of tensors: no pickled code."""
    network, other = made(), made(seed=1)
    states, times, _ = drawn(network)
    assert not torch.equal(network(states, times), other(states, times))
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(network(states, times), other(states, times))


def stored(path, network, **changes):
    """The weights of a network in an npz file, some changed, or left out where None."""
    arrays = {name: value.numpy() for name, value in network.state_dict().items()} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_weights_can_be_loaded_from_arrays(tmp_path):
    """Whatever the width, and without a draw from global state."""
    network = made(width=7, dtype=torch.float32)
    states, times, _ = drawn(network)
    loaded = networks.DriftNetwork.load(PROCESS, stored(tmp_path / "weights.npz", network))
    assert torch.equal(loaded(states, times), network(states, times))
    assert all(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_keep_the_digits_of_their_file(tmp_path, dtype, default):
    """Whatever torch's default is."""
    network = made(width=7, dtype=dtype)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        loaded = networks.DriftNetwork.load(PROCESS, stored(tmp_path / "weights.npz", network))
    finally:
        torch.set_default_dtype(before)
    kept = network.state_dict()
    assert all(value.dtype == dtype and torch.equal(value, kept[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    "changes",
    [
        {"phases": None},
        {"phases": np.zeros(4, dtype=np.float32)},
        {"state.weight": np.zeros((5, 3), dtype=np.float32)},
        {"last.bias": None},
        {"more": np.zeros(1)},
        {"phases": np.zeros((5, 1), dtype=np.float32)},
        {"phases": np.zeros((), dtype=np.float32)},
        {"last.bias": np.zeros(2)},
        {"last.bias": np.zeros(2, dtype=np.int64)},
        {"last.bias": np.zeros(2, dtype=">f4")},
        {"last.bias": np.array(["a", "b"])},
        {"phases": np.array([{}])},
        {"last.bias": np.array([0.0, math.nan], dtype=np.float32)},
        {"last.bias": np.array([0.0, -math.inf], dtype=np.float32)},
    ],
    ids=["no width", "another width", "another dimension", "too few", "too many", "a column", "one number", "float64"]
    + ["integers", "bytes turned", "text", "a pickle", "NaN", "infinite"],
)
def test_other_weights_are_not_loaded(tmp_path, changes):
    """The file is named; what numpy advises about pickles, which would run what is in it, is not said."""
    path = stored(tmp_path / "weights.npz", made(dtype=torch.float32), **changes)
    words = "holds other weights.*expected those of a DriftNetwork|cannot be read|infinite or NaN; expected finite"
    with pytest.raises(ValueError, match=words) as refusal:
        networks.DriftNetwork.load(PROCESS, path)
    assert str(path) in str(refusal.value) and "allow_pickle" not in str(refusal.value)
    named = ("cannot be read", "frequencies", *changes)  # of another width they all are others, frequencies first
    assert any(words in str(refusal.value) for words in named)


def test_weights_of_another_process_are_not_loaded(tmp_path):
    path = stored(tmp_path / "weights.npz", made(dtype=torch.float32))
    with pytest.raises(ValueError, match=r"last.weight .*, not .*; expected those of a DriftNetwork"):
        networks.DriftNetwork.load(diffusion.Process(dim=PROCESS.dim + 1), path)


def test_initial_weights_are_bounded_as_torch_has_them():
    """Uniform up to one over the root of the number of inputs, weights and biases alike; phases are normal."""
    network = made(width=200, dtype=torch.float32)
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            for parameter in (module.weight, module.bias):
                assert parameter.abs().max() <= bound
            assert module.weight.abs().max() > 0.9 * bound
    assert abs(network.phases.std() - 1) < 0.2
    assert network.frequencies[0] == 0.1 and network.frequencies[-1] == 100


def test_making_a_network_leaves_global_state_as_it_was():
    """Not even numbers that are thrown away are drawn from it."""
    before = torch.get_rng_state()
    made()
    assert torch.equal(torch.get_rng_state(), before)


def test_memory_of_inference_mode_is_not_used_for_training():
    """Torch lets nothing write to it outside that mode."""
    network = made()
    given = drawn(network)
    with torch.inference_mode():
        network(*given[:2])
    assert_right(network, *given)


@pytest.mark.parametrize("changed", ["weights", "states"])
def test_what_changes_between_a_pass_and_its_gradient_is_refused(changed):
    """Torch's own operations refuse it; the alternative is a gradient that is silently wrong."""
    network = made()
    states, times, _ = drawn(network)
    loss = network(states, times).sum()
    with torch.no_grad():
        (network.joint[1].weight if changed == "weights" else states).mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_paths_give_no_drifts():
    network = made()
    states, times, _ = drawn(network, n=0)
    assert network(states, times).shape == (0, 5, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda process: networks.DriftNetwork(process, None), "generator is None"),
        (lambda process: networks.DriftNetwork(process, generator(0), width=0), "width is 0"),
        (lambda process: networks.DriftNetwork(process, generator(0), width=2.5), "width is 2.5"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match="expected") as refusal:
        call(diffusion.Process())
    assert words in str(refusal.value)


# The drifts of a rollout, and what becomes of them: companion.samplers.diffusion's traced_rollout and step_log_prob.


def linear(states, times):
    """A plain function as a drift."""
    return times[..., None] - states


@pytest.mark.parametrize("extra", [0.0, 0.5])
@pytest.mark.parametrize("drift", [linear, made()], ids=["function", "network"])
def test_a_traced_rollout_draws_the_paths_of_a_rollout(drift, extra):
    """And its drifts are the drift at its states; log-probabilities from either are the same."""
    options = {"extra_std": extra, "dtype": torch.float64}
    expected = diffusion.rollout(PROCESS, drift, 3, generator(1), **options)
    states, moves = diffusion.traced_rollout(PROCESS, drift, 3, generator(1), **options)
    assert torch.equal(states, expected)
    assert moves.shape == (3, 5, 2) and not states.requires_grad
    torch.testing.assert_close(moves, drift(states[:, :-1], PROCESS.times(states)), **EXACT)
    for std in (0.0, extra):
        found = diffusion.step_log_prob(PROCESS, states, moves, extra_std=std)
        torch.testing.assert_close(found, diffusion.log_prob(PROCESS, drift, states, extra_std=std), **EXACT)


def test_a_rollout_of_a_network_needs_no_pass_but_that_which_is_recorded():
    """The drifts are kept as the paths are drawn: the network is never called as a function."""
    network = made()
    network.forward = None
    _, moves = diffusion.traced_rollout(PROCESS, network, 3, generator(1), dtype=torch.float64)
    assert moves.requires_grad


def test_gradients_flow_through_the_drift_at_given_states_only():
    """A drift of one weight: of each step's log-density by hand, as if the states were data."""
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    states, moves = diffusion.traced_rollout(PROCESS, lambda s, t: weight * s, 3, generator(1), dtype=torch.float64)
    (found,) = torch.autograd.grad(diffusion.step_log_prob(PROCESS, states, moves).sum(), weight)
    before, increments = states[:, :-1], states.diff(dim=1)
    gap = increments - 0.2 * weight.detach() * before
    torch.testing.assert_close(found, (gap * before / PROCESS.variance).sum(), **EXACT)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s, m: diffusion.step_log_prob(PROCESS, s[:, 1:], m), "states is (3, 5, 2)"),
        (lambda s, m: diffusion.step_log_prob(PROCESS, None, m), "states is NoneType"),
        (lambda s, m: diffusion.step_log_prob(PROCESS, s, m[:2]), "The drift is (2, 5, 2)"),
        (lambda s, m: diffusion.step_log_prob(PROCESS, s, m[..., :1]), "The drift is (3, 5, 1)"),
        (lambda s, m: diffusion.step_log_prob(PROCESS, s, None), "The drift is NoneType"),
        (lambda s, m: diffusion.step_log_prob(PROCESS, s, m, extra_std=-1.0), "extra_std is -1.0"),
        (lambda s, m: diffusion.traced_rollout(PROCESS, linear, 0, generator(0)), "n is 0"),
        (lambda s, m: diffusion.traced_rollout(PROCESS, linear, 3, None), "generator is None"),
        (lambda s, m: diffusion.traced_rollout(PROCESS, linear, 3, generator(0), extra_std=-1), "extra_std is -1"),
        (lambda s, m: diffusion.traced_rollout(PROCESS, lambda s, t: s[:1], 3, generator(0)), "The drift is (1, 2)"),
        (lambda s, m: diffusion.traced_rollout(PROCESS, lambda s, t: None, 3, generator(0)), "The drift is NoneType"),
        (lambda s, m: diffusion.traced_rollout(PROCESS, lambda s, t: s / 0, 3, generator(0)), "infinite or NaN"),
        (
            lambda s, m: diffusion.log_prob(PROCESS, lambda s, t: s / 0, s),
            "The drift holds 30 value(s) that are infinite",
        ),
    ],
)
def test_bad_paths_and_drifts_are_refused(call, words):
    """Wrong shapes, drifts that are not finite, numbers out of range."""
    with pytest.raises(ValueError, match="expected") as refusal:
        call(torch.zeros(3, 6, 2), torch.zeros(3, 5, 2))
    assert words in str(refusal.value)


def test_a_network_that_overflows_is_refused():
    """The drift is checked once, for all steps together."""
    network = made()
    torch.nn.init.constant_(network.last.bias, math.inf)
    with pytest.raises(ValueError, match="The drift holds .* infinite or NaN"):
        diffusion.traced_rollout(PROCESS, network, 3, generator(0), dtype=torch.float64)


# Guidance, which trains nothing.


@pytest.mark.claim("X2")
def test_guidance_adds_the_gradient_of_the_reward():
    """At step k, strength sigma^2 k / (k + 1) times it; here log r = -x^2, so that the gradient is -2 x."""
    drift = drifts.GuidedDrift(PROCESS, linear, lambda x: -x.square().sum(dim=1), strength=0.5)
    states, times, _ = drawn(made())
    expected = linear(states, times)
    for k in range(5):
        expected[:, k] += 0.5 * 5.0 * k / (k + 1) * -2 * states[:, k]
        torch.testing.assert_close(drift(states[:, k], times[k]), expected[:, k], **EXACT)
    torch.testing.assert_close(drift(states, times), expected, **EXACT)


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
def test_a_reward_without_a_finite_gradient_does_not_guide(reward):
    drift = drifts.GuidedDrift(PROCESS, linear, lambda x: reward * x.sum(dim=1))
    states, times, _ = drawn(made())
    torch.testing.assert_close(drift(states, times), linear(states, times), **EXACT)
