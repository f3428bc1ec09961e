"""Closed forms of what published losses converge to, against training that is written without them.

Losses come from :mod:`companion.family` and :mod:`companion.rtb`, or stand here as their formula; expectations are sums
over all paths, or over all groups of paths, of a small tree; a loss is descended, or its expected gradient solved for a
zero, from several random starts.
"""

import math
from types import SimpleNamespace

import pytest
import torch
from inputs import generator, tensor
from oracles import edges_from, policy_value, soft_value
from scipy import optimize, special

from companion import family, fixed_points, mdp, rtb

#: Six paths of one, two and three steps.
TREE = [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (2, 6), (2, 7), (5, 8), (5, 9)]
ALPHA = 0.5
BETA = 1 / ALPHA
SEEDS = range(3)
#: How often each path is seen off-policy, of eight.
COUNTS = torch.tensor([1, 1, 2, 1, 1, 2])
#: A trained law against a closed form; an expected gradient at one, which is of order one elsewhere.
TRAINED, ZERO = 1e-6, 1e-12


class World:
    """A tabular problem, all its paths, and a law of them to draw from."""

    def __init__(self, seed: int, edges=TREE, problem: mdp.Problem | None = None):
        draws = generator(seed)
        self.problem = problem or mdp.randomise(mdp.from_edges(edges), draws)
        self.paths = mdp.enumerate_paths(self.problem)
        self.steps = (self.paths.edges >= 0).sum(dim=1)
        self.per_step = self.paths.per_step(self.problem.log_ref)
        self.log_ref = self.per_step.sum(dim=1)
        self.reward = self.paths.per_step(self.problem.rewards).sum(dim=1)
        self.behaviour = self.paths.log_prob(mdp.random_policy(self.problem, draws))
        self.draws = draws

    def referred_to(self, log_law: torch.Tensor) -> "World":
        """The same with the policy of this law for the reference."""
        return World(0, problem=self.problem.with_reference(mdp.log_softmax(self.problem, self.logits_of(log_law))))

    def starts(self, n: int) -> list[torch.Tensor]:
        return list(2 * torch.randn(n, len(self.problem.source), generator=self.draws, dtype=torch.float64))

    def log_pi(self, logits: torch.Tensor) -> torch.Tensor:
        """Each step of all paths under the policy with these logits."""
        return self.paths.per_step(mdp.log_softmax(self.problem, logits))

    def law(self, logits: torch.Tensor) -> torch.Tensor:
        return self.log_pi(torch.as_tensor(logits)).sum(dim=1).exp().detach()

    def chances(self, law: torch.Tensor) -> torch.Tensor:
        """How likely a path of this law passes through each edge."""
        through = torch.zeros(len(self.problem.source), dtype=torch.float64)
        for path, chance in zip(self.paths.edges.tolist(), law.tolist(), strict=True):
            through[[edge for edge in path if edge >= 0]] += chance
        return through

    def logits_of(self, log_law: torch.Tensor) -> torch.Tensor:
        """Logits of the policy whose law this is."""
        return self.chances(log_law.exp()).log()

    def target(self, beta: float = BETA) -> torch.Tensor:
        """p*, from dynamic programming over the tree."""
        return self.paths.log_prob(mdp.solve(self.problem, kl_weight=1 / beta).log_policy)

    def log_z(self, beta: float = BETA) -> float:
        return float(mdp.solve(self.problem, kl_weight=1 / beta).values[0]) * beta

    def square(self, logits: torch.Tensor, c, behaviour: torch.Tensor) -> torch.Tensor:
        """Half the mean squared residual over a law, with c for log Z."""
        log_z = torch.as_tensor(c, dtype=torch.float64)
        residual = rtb.residual(self.log_pi(logits), self.per_step, self.reward, log_z, beta=BETA)
        return 0.5 * mdp.expectation(residual.square(), behaviour)


def batch_of(world: World, log_pi: torch.Tensor, index: torch.Tensor) -> SimpleNamespace:
    """The arguments of a loss for groups of paths, ``[groups, size]``: ``x`` is what it is differentiated in."""
    rows, size = index.reshape(-1), index.shape[1]
    return SimpleNamespace(
        x=log_pi[rows],
        old=log_pi[rows].detach(),
        ref=world.per_step[rows],
        reward=world.reward[rows],
        rows=rows,
        pairs=torch.arange(len(rows)).reshape(-1, 2) if size == 2 else None,
        only={"steps": world.steps[rows]},
        marks={"steps": world.steps[rows], "group": torch.arange(len(index)).repeat_interleave(size)},
    )


def expected_gradient(world: World, loss, logits, *, size: int = 1, law=None, groups=None) -> torch.Tensor:
    """The mean gradient in the logits over all groups of ``size`` paths drawn from a law, the policy's by default.

    Or over ``groups``, with their log-probabilities.
    """
    logits = torch.as_tensor(logits).clone().requires_grad_()
    log_pi = world.log_pi(logits)
    law = log_pi.sum(dim=1).detach() if law is None else law
    index, log_chance = groups or mdp.enumerate_batches(law, size)
    batch = batch_of(world, log_pi.detach(), index)
    batch.x = batch.x.requires_grad_()
    (rows,) = torch.autograd.grad(loss(batch), batch.x)
    weights = (len(index) * log_chance.exp()).repeat_interleave(size)
    total = torch.zeros_like(log_pi).index_add(0, batch.rows, weights[:, None] * rows)
    (gradient,) = torch.autograd.grad(log_pi, logits, total)
    return gradient


def gap(world: World, log_law: torch.Tensor, loss, **options) -> float:
    """The largest entry of the expected gradient at a law."""
    return float(expected_gradient(world, loss, world.logits_of(log_law), **options).abs().max())


def solved(world: World, loss, start: torch.Tensor, *, rate: float = 1.0, steps: int = 150, **options) -> torch.Tensor:
    """The law at which steps of the natural gradient end: each entry over the chance of its edge."""
    logits = start.clone()
    for _ in range(steps):
        step = expected_gradient(world, loss, logits, **options) / world.chances(world.law(logits))
        logits -= rate * step.clamp(-1, 1)
    return world.law(logits)


def balanced(world: World, loss, start: torch.Tensor, **options) -> torch.Tensor:
    """The law at a zero of the expected gradient off-policy, where none is at infinity: Levenberg and Marquardt."""
    found = optimize.root(
        lambda x: expected_gradient(world, loss, x, **options).numpy(), start.numpy(), method="lm", tol=1e-13
    )
    return world.law(found.x)


