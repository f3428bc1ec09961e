"""The symbols and the functions are about the same thing: sympy's values and gradients against torch's."""

import pytest
import sympy
import torch
from inputs import assert_agree, generator, parameter

from companion import rtb, symbolic, trust_pcl
from companion.symbolic import T

STEPS, ACTIONS, PATHS = 3, 3, 4
SEEDS = range(3)
#: Differentiated and simplified expressions have up to a hundred terms.
SIZE = 100.0


def numbers(seed: int) -> dict:
    """Random inputs: logits, actions, references, rewards, values, log Z; and positive coefficients."""
    random = generator(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    values = normal(PATHS, STEPS + 1)
    values[:, -1] = 0.0
    return {
        "theta": normal(STEPS, ACTIONS),
        "actions": torch.randint(ACTIONS, (PATHS, STEPS), generator=random),
        "log_ref": -normal(PATHS, STEPS).abs(),
        "rewards": normal(PATHS, STEPS),
        "values": values,
        "log_z": normal(),
        "beta": 1.75,
        "kl_weight": 0.625,
        "entropy_weight": 0.25,
        "gamma": 0.875,
    }


THETA = sympy.Matrix(STEPS, ACTIONS, lambda s, a: sympy.Symbol(f"theta_{s}_{a}", real=True))


def policy(state: int, action: int) -> sympy.Expr:
    """log pi of an action, in the logits: a softmax."""
    return THETA[state, action] - sympy.log(sum(sympy.exp(THETA[state, a]) for a in range(ACTIONS)))


def along_path(residual: sympy.Expr, x: dict, path: int) -> sympy.Expr:
    """Put T = 3, the softmax policy and one path's numbers into a symbolic residual."""
    expression = residual.subs(T, STEPS).doit()
    steps = {}
    for t in range(STEPS):
        steps[symbolic.log_pi[t]] = policy(t, int(x["actions"][path, t]))
        steps[symbolic.log_ref[t]] = float(x["log_ref"][path, t])
        steps[symbolic.R[t]] = float(x["rewards"][path, t])
    steps |= {
        symbolic.log_r: float(x["rewards"][path].sum()),
        symbolic.beta: x["beta"],
        symbolic.lam: x["kl_weight"],
        symbolic.eta: x["entropy_weight"],
        symbolic.gamma: x["gamma"],
        symbolic.V[STEPS]: 0.0,
    }
    return expression.subs(steps)


def half_mean_square(residuals: list) -> sympy.Expr:
    """The loss of a list of symbolic residuals."""
    return sum(r**2 for r in residuals) / (2 * len(residuals))


def at(expression: sympy.Expr, unknowns: list, point: list) -> float:
    """The value of an expression at a point, in double precision."""
    return float(expression.subs(dict(zip(unknowns, point, strict=True)), simultaneous=True).evalf(17))


def assert_gradients_agree(loss: sympy.Expr, unknowns: list, ours: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    """Compare a symbolic loss, and its derivative in each unknown, with torch's and autograd's."""
    point = torch.cat([x.detach().flatten() for x in inputs]).tolist()
    assert_agree(ours, at(loss, unknowns, point), SIZE)
    found = torch.cat([g.flatten() for g in torch.autograd.grad(ours, inputs)])
    expected = [at(sympy.diff(loss, unknown), unknowns, point) for unknown in unknowns]
    assert_agree(found, expected, SIZE)


def log_pi_of(theta: torch.Tensor, x: dict) -> torch.Tensor:
    """The same softmax policy in torch, [batch, steps]."""
    return torch.log_softmax(theta, dim=1)[torch.arange(STEPS), x["actions"]]


@pytest.mark.claim("E3")
@pytest.mark.parametrize("seed", SEEDS)
def test_rtb_gradients_in_the_logits_and_in_log_z_are_those_of_the_symbolic_residual(seed):
    """Four paths of three steps, three actions, beta = 1.75."""
    x = numbers(seed)
    theta, log_z = x["theta"].requires_grad_(), x["log_z"].requires_grad_()
    residuals = [along_path(symbolic.rtb_residual(), x, path) for path in range(PATHS)]
    ours = rtb.loss(log_pi_of(theta, x), x["log_ref"], x["rewards"].sum(dim=1), log_z, beta=x["beta"])
    assert_gradients_agree(half_mean_square(residuals), [*THETA, symbolic.log_z], ours, [theta, log_z])


@pytest.mark.claim("E3")
@pytest.mark.parametrize("seed", SEEDS)
def test_trust_pcl_gradients_in_the_logits_and_in_the_value_are_those_of_the_symbolic_residual(seed):
    """Both weights and a discount; V(s_0) is one parameter that all paths share."""
    x = numbers(seed)
    theta, first = x["theta"].requires_grad_(), parameter(0.5)
    values = torch.cat([first.expand(PATHS, 1), x["values"][:, 1:]], dim=1)
    residuals = [along_path(symbolic.trust_pcl_residual(), x, path) for path in range(PATHS)]
    weights = {name: x[name] for name in ("kl_weight", "entropy_weight", "gamma")}
    ours = trust_pcl.loss(log_pi_of(theta, x), x["log_ref"], x["rewards"], values, **weights)
    assert_gradients_agree(half_mean_square(residuals), [*THETA, symbolic.V[0]], ours, [theta, first])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("group", [None, [3, -1, -1, 3]])
def test_vargrad_gradients_are_those_of_the_centred_symbolic_residual(seed, group):
    """log Z drops out where the residuals are centred, over the batch or within each group."""
    x, names = numbers(seed), group or [0] * PATHS
    theta = x["theta"].requires_grad_()
    residuals = [along_path(symbolic.rtb_residual(), x, path) for path in range(PATHS)]
    members = {name: [r for r, of in zip(residuals, names, strict=True) if of == name] for name in names}
    means = [sum(members[name]) / len(members[name]) for name in names]
    loss = half_mean_square([sympy.expand(r - mean) for r, mean in zip(residuals, means, strict=True)])
    assert not loss.has(symbolic.log_z)
    options = {"beta": x["beta"], "group": None if group is None else torch.tensor(group)}
    ours = rtb.vargrad_loss(log_pi_of(theta, x), x["log_ref"], x["rewards"].sum(dim=1), **options)
    assert_gradients_agree(loss, list(THETA), ours, [theta])


@pytest.mark.claim("E1")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_symbolic_rtb_residual_is_the_function(seed, steps):
    """The horizon is put in last, as a number; then the very tensors that the function is given."""
    random = generator(seed)
    log_pi, log_ref = torch.randn(2, PATHS, steps, generator=random, dtype=torch.float64)
    log_reward, log_z = torch.randn(2, PATHS, generator=random, dtype=torch.float64)
    given = {
        symbolic.log_pi: log_pi.T,
        symbolic.log_ref: log_ref.T,
        symbolic.log_r: log_reward,
        symbolic.log_z: log_z,
        symbolic.beta: 2.5,
        T: steps,
    }
    ours = rtb.residual(log_pi, log_ref, log_reward, log_z, beta=2.5)
    assert_agree(ours, symbolic.evaluate(symbolic.rtb_residual(), given), SIZE)


@pytest.mark.claim("E1", "P3")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("first", "length"), [(0, 4), (0, 1), (1, 2), (3, 1)])
def test_the_symbolic_trust_pcl_residual_is_the_function_on_every_sub_path(seed, first, length):
    """Both weights, a discount, and any part of four steps."""
    random = generator(seed)
    log_pi, log_ref, rewards = torch.randn(3, PATHS, 4, generator=random, dtype=torch.float64)
    values = torch.randn(PATHS, 5, generator=random, dtype=torch.float64)
    values[:, -1] = 0.0
    weights = {"kl_weight": 0.75, "entropy_weight": 1.5, "gamma": 0.875}
    given = {
        symbolic.log_pi: log_pi.T,
        symbolic.log_ref: log_ref.T,
        symbolic.R: rewards.T,
        symbolic.V: values.T,
        symbolic.lam: weights["kl_weight"],
        symbolic.eta: weights["entropy_weight"],
        symbolic.gamma: weights["gamma"],
        symbolic.start: first,
        symbolic.d: length,
    }
    expression = symbolic.trust_pcl_residual(symbolic.d, symbolic.start)
    ours = trust_pcl.residual(log_pi, log_ref, rewards, values, start=first, stop=first + length, **weights)
    assert_agree(ours, symbolic.evaluate(expression, given), SIZE)


@pytest.mark.claim("E5")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("first", "length"), [(0, 4), (0, 1), (1, 2), (3, 1)])
def test_the_symbolic_sub_trajectory_residual_is_the_function(seed, first, length):
    """Any part of four steps."""
    random = generator(seed)
    log_pi, log_ref = torch.randn(2, PATHS, 4, generator=random, dtype=torch.float64)
    log_flow = torch.randn(PATHS, 5, generator=random, dtype=torch.float64)
    given = {
        symbolic.log_pi: log_pi.T,
        symbolic.log_ref: log_ref.T,
        symbolic.log_F: log_flow.T,
        symbolic.start: first,
        symbolic.d: length,
    }
    ours = rtb.sub_trajectory_residual(log_pi, log_ref, log_flow, start=first, stop=first + length)
    assert_agree(ours, symbolic.evaluate(symbolic.sub_trajectory_residual(), given), SIZE)