def descended(value, *starts: torch.Tensor) -> list[torch.Tensor]:
    """Where L-BFGS ends on a function of some tensors, from these."""
    free = [start.clone().requires_grad_() for start in starts]
    optimiser = torch.optim.LBFGS(
        free,
        max_iter=2000,
        tolerance_grad=1e-12,
        tolerance_change=1e-18,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        result = value(*free)
        result.backward()
        return result

    optimiser.step(closure)
    return [x.detach() for x in free]


def apart(law: torch.Tensor, log_law: torch.Tensor) -> float:
    """The largest difference of two laws, the second in logarithms, which sums to one."""
    assert abs(float(log_law.logsumexp(dim=0))) < 1e-12
    return float((law - log_law.exp()).abs().max())


def seen(world: World, size: int = 1) -> torch.Tensor:
    """Every group of paths off-policy, as often as it occurs: a plain mean over them is the expectation."""
    rows = torch.arange(len(COUNTS)).repeat_interleave(COUNTS)
    return torch.cartesian_prod(*[rows] * size).reshape(-1, size)


OFF = (COUNTS.double() / COUNTS.sum()).log()


def trained_off_policy(world: World, loss, start: torch.Tensor, size: int = 1) -> torch.Tensor:
    """The law that descends a loss of the family on what is :func:`seen`."""
    index = seen(world, size)
    (logits,) = descended(lambda x: loss(batch_of(world, world.log_pi(x), index)), start)
    return world.law(logits)


# F1: what stands for log Z.


def a_star_po(c: float):
    return lambda b: family.a_star_po_loss(b.x, b.ref, b.reward, tensor(c * ALPHA), kl_weight=ALPHA, **b.only)


@pytest.mark.claim("F1")
@pytest.mark.parametrize("seed", SEEDS)
def test_on_policy_any_constant_leads_to_the_target(seed):
    world = World(seed)
    for c in (world.log_z() - 3, 0.0, world.log_z() + 5):
        assert gap(world, world.target(), a_star_po(c)) < ZERO
        assert apart(solved(world, a_star_po(c), world.starts(1)[0], steps=80), world.target()) < TRAINED
    assert apart(world.target().exp(), fixed_points.target(world.log_ref, world.reward, beta=BETA)) < ZERO


@pytest.mark.claim("F1")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("above", [-5.0, -0.3, 0.0, "bound"])
def test_off_policy_there_is_one_minimum_up_to_the_bound(seed, above):
    world = World(seed)
    least = float(world.target().exp().min())
    c = world.log_z() + (math.log(1 + (math.e - 1) * least) if above == "bound" else above)
    ours = fixed_points.stand_in(world.log_ref, world.reward, c, beta=BETA, log_behaviour=world.behaviour)
    assert gap(world, ours, a_star_po(c), law=world.behaviour) < ZERO
    assert (gap(world, world.target(), a_star_po(c), law=world.behaviour) < ZERO) == (above == 0.0)
    for start in world.starts(3):
        (logits,) = descended(lambda x: world.square(x, c, world.behaviour), start)
        assert apart(world.law(logits), ours) < TRAINED


@pytest.mark.claim("F1")
@pytest.mark.parametrize("seed", SEEDS)
def test_far_above_log_z_several_minima_coexist_each_with_one_path_beyond_the_branch(seed):
    world = World(seed)
    c, b = world.log_z() + 4, world.behaviour.exp()
    minima: list[torch.Tensor] = []
    for start in world.starts(8):
        (logits,) = descended(lambda x: world.square(x, c, world.behaviour), start)
        law = world.law(logits)
        residual = c + law.log() - world.log_ref - BETA * world.reward
        rate = -float(b @ residual)
        assert float((b * residual + rate * law).abs().max()) < TRAINED
        assert int((rate * law / b < -1).sum()) == 1
        if all(float((law - other).abs().max()) > 1e-3 for other in minima):
            minima.append(law)
    assert len(minima) > 1
    with pytest.raises(ValueError, match="too little for a solution on W_0"):
        fixed_points.stand_in(world.log_ref, world.reward, c, beta=BETA, log_behaviour=world.behaviour)


@pytest.mark.claim("F1")
@pytest.mark.parametrize("seed", SEEDS)
def test_the_main_branch_ends_where_it_is_said_to(seed):
    """Just below the last c that has a solution it is stationary; just above, there is none."""
    world = World(seed)
    tilt = BETA * world.reward + world.log_ref - world.behaviour
    # at the end of the branch lambda w u = -1 where it is largest; then log Z - c is minus log E_p* of e^t
    x = (tilt - tilt.max() - 1).exp().numpy()
    t = torch.from_numpy(-special.lambertw(-x).real).nan_to_num(1.0)
    last = world.log_z() + float((world.target() + t).logsumexp(dim=0))
    ours = fixed_points.stand_in(world.log_ref, world.reward, last - 1e-4, beta=BETA, log_behaviour=world.behaviour)
    assert gap(world, ours, a_star_po(last - 1e-4), law=world.behaviour) < 1e-10
    with pytest.raises(ValueError, match="expected more"):
        fixed_points.stand_in(world.log_ref, world.reward, last + 1e-4, beta=BETA, log_behaviour=world.behaviour)


@pytest.mark.claim("F1")
def test_the_target_stays_stationary_on_its_own_paths_and_a_minimum_up_to_one_above():
    """Also where rewards are constant: uniform reference, five actions, log Z + 1.1."""
    world, star = World(0), World(0).target()
    logits = world.logits_of(star)
    for above, minimum in ((-2.0, True), (0.9, True), (1.1, False)):
        c = world.log_z() + above
        assert gap(world, star, a_star_po(c), law=star) < ZERO
        curvature = torch.autograd.functional.hessian(lambda x, c=c: world.square(x, c, star), logits)
        assert (float(torch.linalg.eigvalsh(curvature)[0]) > -1e-9) == minimum
    flat = World(0, problem=mdp.from_edges([(0, j) for j in range(1, 6)]))
    (ended,) = descended(lambda x: flat.square(x, 1.1, flat.log_ref), flat.starts(1)[0])
    assert flat.law(ended).sort().values.tolist() == pytest.approx([0.0927, 0.0927, 0.0927, 0.0927, 0.6293], abs=1e-4)
    with pytest.raises(ValueError, match="expected more"):
        fixed_points.stand_in(flat.log_ref, flat.reward, 1.1, beta=BETA, log_behaviour=flat.log_ref)


@pytest.mark.claim("F1")
@pytest.mark.parametrize("seed", range(10))
def test_on_which_side_of_log_z_the_usual_constants_are(seed):
    """Below: the mean reward of the reference, and a warmer log-mean-exp. Above: an improved policy's mean reward."""
    world = World(seed)
    mean = BETA * float(mdp.expectation(world.reward, world.log_ref))
    warmer = BETA * float(world.log_z(1.0))
    assert mean < warmer < world.log_z() < BETA * float(mdp.expectation(world.reward, world.target(20.0)))


@pytest.mark.claim("F1")
@pytest.mark.parametrize("seed", SEEDS)
def test_qrpo_on_finitely_many_paths_is_a_stand_in(seed):
    world = World(seed)
    chance = world.log_ref.exp()
    quantile = tensor([float(chance[world.reward <= r].sum()) for r in world.reward]).clamp(max=1.0)
    for transform, reward, log_z in (
        ("log", quantile.log(), math.log(ALPHA / (1 + ALPHA))),
        ("identity", quantile, math.log(ALPHA) + BETA),
    ):
        ours = fixed_points.stand_in(world.log_ref, reward, log_z, beta=BETA, log_behaviour=OFF)
        start = world.starts(1)[0]

        def loss(b, transform=transform):
            return family.qrpo_loss(b.x, b.ref, quantile[b.rows], kl_weight=ALPHA, transform=transform, **b.only)

        assert apart(trained_off_policy(world, loss, start), ours) < TRAINED
        assert apart(fixed_points.target(world.log_ref, reward, beta=BETA).exp(), ours) > 1e-3


@pytest.mark.claim("F1")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_log_mean_exp_that_contains_the_path_is_a_constant_for_each_path(seed):
    """Off-policy, Kimi's other partition, in groups of two, from the policy that drew them."""
    world = World(seed).referred_to(OFF)

    def loss(b):
        return family.kimi_loss(b.x, b.ref, b.reward, kl_weight=ALPHA, partition="log_mean_exp", **b.marks)

    pair = torch.logaddexp(BETA * world.reward[:, None], BETA * world.reward[None]) - math.log(2)
    given = pair @ OFF.exp()
    ours = fixed_points.stand_in(world.log_ref, world.reward, given, beta=BETA, log_behaviour=OFF)
    for start in world.starts(2):
        assert apart(trained_off_policy(world, loss, start, 2), ours) < TRAINED


def test_lambert_w_against_scipy():
    for x in torch.linspace(-30, 30, 61, dtype=torch.float64).split(20):
        ours = fixed_points.log_lambert_w(x).exp().numpy()
        assert ours == pytest.approx(special.lambertw(x.exp().numpy()).real, rel=1e-13)
    x = -1 - torch.logspace(-6, 2, 40, dtype=torch.float64)
    ours = -fixed_points.log_lambert_w(x, negative=True).exp().numpy()
    assert ours == pytest.approx(special.lambertw(-x.exp().numpy()).real, rel=1e-9)  # exp rounds near the end
    ends = fixed_points.log_lambert_w(tensor([-1.0, -1e5]), negative=True)
    assert ends.tolist() == [0.0, -1e5]
    w = fixed_points.log_lambert_w(tensor([1e6]))
    assert float(w + w.exp()) == pytest.approx(1e6, rel=1e-15)


# F2: lengths.


def literal(world: World, residual, weight):
    """The mean of ``weight residual^2 / 2`` over a batch, both functions of its sums and lengths."""

    def loss(b):
        lengths = world.steps[b.rows].double()
        return 0.5 * (weight(lengths) * residual((b.x - b.ref).sum(dim=1), lengths, BETA * b.reward).square()).mean()

    return loss


@pytest.mark.claim("F2")
@pytest.mark.parametrize("seed", SEEDS)
def test_a_length_normalised_residual_with_a_learned_log_z(seed):
    """Off-policy by descent in both; on-policy it is zero on every path, as p*'s is not."""
    world = World(seed)
    ours = fixed_points.length_normalised(world.log_ref, world.reward, world.steps, beta=BETA)
    value = (BETA * world.reward - (ours - world.log_ref) / world.steps).mean()

    def off(logits, log_z):
        log_ratio = (world.log_pi(logits) - world.per_step).sum(dim=1)
        return mdp.expectation((log_z + log_ratio / world.steps - BETA * world.reward).square(), world.behaviour)

    for start in world.starts(2):
        logits, log_z = descended(off, start, torch.zeros((), dtype=torch.float64))
        assert apart(world.law(logits), ours) < TRAINED
        assert float(log_z) == pytest.approx(float(value), abs=TRAINED)
    loss = literal(world, lambda ratio, n, tilt: value + ratio / n - tilt, torch.ones_like)
    assert gap(world, ours, loss) < ZERO
    assert gap(world, ours, loss, law=world.behaviour) < ZERO
    assert gap(world, world.target(), loss) > 1e-3


@pytest.mark.claim("F2")
@pytest.mark.parametrize(("seed", "c"), [(0, -0.5), (1, 0.0), (2, 0.5)])
def test_with_a_fixed_constant_lengths_leave_a_power_of_themselves(seed, c):
    """On-policy: the ratio over the length; OpenKimi's square over the length. Learned, the second gives p*."""
    world = World(seed)
    given = (world.log_ref, world.reward)
    ratio_over = literal(world, lambda ratio, n, tilt: c + ratio / n - tilt, torch.ones_like)
    square_over = literal(world, lambda ratio, n, tilt: c + ratio - tilt, torch.reciprocal)
    ours = [
        fixed_points.length_normalised(*given, world.steps, beta=BETA, log_z=c),
        fixed_points.residual_over_length(*given, c, world.steps, beta=BETA),
    ]
    start = world.starts(1)[0]
    for loss, law in zip((ratio_over, square_over), ours, strict=True):
        assert gap(world, law, loss) < ZERO
        assert gap(world, world.target(), loss) > 1e-3
        assert apart(solved(world, loss, start, steps=400), law) < TRAINED
    learned = literal(world, lambda ratio, n, tilt: world.log_z() + ratio - tilt, torch.reciprocal)
    assert gap(world, world.target(), learned) < ZERO


@pytest.mark.claim("F2")
@pytest.mark.parametrize("seed", SEEDS)
def test_openkimi_off_policy_is_a_stand_in_with_the_length_in_its_weight(seed):
    """From the policy that drew the groups, the others' mean for log Z."""
    world = World(seed).referred_to(OFF)
    mean = BETA * float(world.reward @ OFF.exp())

    def loss(b):
        return family.pmd_loss(b.x, b.ref, b.reward, kl_weight=ALPHA, **b.marks)

    common = {"beta": BETA, "log_behaviour": OFF}
    ours = fixed_points.stand_in(world.log_ref, world.reward, mean, **common, steps=world.steps)
    for start in world.starts(2):
        assert apart(trained_off_policy(world, loss, start, 2), ours) < TRAINED
    assert apart(fixed_points.stand_in(world.log_ref, world.reward, mean, **common).exp(), ours) > 1e-3


@pytest.mark.claim("F2")
def test_flowrl_is_length_normalised_with_the_mean_advantage_of_each_path():
    """Groups of three of the old policy; the raw weight of the ratio makes it a mean over the policy's own paths."""
    world = World(0)
    index = seen(world, 3)
    rewards = world.reward[index]
    standard = (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + 1e-6)
    advantage = tensor([float(standard[index == path].mean()) for path in range(6)])
    ours = fixed_points.length_normalised(world.log_ref, advantage, world.steps, beta=1.5)
    value = float((1.5 * advantage - (ours - world.log_ref) / world.steps).mean())
    logits = world.logits_of(ours).requires_grad_()
    log_z = tensor(value).requires_grad_()
    b = batch_of(world, world.log_pi(logits), index)
    old = world.paths.per_step(mdp.log_softmax(world.problem, world.logits_of(OFF)))[b.rows]
    loss = family.flowrl_loss(b.x, b.ref, old, b.reward, log_z, scale=1.5, **b.marks)
    slopes = torch.autograd.grad(loss, [logits, log_z])
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-11
    assert apart(fixed_points.length_normalised(world.log_ref, world.reward, world.steps, beta=1.5).exp(), ours) > 1e-3


# F3, F4: the KL per step, in the loss.


def on_policy(name: str, *, kl_weight: float = ALPHA):
    """Losses with the KL per step in them, sums over the steps up to a factor, on the policy's own paths."""
    grpo = {"scale": "none", "normalisation": "dr_grpo", "longest": 3, "kl_weight": kl_weight}
    known = {
        "dro": lambda b: family.dro_per_token_loss(b.x, b.ref, b.reward, kl_weight=kl_weight, **b.only),
        "k3_ratio": lambda b: family.grpo_loss(b.x, b.old, b.reward, log_ref=b.ref, kl="k3_ratio", **grpo, **b.marks),
        "k3": lambda b: family.grpo_loss(b.x, b.old, b.reward, log_ref=b.ref, kl="k3", **grpo, **b.marks),
        "rloo": lambda b: family.rloo_loss(b.x, b.old, b.ref, b.reward, kl_weight=kl_weight, **b.marks),
    }
    return known[name]


def scaled(world: World, factor: float) -> mdp.Problem:
    return world.problem.with_rewards(factor * world.problem.rewards)


def attracts(world: World, log_law: torch.Tensor, loss, **options) -> bool:
    """Whether the flow of the gradient contracts about a law in every direction that changes the policy."""
    at, h = world.logits_of(log_law), 1e-5
    moves = h * torch.eye(len(at), dtype=torch.float64)
    slope = [
        (expected_gradient(world, loss, at + e, **options) - expected_gradient(world, loss, at - e, **options))
        / (2 * h)
        for e in moves
    ]
    rates = torch.linalg.eigvals(torch.stack(slope)).real
    free = len(at) - len(torch.unique(world.problem.source))
    return int((rates > 1e-6).sum()) == free and bool((rates > -1e-7).all())


@pytest.mark.claim("F3")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("loss", "size", "factor", "rate"), [("dro", 1, 1.0, 1.0), ("k3_ratio", 2, 0.5, 2.0)])
def test_a_kl_per_step_in_the_loss_misses_that_of_later_steps(seed, loss, size, factor, rate):
    world = World(seed)
    ours = fixed_points.per_step_kl(scaled(world, factor), kl_weight=ALPHA, estimator="k2")
    assert gap(world, ours, on_policy(loss), size=size) < ZERO
    assert gap(world, world.target(factor * BETA), on_policy(loss), size=size) > 1e-4
    assert attracts(world, ours, on_policy(loss), size=size)
    assert apart(solved(world, on_policy(loss), world.starts(1)[0], size=size, rate=rate), ours) < TRAINED


@pytest.mark.claim("F3")
@pytest.mark.parametrize("seed", SEEDS)
def test_the_kl_in_the_reward_and_its_sum_over_later_steps_give_the_target_back(seed):
    """And the square of the whole log-ratio; k1 as a loss pulls nowhere."""
    world = World(seed)

    def later(b):
        to_come = (b.old - b.ref).flip(1).cumsum(dim=1).flip(1)
        return -((b.reward[:, None] - ALPHA * to_come) * b.x).sum(dim=1).mean()

    def whole(b):
        return (ALPHA / 2 * (b.x - b.ref).sum(dim=1).square() - b.reward * b.x.sum(dim=1)).mean()

    def k1(weight):
        return lambda b: family.prime_rl_loss(b.x, b.old, b.reward, kl_weight=weight, penalty="log_ratio", **b.only)

    start = world.starts(1)[0]
    for loss, size in ((later, 1), (whole, 1), (on_policy("rloo"), 2)):
        assert gap(world, world.target(), loss, size=size) < ZERO
        assert apart(solved(world, loss, start, size=size), world.target()) < TRAINED
    with_k1, without = (expected_gradient(world, k1(weight), start) for weight in (3.0, 0.0))
    assert float((with_k1 - without).abs().max()) < ZERO


@pytest.mark.claim("F3")
@pytest.mark.parametrize("seed", SEEDS)
def test_it_agrees_with_the_target_where_plain_and_soft_values_differ_by_a_constant(seed):
    """Certain returns agree: those of the last choice, and of an earlier one where all that follows earns the same."""
    world, agreements = World(seed), []
    equal = world.problem.rewards.clone()
    equal[8] = equal[7]
    for problem in (world.problem, world.problem.with_rewards(equal)):
        log_law = fixed_points.per_step_kl(problem, kl_weight=ALPHA, estimator="k2")
        policy = mdp.log_softmax(problem, world.logits_of(log_law))
        star = mdp.solve(problem, kl_weight=ALPHA).log_policy
        for state in problem.source.unique().tolist():
            out = edges_from(problem, state)
            edges = [edge for edge, _ in out]
            apart_by = tensor([policy_value(problem, policy, s, 0.0) - soft_value(problem, s, ALPHA) for _, s in out])
            agrees = bool((policy[edges] - star[edges]).abs().max() < 1e-9)
            assert agrees == bool(apart_by.max() - apart_by.min() < 1e-9)
            agreements.append(agrees)
    assert agreements == [False, False, True, True, False, True, True, True]


@pytest.mark.claim("F3", "F4")
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_where_paths_meet_again_the_recursion_holds_and_a_stand_in_is_no_policy(estimator):
    world = World(0, problem=mdp.randomise(mdp.small_graph(), generator(1), reward_scale=0.4))

    def loss(b):
        pull = 1 - (b.ref - b.x.detach()).exp() if estimator == "k3" else b.old - b.ref
        return ((ALPHA * pull - b.reward[:, None]) * b.x).sum(dim=1).mean()

    assert gap(world, fixed_points.per_step_kl(world.problem, kl_weight=ALPHA, estimator=estimator), loss) < ZERO
    c = world.log_z() - 3
    away = fixed_points.stand_in(world.log_ref, world.reward, c, beta=BETA, log_behaviour=world.behaviour)
    assert apart(world.law(world.logits_of(away)), away) > 1e-4
    assert gap(world, away, a_star_po(c), law=world.behaviour) > 1e-5
    assert gap(world, world.target(), a_star_po(world.log_z()), law=world.behaviour) < ZERO


def by_state(world: World, log_law: torch.Tensor, here) -> torch.Tensor:
    """The law whose policy at each state is ``here(log_ref, Q, log b)``, Q the plain mean reward under a law b."""
    policy, drawn = torch.empty_like(world.problem.log_ref), log_law.exp()
    for state in world.problem.source.unique().tolist():
        edges = [edge for edge, _ in edges_from(world.problem, state)]
        through = torch.stack([(world.paths.edges == edge).any(dim=1) * drawn for edge in edges])
        chance = through.sum(dim=1)
        policy[edges] = here(
            world.problem.log_ref[edges], through @ world.reward / chance, (chance / chance.sum()).log()
        )
    return world.paths.log_prob(policy)


@pytest.mark.claim("F3")
@pytest.mark.parametrize("seed", SEEDS)
def test_off_policy_each_state_has_a_point_of_its_own(seed):
    """The DRO of verl on paths of a fixed policy: a stand-in. prime-rl, whose reference drew them: a tilt, and -W_0."""
    world = World(seed)

    def dro(b):
        return family.dro_per_token_loss(b.x, b.ref, b.reward + 3, kl_weight=ALPHA, **b.only)

    ours = by_state(
        world,
        world.behaviour,
        lambda ref, q, b: fixed_points.stand_in(ref, q + 3, 0.0, beta=BETA, log_behaviour=b),
    )
    assert gap(world, ours, dro, law=world.behaviour) < ZERO
    assert apart(balanced(world, dro, world.starts(1)[0], law=world.behaviour), ours) < TRAINED

    def prime(penalty, kl_weight):
        return lambda b: family.prime_rl_loss(b.x, b.ref, b.reward, kl_weight=kl_weight, penalty=penalty, **b.only)

    def product_log(ref, q, _):
        def log_law(kappa):
            return ref - torch.from_numpy(special.lambertw((kappa - q).numpy() / 6).real)

        kappa = optimize.brentq(lambda k: float(log_law(k).logsumexp(dim=0)), float(q.max()) - 6 / math.e + 1e-9, 100.0)
        return log_law(kappa)

    tilted = by_state(world, world.log_ref, lambda ref, q, _: fixed_points.target(ref, q, beta=BETA))
    assert gap(world, tilted, prime("weighted", ALPHA), law=world.log_ref) < ZERO
    assert gap(world, by_state(world, world.log_ref, product_log), prime("square", 3.0), law=world.log_ref) < 1e-10


@pytest.mark.claim("F3")
@pytest.mark.parametrize("seed", SEEDS)
def test_averaged_over_each_paths_length_the_mean_reward_moves_the_point(seed):
    """TRL's ``loss_type="grpo"``: log u is ((r - v) / |y| + kappa) over 1 / |y|, both in the mean after each choice."""
    world, options = World(seed), {"scale": "none", "normalisation": "grpo", "kl": "k3_ratio", "kl_weight": ALPHA}

    def loss(b):
        return family.grpo_loss(b.x, b.old, b.reward, log_ref=b.ref, **options, **b.marks)

    ended = solved(world, loss, world.starts(1)[0], size=2, rate=2.0, steps=200)
    policy = mdp.log_softmax(world.problem, world.logits_of(ended.log()))
    v, share = float(ended @ world.reward), 1 / world.steps.double()

    def spread(centre: float) -> float:
        """By how much kappa differs between the choices of a state, at the most."""
        worst = 0.0
        for state in world.problem.source.unique().tolist():
            edges = [edge for edge, _ in edges_from(world.problem, state)]
            law = torch.stack([(world.paths.edges == edge).any(dim=1) * ended for edge in edges])
            law = law / law.sum(dim=1, keepdim=True)
            log_u = (policy - world.problem.log_ref)[edges]
            kappa = ALPHA * log_u * (law @ share) - law @ (0.5 * (world.reward - centre) * share)
            worst = max(worst, float(kappa.max() - kappa.min()))
        return worst

    assert spread(v) < TRAINED < 1e-3 < spread(v + 1)
    assert apart(ended, fixed_points.per_step_kl(scaled(world, 0.5), kl_weight=ALPHA, estimator="k2")) > 1e-4


@pytest.mark.claim("F3")
def test_as_the_weight_falls_it_takes_the_best_return_and_splits_ties_as_the_reference():
    problem = mdp.from_edges([(0, 1), (0, 2), (0, 3)]).with_rewards(tensor([1.0, 1.0, 0.9]))
    problem = problem.with_reference(tensor([0.2, 0.3, 0.5]).log())
    for estimator, slack in (("k2", 1e-12), ("k3", 1e-3)):
        law = fixed_points.per_step_kl(problem, kl_weight=1e-4, estimator=estimator).exp()
        assert law.tolist() == pytest.approx([0.4, 0.6, 0.0], abs=slack)


@pytest.mark.claim("F4")
@pytest.mark.parametrize("seed", SEEDS)
def test_k3_in_the_loss_tilts_by_a_pole(seed):
    """Groups of two, whose mean contains the path: half of Q. The pole is above every Q, by alpha at the most."""
    world, loss = World(seed), on_policy("k3")
    halved = scaled(world, fixed_points.inclusive_mean(1.0, size=2))
    ours = fixed_points.per_step_kl(halved, kl_weight=ALPHA, estimator="k3")
    assert gap(world, ours, loss, size=2) < ZERO
    assert gap(world, fixed_points.per_step_kl(halved, kl_weight=ALPHA, estimator="k2"), loss, size=2) > 1e-4
    assert attracts(world, ours, loss, size=2)
    assert apart(solved(world, loss, world.starts(1)[0], size=2, rate=0.5, steps=400), ours) < TRAINED
    policy = mdp.log_softmax(halved, world.logits_of(ours))
    for state in halved.source.unique().tolist():
        out = edges_from(halved, state)
        q = tensor([float(halved.rewards[edge]) + policy_value(halved, policy, s, 0.0) for edge, s in out])
        poles = q + ALPHA * (halved.log_ref - policy)[[edge for edge, _ in out]].exp()
        assert float(poles.max() - poles.min()) < 1e-9
        assert float(q.max()) < float(poles[0]) < float(q.max()) + ALPHA + 1e-9


# F5: division by the standard deviation.

#: The decision of a success of probability .3, in two ways, or one of two failures.
REFERENCE, SUCCESS = tensor([0.1, 0.2, 0.25, 0.45]), 0.3
ARMS = mdp.from_edges([(0, 1), (0, 2), (0, 3), (0, 4)]).with_rewards(tensor([1.0, 1.0, 0.0, 0.0]))
ARMS = ARMS.with_reference(REFERENCE.log())


def with_success(p: float) -> torch.Tensor:
    """The law with this chance of success, otherwise as the reference."""
    return (REFERENCE * tensor([p / SUCCESS] * 2 + [(1 - p) / (1 - SUCCESS)] * 2)).log()


def standardised(kl_weight: float, *, pole: bool = False):
    """Rewards less their mean over the deviation under the policy itself, and a KL (or k3) of the sampled steps."""

    def loss(b):
        p = (b.old.sum(dim=1).exp() * b.reward).sum()  # over all paths, once each
        advantage = ((b.reward - p) / (p * (1 - p)).sqrt())[:, None]
        pull = 1 - (b.ref - b.x.detach()).exp() if pole else b.old - b.ref
        return ((kl_weight * pull - advantage) * b.x).sum(dim=1).mean()

    return loss


@pytest.mark.claim("F5")
@pytest.mark.parametrize("kl_weight", [0.5, 1.0, 1.09, 1.5, 4.0])
def test_the_population_has_two_interior_points_above_the_critical_weight_and_none_below(kl_weight):
    """Against the sign of the arcsine objective's slope on a fine grid, and expected gradients of the four arms."""
    world = World(0, problem=ARMS)
    ours = fixed_points.standardised_success(SUCCESS, kl_weight=kl_weight, estimator="reverse")
    interior = sorted(ours["stable"][:-1] + ours["unstable"])
    assert ours["stable"][-1] == 1.0
    assert len(interior) == (2 if kl_weight > fixed_points.critical_kl_weight(SUCCESS) else 0)
    x = torch.linspace(-5, 14, 4001, dtype=torch.float64).requires_grad_()
    p = x.sigmoid()
    kl = p * (p / SUCCESS).log() + (1 - p) * ((1 - p) / (1 - SUCCESS)).log()
    (slope,) = torch.autograd.grad((2 * p.sqrt().asin() - kl_weight * kl).sum(), x)
    falls, rises = ((slope[:-1] > 0) & (slope[1:] < 0)), ((slope[:-1] < 0) & (slope[1:] > 0))
    for found, roots in ((falls, ours["stable"][:-1]), (rises, ours["unstable"])):
        assert p.detach()[:-1][found].tolist() == pytest.approx(roots, rel=5e-3)
    loss = standardised(kl_weight)
    for root in interior:
        assert gap(world, with_success(root), loss) < 1e-10
        assert attracts(world, with_success(root), loss) == (root in ours["stable"])
    for start in (0.01, 0.6, 0.9999):  # the flow itself
        returns = bool(interior) and start < ours["unstable"][0]
        ended = solved(world, loss, with_success(start), rate=0.2, steps=300 if returns else 80)
        if returns:
            assert apart(ended, with_success(ours["stable"][0])) < 1e-5
        else:
            assert float(ended[:2].sum()) > 0.999


@pytest.mark.claim("F5")
def test_the_critical_weight_of_the_table_and_where_two_points_meet():
    table = {0.5: 1.509, 0.3: 1.082, 0.1: 0.697, 0.01: 0.401, 0.001: 0.278, 1e-6: 0.143}
    for success, known in table.items():
        critical = fixed_points.critical_kl_weight(success)
        assert critical == pytest.approx(known, abs=5e-4)
        p = torch.linspace(-16, 12, 200_001, dtype=torch.float64).sigmoid()
        p = p[p > success]
        least = 1 / ((p * (1 - p)).sqrt() * (p.logit() - math.log(success / (1 - success)))).max()
        assert critical == pytest.approx(float(least), rel=1e-6)
        for side, points in ((1 - 1e-6, 0), (1 + 1e-6, 1)):
            found = fixed_points.standardised_success(success, kl_weight=side * critical, estimator="reverse")
            assert len(found["unstable"]) == len(found["stable"]) - 1 == points
    assert fixed_points.critical_kl_weight(2.2e-9) < 0.1 < fixed_points.critical_kl_weight(2.4e-9)
    assert fixed_points.critical_kl_weight(1.9e-22) < 0.04 < fixed_points.critical_kl_weight(2.1e-22)


@pytest.mark.claim("F5")
@pytest.mark.parametrize("kl_weight", [0.04, 0.3, 1.0, 5.0])
def test_with_k3_there_is_one_point_and_it_is_stable(kl_weight):
    world = World(0, problem=ARMS)
    ours = fixed_points.standardised_success(SUCCESS, kl_weight=kl_weight, estimator="k3")
    (p,) = ours["stable"]
    assert ours["unstable"] == [] and SUCCESS < p < 1
    loss = standardised(kl_weight, pole=True)
    assert gap(world, with_success(p), loss) < 1e-10
    assert attracts(world, with_success(p), loss)
    grid = torch.linspace(-8, 12, 2001, dtype=torch.float64).sigmoid()
    pull = ((1 - grid) / grid).sqrt() - kl_weight * (1 - SUCCESS / grid)
    assert int(((pull[:-1] > 0) != (pull[1:] > 0)).sum()) == 1
    if kl_weight == 0.04:
        assert p == pytest.approx(0.9992, abs=5e-5)


@pytest.mark.claim("F5")
@pytest.mark.parametrize(("size", "kl_weight"), [(2, 0.4), (3, 0.8), (4, 0.8)])
def test_groups_of_grpo_end_where_their_enumeration_says(size, kl_weight):
    """TRL's loss, deviation (n - 1) plus epsilon. Its own KL, times the ratio, is the reverse KL for one decision."""
    world = World(0, problem=ARMS)
    ours = fixed_points.standardised_success(
        SUCCESS, kl_weight=kl_weight, estimator="reverse", group=size, correction=1, epsilon=1e-2
    )
    (p,) = ours["stable"]
    assert ours["unstable"] == []

    def loss(b):
        return family.grpo_loss(
            b.x, b.old, b.reward, log_ref=b.ref, kl_weight=kl_weight, epsilon=1e-2, kl="k3_ratio", **b.marks
        )

    assert gap(world, with_success(p), loss, size=size) < ZERO
    start = with_success(0.9) if size == 2 else world.starts(1)[0]
    assert apart(solved(world, loss, start, size=size, rate=0.5, steps=60), with_success(p)) < TRAINED


@pytest.mark.claim("F5")
def test_in_finite_groups_full_success_repels():
    """The numbers of n = 8; groups of two are a tilt; an epsilon moves the last point out to 1 / epsilon."""

    def logits(**options):
        found = fixed_points.standardised_success(SUCCESS, estimator="reverse", **options)
        return [[math.log(p / (1 - p)) for p in found[name]] for name in ("stable", "unstable")]

    prior = math.log(SUCCESS / (1 - SUCCESS))
    for correction, ends in ((1, (0.018, 4e-11)), (0, (0.0127, 7.5e-12))):
        for kl_weight, end in zip((0.5, 0.1), ends, strict=True):
            (stable,), unstable = logits(kl_weight=kl_weight, group=8, correction=correction)
            assert 1 / (1 + math.exp(stable)) == pytest.approx(end, rel=0.05)
            assert unstable == []
    for correction, factor in ((0, 1.0), (1, math.sqrt(0.5))):
        (stable,), _ = logits(kl_weight=0.7, group=2, correction=correction)
        assert stable == pytest.approx(prior + factor / 0.7, abs=1e-12)
    # many in a group: three points, the population's two and a last one near sqrt(n - 1) / alpha
    (low, last), (middle,) = logits(kl_weight=1.3, group=1000)
    population, (parted,) = fixed_points.standardised_success(SUCCESS, kl_weight=1.3, estimator="reverse").values()
    assert low == pytest.approx(math.log(population[0] / (1 - population[0])), rel=0.01)
    assert middle == pytest.approx(math.log(parted / (1 - parted)), rel=0.01)
    assert last == pytest.approx(prior + math.sqrt(999) / 1.3, rel=1e-6)
    (_, far), _ = logits(kl_weight=2.0, epsilon=0.02)
    assert far == pytest.approx(prior + 1 / (2.0 * 0.02), rel=1e-3)


@pytest.mark.claim("F5")
def test_the_group_in_closed_form_is_its_enumeration():
    """E sqrt(k (1 - k)) over p (1 - p), by a sum over the group's successes in plain Python."""
    n, kl_weight = 5, 0.6
    (p,) = fixed_points.standardised_success(SUCCESS, kl_weight=kl_weight, estimator="reverse", group=n)["stable"]
    mean = math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) * math.sqrt(k / n * (1 - k / n)) for k in range(n + 1))
    tilt = math.log(p / (1 - p)) - math.log(SUCCESS / (1 - SUCCESS))
    assert mean / (p * (1 - p)) == pytest.approx(kl_weight * tilt, rel=1e-12)


@pytest.mark.claim("F5")
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_per_step_the_weight_is_multiplied_by_the_deviation(estimator):
    """A tree with a binary reward: the point of F3 or F4 at alpha times its own deviation."""
    tree = World(1)
    world = World(1, problem=tree.problem.with_log_reward(tensor([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])))
    ours = fixed_points.per_step_kl(world.problem, kl_weight=0.7, estimator=estimator)
    p = float(ours.exp() @ world.reward)
    loss = standardised(0.7 / math.sqrt(p * (1 - p)), pole=estimator == "k3")
    assert gap(world, ours, loss) < ZERO


@pytest.mark.claim("F5")
def test_several_reward_levels():
    """B sigma(B) = 1 / alpha; for rewards 0, 1 and 20, the last all but never, four of them."""
    world = World(2, [(0, j) for j in range(1, 6)])
    grid = torch.logspace(-3, 2, 2001, dtype=torch.float64)
    ours = fixed_points.standardised_tilts(world.log_ref, world.reward, grid, kl_weight=1.5)
    for name, tilts in ours.items():
        for tilt in tilts:
            log_law = (world.log_ref + tilt * world.reward).log_softmax(dim=0)

            def loss(b):
                law = b.old.sum(dim=1).exp()
                centred = b.reward - (law * b.reward).sum()
                advantage = centred / (law * centred.square()).sum().sqrt()
                return ((1.5 * (b.old - b.ref).sum(dim=1) - advantage) * b.x.sum(dim=1)).mean()

            assert gap(world, log_law, loss) < 1e-10
            assert attracts(world, log_law, loss) == (name == "stable")
    binary = fixed_points.standardised_tilts(REFERENCE.log(), ARMS.rewards, grid, kl_weight=1.3)
    population = fixed_points.standardised_success(SUCCESS, kl_weight=1.3, estimator="reverse")
    for name in ("stable", "unstable"):
        chances = [float((REFERENCE.log() + b * ARMS.rewards).softmax(dim=0)[:2].sum()) for b in binary[name]]
        assert chances == pytest.approx([p for p in population[name] if p < 1], rel=1e-9)
    rare = tensor([0.5, 0.5, 1e-30]).log()
    four = fixed_points.standardised_tilts(rare, tensor([0.0, 1.0, 20.0]), grid, kl_weight=1.51)
    assert len(four["stable"]) == len(four["unstable"]) == 2


@pytest.mark.claim("F5")
@pytest.mark.parametrize("epsilon", [1e-4, 0.1])
def test_a_deviation_of_rewards_that_have_the_kl_in_them_keeps_the_target(epsilon):
    """Groups of three, verl's KL in the reward: every path of a group is at its mean there."""
    world = World(1, [(0, 1), (0, 2), (1, 3), (1, 4)])

    def loss(b):
        return family.grpo_loss(
            b.x, b.old, b.reward, log_ref=b.ref, kl_weight=ALPHA, kl="reward", epsilon=epsilon, **b.marks
        )

    assert gap(world, world.target(), loss, size=3) < 1e-9
    assert attracts(world, world.target(), loss, size=3)
    if epsilon == 0.1:  # with less, steps near the target do not shrink, and the end is only as near as they are short
        ended = solved(world, loss, world.starts(1)[0], size=3, rate=0.2, steps=200)
        assert apart(ended, world.target()) < TRAINED


# F6: a mean that contains the sample.


@pytest.mark.claim("F6")
@pytest.mark.parametrize("size", [2, 3])
def test_a_mean_that_contains_the_path_takes_its_share_of_beta(size):
    """Kimi's loss from a fixed reference: on-policy a tilt, off-policy a stand-in."""
    world = World(0)
    beta = fixed_points.inclusive_mean(BETA, size=size)

    def loss(b):
        return family.kimi_loss(b.x, b.ref, b.reward, kl_weight=ALPHA, **b.marks)

    ours = fixed_points.target(world.log_ref, world.reward, beta=beta)
    assert gap(world, ours, loss, size=size) < ZERO
    assert gap(world, world.target(), loss, size=size) > 1e-3
    assert apart(solved(world, loss, world.starts(1)[0], size=size, steps=60), ours) < TRAINED
    world = world.referred_to(OFF)
    mean = beta * float(world.reward @ OFF.exp())
    ours = fixed_points.stand_in(world.log_ref, world.reward, mean, beta=beta, log_behaviour=OFF)
    assert gap(world, ours, loss, size=size, law=OFF) < ZERO
    if size == 2:
        assert apart(trained_off_policy(world, loss, world.starts(1)[0], 2), ours) < TRAINED


@pytest.mark.claim("F6")
@pytest.mark.parametrize("seed", SEEDS)
def test_without_the_path_or_with_the_kl_in_what_is_centred_beta_is_itself(seed):
    world = World(seed)

    def others(b):
        centred = b.reward - b.reward.reshape(-1, 2).flip(1).reshape(-1)
        return ((b.x - b.ref).sum(dim=1) - BETA * centred).square().mean()

    def inside(b):
        return family.agro_loss(b.x, b.ref, b.reward, kl_weight=ALPHA, **b.marks)

    def in_reward(b):
        options = {"scale": "none", "kl": "reward", "kl_weight": ALPHA, "log_ref": b.ref}
        return family.grpo_loss(b.x, b.old, b.reward, **options, **b.marks)

    for loss in (others, inside, in_reward):
        assert gap(world, world.target(), loss, size=2) < ZERO
        assert gap(world, world.target(BETA / 2), loss, size=2) > 1e-4


# F7: losses of differences.


@pytest.mark.claim("F7")
@pytest.mark.parametrize("seed", SEEDS)
def test_dpo_on_a_chain_of_comparisons_finds_the_target_at_its_own_temperature(seed):
    world, order = World(seed), torch.randperm(6, generator=generator(seed))
    chain = torch.stack([order[:-1], order[1:]], dim=1)
    index = torch.cat([chain, chain.flip(1)])
    log_chance = (torch.sigmoid(world.reward[index[:, 0]] - world.reward[index[:, 1]]) / 5).log()

    def loss(b):
        return family.dpo_loss(b.x, b.ref, b.pairs, kl_weight=ALPHA, **b.only)

    groups = (index, log_chance)
    ours = fixed_points.target(world.log_ref, world.reward, beta=BETA)
    assert gap(world, ours, loss, size=2, groups=groups) < ZERO
    assert gap(world, fixed_points.target(world.log_ref, world.reward, beta=1.0), loss, size=2, groups=groups) > 1e-3
    apart_by = tensor([float(loss(batch_of(world, world.log_pi(world.starts(1)[0]), row[None]))) for row in index])
    assert bool((apart_by > 0).all())

    def value(logits):
        log_pi = world.log_pi(logits)
        return sum(p * loss(batch_of(world, log_pi, row[None])) for p, row in zip(log_chance.exp(), index, strict=True))

    (logits,) = descended(value, world.starts(1)[0])
    assert apart(world.law(logits), ours) < TRAINED


@pytest.mark.claim("F7")
@pytest.mark.parametrize("seed", SEEDS)
def test_rebel_solved_fully_adds_its_step_size_each_round(seed):
    world = World(seed)
    for k in range(1, 4):
        before = fixed_points.target(world.log_ref, world.reward, beta=(k - 1) * 0.7) if k > 1 else world.log_ref
        old = world.paths.per_step(mdp.log_softmax(world.problem, world.logits_of(before)))

        def loss(b, old=old):
            return family.rebel_loss(b.x, old[b.rows], b.reward, b.pairs, step_size=0.7, **b.only)

        ours = fixed_points.target(world.log_ref, world.reward, beta=k * 0.7)
        assert gap(world, ours, loss, size=2, law=before) < ZERO
        assert apart(trained_off_policy(world, loss, world.starts(1)[0], 2), ours) < TRAINED


@pytest.mark.claim("F7")
@pytest.mark.parametrize("seed", SEEDS)
def test_ipo_finds_the_tilt_by_the_chance_of_being_preferred(seed):
    """Two draws, judged four times, in no order in particular; a mean over the tokens makes it length-normalised."""
    world = World(seed)
    first, second = torch.triu_indices(6, 6, 1)
    wins = torch.full((6, 6), 2)
    wins[first, second] = torch.randint(0, 5, (15,), generator=world.draws)
    wins[second, first] = 4 - wins[first, second]
    drawn = seen(world, 2)
    won = wins[drawn[:, 0], drawn[:, 1]]
    index = torch.cat([drawn.repeat_interleave(won, dim=0), drawn.flip(1).repeat_interleave(4 - won, dim=0)])
    chance = wins.double() / 4 @ OFF.exp()
    ours = {
        False: fixed_points.target(world.log_ref, chance, beta=BETA),
        True: fixed_points.length_normalised(world.log_ref, chance, world.steps, beta=BETA),
    }
    for per_token, law in ours.items():

        def value(logits, per_token=per_token):
            b = batch_of(world, world.log_pi(logits), index)
            return family.ipo_loss(b.x, b.ref, b.pairs, kl_weight=ALPHA, per_token=per_token, **b.only)

        (logits,) = descended(value, world.starts(1)[0])
        assert apart(world.law(logits), law) < TRAINED
        (slope,) = torch.autograd.grad(value(x := world.logits_of(law).requires_grad_()), x)
        assert float(slope.abs().max()) < ZERO


# F8: a plus for a minus.


def flipped(attached: bool, size: int):
    """The mean of a group added where it should be taken away; in the code that has it, the mean keeps its gradient."""
    if attached:
        return lambda b: family.lm_vargrad_loss(b.x, b.ref, b.reward, kl_weight=ALPHA, **b.marks)

    def loss(b):
        d = (b.x - b.ref).sum(dim=1) - BETA * b.reward
        return 0.5 * (d + d.detach().reshape(-1, size).mean(dim=1).repeat_interleave(size)).square().mean()

    return loss


@pytest.mark.claim("F8")
@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize("size", [2, 3])
def test_a_flipped_sign_keeps_the_target_on_policy_and_is_a_stand_in_off_policy(attached, size):
    world = World(0)
    world.reward = world.reward + (0.8 - world.log_z()) / BETA  # log Z is .8
    loss, common = flipped(attached, size), {"beta": BETA, "log_behaviour": world.behaviour}
    assert gap(world, world.target(), loss, size=size) < ZERO
    ours = fixed_points.flipped_mean(world.log_ref, world.reward, **common, attached=attached, size=size)
    assert gap(world, ours, loss, size=size, law=world.behaviour) < ZERO
    assert gap(world, world.target(), loss, size=size, law=world.behaviour) > 1e-3
    mean = float(world.behaviour.exp() @ (ours - world.log_ref - BETA * world.reward))
    factor = 3 * (size - 1) / (size + 3) if attached else (size - 1) / (size + 1)
    again = fixed_points.stand_in(world.log_ref, world.reward, factor * mean, **common)
    assert apart(again.exp(), ours) < ZERO
    if size == 2:
        ours = fixed_points.flipped_mean(
            world.log_ref, world.reward, beta=BETA, log_behaviour=OFF, attached=attached, size=2
        )
        start = world.starts(1)[0]
        if attached:
            assert apart(trained_off_policy(world, loss, start, 2), ours) < TRAINED
        else:
            assert apart(balanced(world, loss, start, size=2, law=OFF), ours) < TRAINED


@pytest.mark.claim("F8")
@pytest.mark.parametrize("attached", [True, False])
def test_the_population_takes_the_mean_once_or_three_times(attached):
    """And keeps the target where log Z = 0, or on its own paths."""
    world = World(1)
    at_zero = world.reward - world.log_z() / BETA
    for shift in (0.8, -0.05):
        world.reward = at_zero + shift / BETA
        ours = fixed_points.flipped_mean(
            world.log_ref, world.reward, beta=BETA, log_behaviour=world.behaviour, attached=attached
        )
        mean = float(world.behaviour.exp() @ (ours - world.log_ref - BETA * world.reward))
        assert gap(world, ours, a_star_po((3 if attached else 1) * mean), law=world.behaviour) < 1e-11
        kept = fixed_points.flipped_mean(
            world.log_ref, world.reward, beta=BETA, log_behaviour=world.target(), attached=attached
        )
        assert apart(kept.exp(), world.target()) < 1e-12
    kept = fixed_points.flipped_mean(
        world.log_ref, at_zero, beta=BETA, log_behaviour=world.behaviour, attached=attached
    )
    assert apart(kept.exp(), world.target()) < 1e-12
    with pytest.raises(ValueError, match="too little for a solution on W_0"):
        fixed_points.flipped_mean(
            world.log_ref, at_zero - 3 / BETA, beta=BETA, log_behaviour=world.behaviour, attached=attached
        )


# F9: weighted likelihood.


@pytest.mark.claim("F9")
@pytest.mark.parametrize("seed", SEEDS)
def test_reward_weighted_rounds_multiply_the_weight(seed):
    world = World(seed)

    def loss(b):
        return family.reward_weighted_loss(b.x, b.reward, kl_weight=ALPHA, **b.only)

    before = world.log_ref
    for k in range(1, 4):
        ours = fixed_points.target(world.log_ref, world.reward, beta=k * BETA)
        assert gap(world, ours, loss, law=before) < ZERO
        before = ours
    assert apart(solved(world, loss, world.starts(1)[0], law=world.log_ref, rate=0.5), world.target()) < TRAINED
    # single steps on the policy's own paths: nothing interior, and the best path takes all
    for start in world.starts(3):
        assert float(expected_gradient(world, loss, start).abs().max()) > 1e-4
    ended = solved(world, loss, torch.zeros(9, dtype=torch.float64), rate=0.5, steps=100)
    assert int(ended.argmax()) == int(world.reward.argmax()) and float(ended.max()) > 0.999


@pytest.mark.claim("F9")
def test_a_filter_is_its_own_square():
    world = World(0)
    kept = torch.where(world.reward >= 0.0, 0.0, -math.inf).double()
    ours = fixed_points.target(world.log_ref, kept, beta=1.0)
    assert torch.equal(ours, fixed_points.target(world.log_ref, kept, beta=3.0))
    assert ours.exp().tolist() == pytest.approx(
        (world.log_ref.exp() * kept.exp() / (world.log_ref.exp() @ kept.exp())).tolist()
    )

    def loss(b):
        return family.filtered_likelihood_loss(b.x, b.reward, threshold=0.0, **b.only)

    for law in (world.log_ref, ours.clamp(min=-200.0)):  # a second round, from what the first left
        ended = solved(world, loss, torch.zeros(9, dtype=torch.float64), law=law, rate=0.3, steps=100)
        assert float((ended - ours.exp()).abs().max()) < 1e-4


# What they refuse.

LAW, R = tensor([0.2, 0.3, 0.5]).log(), tensor([1.0, 0.0, -1.0])
N, TREE2 = torch.tensor([1, 2, 2]), mdp.tree(2, 2)
PAIR = {"beta": 2.0, "log_behaviour": LAW}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: fixed_points.target(LAW.tolist(), R, beta=1.0), "log_ref is a list; expected a Tensor"),
        (lambda: fixed_points.target(LAW.float(), R, beta=1.0), "log_ref is torch.float32; expected torch.float64"),
        (lambda: fixed_points.target(LAW + 0.1, R, beta=1.0), "log_ref sums to probability"),
        (lambda: fixed_points.target(LAW[:, None], R, beta=1.0), "log_ref sums to probability"),
        (lambda: fixed_points.target(LAW.clone().requires_grad_(), R, beta=1.0), "log_ref requires a gradient"),
        (lambda: fixed_points.target(LAW, R[:2], beta=1.0), "log_reward has shape"),
        (lambda: fixed_points.target(LAW, R.float(), beta=1.0), "log_reward is torch.float32"),
        (lambda: fixed_points.target(LAW, R.clone().requires_grad_(), beta=1.0), "log_reward requires"),
        (lambda: fixed_points.stand_in(LAW, R, R.clone().requires_grad_(), **PAIR), "log_z requires"),
        (lambda: fixed_points.stand_in(LAW, R.clone().requires_grad_(), 0.0, **PAIR), "log_reward requires"),
        (lambda: fixed_points.target(LAW, R * math.nan, beta=1.0), "log_reward holds NaN"),
        (lambda: fixed_points.target(LAW, torch.full_like(R, -math.inf), beta=1.0), "the largest log_reward"),
        (lambda: fixed_points.target(LAW, R, beta=0.0), "beta is 0.0"),
        (lambda: fixed_points.stand_in(LAW, R, math.inf, **PAIR), "log_z is inf"),
        (lambda: fixed_points.stand_in(LAW, R, R[:2], **PAIR), "log_z has shape"),
        (lambda: fixed_points.stand_in(LAW, R, 0.0, beta=-1.0, log_behaviour=LAW), "beta is -1.0"),
        (lambda: fixed_points.stand_in(LAW, R - math.inf, 0.0, **PAIR), "log_reward holds 3"),
        (lambda: fixed_points.stand_in(LAW, R, 0.0, beta=1.0, log_behaviour=LAW[1:] - LAW[1:].logsumexp(0)), "shape"),
        (
            lambda: fixed_points.stand_in(LAW, R, 0.0, beta=1.0, log_behaviour=tensor([0.0, -math.inf, -math.inf])),
            "log_behaviour holds 2 value",
        ),
        (lambda: fixed_points.stand_in(LAW, R, 0.0, **PAIR, steps=N.double()), "steps is"),
        (lambda: fixed_points.stand_in(LAW, R, 9.0, **PAIR), "too little for a solution on W_0"),
        (lambda: fixed_points.flipped_mean(LAW, R, **PAIR, attached=1), "attached is a int"),
        (lambda: fixed_points.flipped_mean(LAW, R, **PAIR, attached=True, size=0), "size is 0"),
        (lambda: fixed_points.inclusive_mean(0.0, size=2), "beta is 0.0"),
        (lambda: fixed_points.inclusive_mean(1.0, size=0), "size is 0"),
        (lambda: fixed_points.length_normalised(LAW, R, [1, 2, 2], beta=1.0), "steps is a list"),
        (lambda: fixed_points.length_normalised(LAW, R, N - 1, beta=1.0), "steps is"),
        (lambda: fixed_points.length_normalised(LAW, R, N[:2], beta=1.0), "steps is"),
        (lambda: fixed_points.residual_over_length(LAW, R, "c", N, beta=1.0), "log_z is 'c'"),
        (lambda: fixed_points.per_step_kl("tree", kl_weight=1.0, estimator="k2"), "problem is a str"),
        (lambda: fixed_points.per_step_kl(TREE2, kl_weight=0.0, estimator="k2"), "kl_weight is 0.0"),
        (lambda: fixed_points.per_step_kl(TREE2, kl_weight=1.0, estimator="k1"), "estimator is 'k1'"),
        (
            lambda: fixed_points.per_step_kl(
                TREE2.with_rewards(TREE2.rewards - math.inf), kl_weight=1.0, estimator="k2"
            ),
            "rewards holds 6",
        ),
        (lambda: fixed_points.standardised_success(0.0, kl_weight=1.0, estimator="k3"), "success is 0.0"),
        (lambda: fixed_points.standardised_success(1.0, kl_weight=1.0, estimator="k3"), "1 - success is 0.0"),
        (lambda: fixed_points.standardised_success(0.5, kl_weight=0.0, estimator="k3"), "kl_weight is 0.0"),
        (lambda: fixed_points.standardised_success(0.5, kl_weight=1e200, estimator="k3"), r"kl_weight is 1e\+200"),
        (lambda: fixed_points.standardised_success(0.5, kl_weight=1.0, estimator="k2"), "estimator is 'k2'"),
        (lambda: fixed_points.standardised_success(0.5, kl_weight=1.0, estimator="k3", group=2), "none with k3"),
        (lambda: fixed_points.standardised_success(0.5, kl_weight=1.0, estimator="k3", epsilon=0.1), "none with k3"),
        (lambda: fixed_points.standardised_success(0.5, kl_weight=1.0, estimator="reverse", group=1), "group is 1"),
        (lambda: fixed_points.standardised_success(0.5, kl_weight=1.0, estimator="reverse", group=-2), "group is -2"),
        (
            lambda: fixed_points.standardised_success(0.5, kl_weight=1.0, estimator="reverse", correction=1),
            "correction is 1",
        ),
        (
            lambda: fixed_points.standardised_success(0.5, kl_weight=1.0, estimator="reverse", epsilon=-0.1),
            "epsilon is -0.1",
        ),
        (lambda: fixed_points.critical_kl_weight(1.5), "1 - success is -0.5"),
        (lambda: fixed_points.critical_kl_weight("half"), "success is 'half'"),
        (lambda: fixed_points.standardised_tilts(LAW, R, R, kl_weight=1.0), "tilts is"),
        (lambda: fixed_points.standardised_tilts(LAW, R, [1.0], kl_weight=1.0), "tilts is a list"),
        (lambda: fixed_points.standardised_tilts(LAW, R, R.exp().flip(0), kl_weight=0.0), "kl_weight is 0.0"),
        (lambda: fixed_points.log_lambert_w(tensor([0.0, -2.0]), negative=True), "x reaches 0"),
        (lambda: fixed_points.log_lambert_w(tensor([math.nan])), "x holds 1"),
        (lambda: fixed_points.log_lambert_w(1.0), "x is a float"),
    ],
)
def test_what_is_wrong_is_refused_by_name(call, text):
    with pytest.raises(ValueError, match=text):
        call()


@pytest.mark.claim("F1")
@pytest.mark.parametrize(("scale", "above"), [(500.0, -3.0), (500.0, 0.2), (1.0, -1e4), (1e-9, -1e-12)])
def test_in_logarithms_nothing_overflows(scale, above):
    """Probabilities down to e^-90, tilts of hundreds: still a law, and the residual is proportional to pi / b."""
    draws = generator(3)
    log_ref, log_b = (20 * torch.randn(2, 6, generator=draws, dtype=torch.float64)).log_softmax(dim=1)
    reward = scale * torch.randn(6, generator=draws, dtype=torch.float64)
    c = float((log_ref + reward).logsumexp(dim=0)) + above
    ours = fixed_points.stand_in(log_ref, reward, c, beta=1.0, log_behaviour=log_b)
    assert abs(float(ours.logsumexp(dim=0))) < 1e-10
    residual = reward - c + log_ref - ours
    rates = residual.abs() * (log_b - ours).exp()
    told = residual.abs() > 1e-8 * (abs(c) + scale)
    assert bool(((rates / rates[residual.abs().argmax()] - 1).abs()[told] < 1e-6).all())
    assert bool((residual[told].sign() == -math.copysign(1.0, above)).all())
