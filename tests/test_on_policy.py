"""Policy gradients beside RTB, by enumeration: every path of a graph and of a tree, and every batch of two or three.

Scores, advantages and divergences are worked out here from the lists of paths; nothing is sampled.
"""

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given
from inputs import PROPERTY, Batch, assert_agree, batches, generator, tensor
from torch import Tensor

from companion import mdp, reinforce, rtb, trust_pcl

ALPHA = 0.7
SHAPES = {"graph": mdp.small_graph, "tree": lambda: mdp.tree(2, 3)}
#: Rounding allowed, in eps of the size of the terms: sums over up to nine paths, or over all batches of them.
SUMMED = 64


@dataclass(frozen=True)
class Case:
    """A random problem, all of its paths, and its posterior, which is worked out from their list."""

    problem: mdp.Problem
    paths: mdp.Paths
    log_ref: Tensor
    log_reward: Tensor
    log_best: Tensor
    log_z: float

    @property
    def constants(self) -> tuple[Tensor, Tensor]:
        return self.log_ref, self.log_reward

    def policy(self, logits: Tensor) -> Tensor:
        """log pi of every step of every path, [paths, steps]."""
        return self.paths.per_step(mdp.log_softmax(self.problem, logits))

    def best_logits(self) -> Tensor:
        """Logits of the posterior's policy."""
        return mdp.solve(self.problem, kl_weight=ALPHA).log_policy

    def logits(self, seed: int) -> Tensor:
        """Random logits, [edges]."""
        return torch.randn(len(self.problem.source), generator=generator(seed), dtype=torch.float64)

    def scores(self, logits: Tensor) -> Tensor:
        """grad log p(tau) in the logits, [paths, edges], by hand: edge taken, less its probability if open."""
        pi, source = mdp.log_softmax(self.problem, logits).exp(), self.problem.source
        rows = torch.zeros(len(self.paths), len(source), dtype=torch.float64)
        for row, path in zip(rows, self.paths.edges.tolist(), strict=True):
            for edge in (e for e in path if e >= 0):
                row -= torch.where(source == source[edge], pi, 0.0)
                row[edge] += 1
        return rows

    def advantage(self, log_p: Tensor) -> Tensor:
        """log r - alpha log p/p_ref, [paths], which is alpha (log Z - log p/p*)."""
        return self.log_reward - ALPHA * (log_p - self.log_ref.sum(dim=1))

    def size(self, *others: Tensor) -> float:
        """The size of terms over alpha: at most this, on any path."""
        logs = [self.log_ref.sum(dim=1), self.log_best, *others]
        largest = sum(float(x.detach().abs().max()) for x in [*logs, self.log_reward / ALPHA])
        return 1 + abs(self.log_z) + largest


@cache
def case(shape: str) -> Case:
    """The problem of this shape; log Z is far from zero."""
    problem = mdp.randomise(SHAPES[shape](), generator(11))
    problem = problem.with_rewards(problem.rewards + 2.0 * (problem.source == 0))
    paths = mdp.enumerate_paths(problem)
    log_ref, log_reward = paths.per_step(problem.log_ref), paths.per_step(problem.rewards).sum(dim=1)
    weights = [p + r / ALPHA for p, r in zip(log_ref.sum(dim=1).tolist(), log_reward.tolist(), strict=True)]
    log_z = math.log(math.fsum(map(math.exp, weights)))
    assert log_z > 1
    return Case(problem, paths, log_ref, log_reward, tensor(weights) - log_z, log_z)


def uniform(c: Case) -> Tensor:
    """The law that draws each edge of a state alike, [edges]."""
    return -c.problem.out_degree[c.problem.source].double().log()


def behaviours(c: Case, logits: Tensor) -> dict[str, Tensor]:
    """log-probabilities of every step under four samplers, [paths, steps]."""
    per_edge = {
        "on-policy": mdp.log_softmax(c.problem, logits),
        "prior": c.problem.log_ref,
        "uniform": uniform(c),
        "another": mdp.log_softmax(c.problem, c.logits(99)),
    }
    return {name: c.paths.per_step(log_b) for name, log_b in per_edge.items()}


def gradient(value: Tensor, at: Tensor) -> Tensor:
    """The gradient of a scalar."""
    (found,) = torch.autograd.grad(value, at, retain_graph=True)
    return found


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p, q) of two laws over the paths."""
    return (log_p.exp() * (log_p - log_q)).sum()


def every_shape(test):
    """Run a test on the graph and on the tree."""
    return pytest.mark.parametrize("shape", SHAPES)(test)


def angle(left: Tensor, right: Tensor) -> float:
    """The cosine of the angle between two gradients."""
    return float(left @ right / (left.norm() * right.norm()))


# Expected gradients on-policy.


@pytest.mark.claim("O1")
@every_shape
@pytest.mark.parametrize("log_z", [0.0, -3.0, 1.5, 40.0, "log Z"])
def test_on_policy_rtb_descends_the_reverse_kl_whatever_log_z_is(shape, log_z):
    """Against autograd's gradient of KL(p, p*), and of the policy's own Bellman equation."""
    c = case(shape)
    log_z = c.log_z if log_z == "log Z" else log_z
    logits = c.logits(1).requires_grad_()
    log_pi = c.policy(logits)
    log_p = log_pi.sum(dim=1)
    half_square = 0.5 * rtb.residual(log_pi, *c.constants, tensor(log_z), beta=1 / ALPHA).square()
    ours = gradient(mdp.expectation(half_square, log_p.detach()), logits)
    size = c.size(log_p) + abs(log_z)
    assert_agree(ours, gradient(divergence(log_p, c.log_best), logits), size, roundings=SUMMED)
    value = mdp.evaluate(c.problem, mdp.log_softmax(c.problem, logits), kl_weight=ALPHA)[0]
    assert_agree(ours, -gradient(value, logits) / ALPHA, size, roundings=SUMMED)
    by_hand = (log_p.exp() * (log_p - c.log_best)) @ c.scores(logits.detach())
    assert_agree(ours, by_hand, size, roundings=SUMMED)
    assert ours.norm() > 0.1


def batch_gradients(c: Case, logits: Tensor, size: int, **options) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of kl_loss in the logits for every on-policy batch, its mean, and its trace of covariance."""
    steps = c.policy(logits)
    index, log_prob = mdp.enumerate_batches(steps.sum(dim=1), size)
    scores, found = c.scores(logits), []
    for batch in index:
        log_pi = steps[batch].requires_grad_()
        loss = reinforce.kl_loss(log_pi, c.log_ref[batch], c.log_reward[batch], beta=1 / ALPHA, **options)
        by_step = gradient(loss, log_pi)
        assert torch.equal(by_step, by_step[:, :1].expand_as(by_step))
        found.append(by_step[:, 0] @ scores[batch])
    found = torch.stack(found)
    mean = mdp.expectation(found, log_prob)
    return found, mean, mdp.expectation((found - mean).square().sum(dim=1), log_prob)


@pytest.mark.claim("O2")
@every_shape
@pytest.mark.parametrize("n", [2, 3])
def test_a_number_changes_only_the_variance_and_the_best_is_the_weighted_mean_advantage(shape, n):
    """Mean and trace of covariance over all batches; the variance is a parabola with E[|g|^2 a]/E[|g|^2] lowest."""
    c, logits = case(shape), case(shape).logits(2)
    log_p = c.policy(logits).sum(dim=1)
    p, g, a = log_p.exp(), c.scores(logits), c.advantage(log_p)
    weight = p * g.square().sum(dim=1)
    best = float((weight @ a) / weight.sum())
    exact = -(p * a) @ g  # alpha grad KL(p, p*): the score has mean zero
    noise = weight @ (a - best).square() - exact.square().sum()
    size = ALPHA * c.size(log_p)
    variances = {}
    for shift in (0.0, 0.5, -2.0, -best):
        number = "none" if shift == -best else best + shift
        _, mean, variance = batch_gradients(c, logits, n, baseline=number)
        assert_agree(mean, exact, size, roundings=SUMMED)
        assert_agree(variance, (noise + shift**2 * weight.sum()) / n, size**2, roundings=SUMMED)
        variances[shift] = variance
    assert all(variances[0.0] < variance - 0.01 for shift, variance in variances.items() if shift)


@pytest.mark.claim("O2")
@every_shape
@pytest.mark.parametrize("n", [2, 3])
def test_the_batch_mean_scales_the_mean_by_n_minus_one_over_n_and_leave_one_out_does_not(shape, n):
    """The batch mean scales the trace of covariance by the square of it."""
    c, logits = case(shape), case(shape).logits(2)
    log_p = c.policy(logits).sum(dim=1)
    exact = -(log_p.exp() * c.advantage(log_p)) @ c.scores(logits)
    size = ALPHA * c.size(log_p)
    _, mean, variance = batch_gradients(c, logits, n)
    _, mean_of_others, variance_of_others = batch_gradients(c, logits, n, baseline="leave_one_out")
    assert_agree(mean, (n - 1) / n * exact, size, roundings=SUMMED)
    assert_agree(mean_of_others, exact, size, roundings=SUMMED)
    assert_agree(variance, ((n - 1) / n) ** 2 * variance_of_others, size**2, roundings=SUMMED)
    assert variance > 0.1


@pytest.mark.claim("O2")
@every_shape
def test_a_pair_in_leave_one_out_is_a_half_product_of_differences(shape):
    """n = 2: (a_1 - a_2)(g_2 - g_1)/2, so the trace of covariance is that of the list of all pairs."""
    c, logits = case(shape), case(shape).logits(2)
    log_p = c.policy(logits).sum(dim=1)
    g, a = c.scores(logits), c.advantage(log_p)
    found, mean, variance = batch_gradients(c, logits, 2, baseline="leave_one_out")
    pairs = (a[:, None] - a)[:, :, None] * (g[None, :] - g[:, None]) / 2
    size = ALPHA * c.size(log_p)
    assert_agree(found, pairs.reshape(found.shape), size)
    second = torch.einsum("i,j,ije->", log_p.exp(), log_p.exp(), pairs.square())
    assert_agree(variance, second - mean.square().sum(), size**2, roundings=SUMMED)


# log Z.


@pytest.mark.claim("O3")
@every_shape
def test_the_best_log_z_is_the_mean_of_what_it_is_compared_with(shape):
    """Under each behaviour: the slope of the expected loss is zero there, and it rises as half the square."""
    c, logits = case(shape), case(shape).logits(3)
    log_pi = c.policy(logits)
    size = c.size(log_pi.sum(dim=1))
    laws = {name: steps.sum(dim=1) for name, steps in behaviours(c, logits).items()} | {"posterior": c.log_best}
    for law in laws.values():
        best = float((law.exp() * c.advantage(log_pi.sum(dim=1))).sum()) / ALPHA

        def expected(shift, law=law, best=best):
            log_z = tensor(best + shift).requires_grad_()
            half_square = 0.5 * rtb.residual(log_pi, *c.constants, log_z, beta=1 / ALPHA).square()
            loss = mdp.expectation(half_square, law)
            return loss.detach(), gradient(loss, log_z)

        lowest, slope = expected(0.0)
        assert_agree(slope, 0.0, size, roundings=SUMMED)
        for shift in (-2.0, 0.5):
            loss, slope = expected(shift)
            assert_agree(loss, lowest + shift**2 / 2, size**2, roundings=SUMMED)
            assert_agree(slope, shift, size, roundings=SUMMED)
    # the loss of a plain mean: every path once
    log_z = tensor(float(c.advantage(log_pi.sum(dim=1)).mean()) / ALPHA).requires_grad_()
    assert_agree(gradient(rtb.loss(log_pi, *c.constants, log_z, beta=1 / ALPHA), log_z), 0.0, size)


@pytest.mark.claim("O3")
@every_shape
@pytest.mark.parametrize("seed", range(5))
def test_the_elbo_and_the_eubo_enclose_log_z_with_the_two_divergences_as_gaps(shape, seed):
    """On-policy KL(p, p*) below, under the posterior KL(p*, p) above; both are log Z at the optimum."""
    c = case(shape)
    log_pi = c.policy(c.logits(seed))
    log_p = log_pi.sum(dim=1)
    size = c.size(log_p)

    def best_log_z(log_pi, law):
        return -mdp.expectation(rtb.residual(log_pi, *c.constants, tensor(0.0), beta=1 / ALPHA), law)

    elbo, eubo = best_log_z(log_pi, log_p), best_log_z(log_pi, c.log_best)
    assert_agree(c.log_z - elbo, divergence(log_p, c.log_best), size, roundings=SUMMED)
    assert_agree(eubo - c.log_z, divergence(c.log_best, log_p), size, roundings=SUMMED)
    assert elbo < c.log_z - 0.01 and eubo > c.log_z + 0.01
    best = c.policy(c.best_logits())
    for law in (c.log_best, log_p):
        assert_agree(best_log_z(best, law), c.log_z, size, roundings=SUMMED)


# Batch by batch.


def replayed(b: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The batch with its first path drawn twice more, as from a buffer."""
    again = [*range(len(b.log_pi)), 0, 0]
    return b.log_pi[again], b.log_ref[again], b.log_reward[again]


@PROPERTY
@given(batches(min_batch=2))
def check_batch_by_batch(baseline, factor, b):
    alpha = b.alpha
    for log_pi, log_ref, log_reward in ((b.log_pi, b.log_ref, b.log_reward), replayed(b)):
        n, log_pi = len(log_pi), log_pi.clone().requires_grad_()
        policy = gradient(reinforce.kl_loss(log_pi, log_ref, log_reward, beta=1 / alpha, baseline=baseline), log_pi)
        vargrad = gradient(rtb.vargrad_loss(log_pi, log_ref, log_reward, beta=1 / alpha), log_pi)
        # by hand: alpha Delta, less its mean, over n, at every step
        delta = alpha * (log_pi.detach().double() - log_ref.double()).sum(dim=1) - log_reward.double()
        by_hand = ((delta - delta.mean()) / n)[:, None].expand_as(log_pi)
        size = b.size().max()
        assert_agree(alpha * vargrad.double(), by_hand, size, b.dtype)
        assert_agree(policy.double(), factor(n) * by_hand, factor(n) * size, b.dtype)


@pytest.mark.claim("O4")
def test_reinforce_with_a_batch_mean_is_alpha_times_vargrad_on_any_batch():
    """Any paths, replayed ones too; alpha from 1e-3 to 1e3; two to eight paths; float32 and float64."""
    check_batch_by_batch("batch_mean", lambda n: 1.0)


@pytest.mark.claim("O5")
def test_reinforce_with_leave_one_out_is_n_over_n_minus_one_times_as_much_on_any_batch():
    """As above."""
    check_batch_by_batch("leave_one_out", lambda n: n / (n - 1))


@pytest.mark.claim("O2")
@PROPERTY
@given(batches())
def test_an_actor_and_its_critic_are_trust_pcl_on_full_paths(b):
    """On any batch: the actor's gradient is 1/alpha times, and the critic's equal to, that of Trust-PCL's loss."""
    log_pi, value = b.log_pi.clone().requires_grad_(), (b.alpha * b.log_z).requires_grad_()
    inputs, number = (log_pi, b.log_ref, b.log_reward), {"beta": 1 / b.alpha}
    actor = gradient(reinforce.kl_loss(*inputs, **number, baseline=value.item()), log_pi)
    critic = gradient(reinforce.critic_loss(*inputs, value, **number), value)
    values = trust_pcl.full_path_values(value, log_pi)
    theirs = trust_pcl.loss(log_pi, b.log_ref, b.rewards, values, kl_weight=b.alpha)
    size = b.size().max()
    # by hand: the residual is the advantage less the value
    logs = b.log_pi.double() - b.log_ref.double()
    residual = b.log_reward.double() - b.alpha * logs.sum(dim=1) - value.detach().double()
    by_hand = (-residual / len(residual))[:, None].expand_as(log_pi)
    assert_agree(actor.double(), by_hand, size, b.dtype)
    assert_agree(gradient(theirs, log_pi).double() / b.alpha, by_hand, size, b.dtype)
    assert_agree(critic.double(), -residual.mean(), size, b.dtype)
    assert_agree(gradient(theirs, value).double(), -residual.mean(), size, b.dtype)


# At the optimum.


@pytest.mark.claim("O6")
@every_shape
def test_at_the_optimum_the_centred_residual_of_every_path_and_the_gradient_of_every_batch_are_zero(shape):
    """Three baselines, three weightings, three behaviours, all 64 or 81 batches of two paths."""
    c = case(shape)
    steps = c.policy(c.best_logits())
    size = c.size()
    residual = rtb.residual(steps, *c.constants, tensor(0.0), beta=1 / ALPHA)
    assert_agree(residual, torch.full_like(residual, -c.log_z), size)
    samplers = behaviours(c, c.best_logits())
    index, _ = mdp.enumerate_batches(samplers["uniform"].sum(dim=1), 2)
    options = [{"weights": "none"}] + [
        {"weights": weights, "law": samplers[name]}
        for weights in ("importance", "tempered")
        for name in ("on-policy", "prior", "uniform")
    ]
    for batch in index:
        inputs = steps[batch].requires_grad_(), c.log_ref[batch], c.log_reward[batch]
        for option in options:
            given_law = {"log_behaviour": option["law"][batch]} if "law" in option else {}
            for baseline in ("batch_mean", "leave_one_out", ALPHA * c.log_z):
                given_law |= {"weights": option["weights"], "baseline": baseline}
                noise = gradient(reinforce.kl_loss(*inputs, beta=1 / ALPHA, **given_law), inputs[0])
                assert_agree(noise, torch.zeros_like(noise), ALPHA * size)


@pytest.mark.claim("O6")
@every_shape
@pytest.mark.parametrize("weights", ["none", "importance", "tempered"])
def test_centring_removes_a_constant_that_is_added_to_every_log_reward(shape, weights):
    """Away from the optimum, by either mean; without a baseline the gradient moves by the constant times the scores."""
    c = case(shape)
    steps = c.policy(c.logits(4))
    drawn = {} if weights == "none" else {"log_behaviour": behaviours(c, c.logits(4))["uniform"]}
    options = {"beta": 1 / ALPHA, "weights": weights, **drawn}

    def of(log_reward, baseline):
        log_pi = steps.clone().requires_grad_()
        return gradient(reinforce.kl_loss(log_pi, c.log_ref, log_reward, baseline=baseline, **options), log_pi)

    for baseline in ("batch_mean", "leave_one_out"):
        assert_agree(of(c.log_reward + 7, baseline), of(c.log_reward, baseline), 7 + ALPHA * c.size(), roundings=SUMMED)
    assert (of(c.log_reward + 7, "none") - of(c.log_reward, "none")).abs().max() > 0.1


@pytest.mark.claim("O6")
@every_shape
def test_without_a_baseline_noise_stays_at_the_optimum_and_off_policy_the_fixed_point_moves(shape):
    """On-policy the mean is zero and the variance is not; off-policy the mean is -alpha log Z E_b[g]."""
    c = case(shape)
    best = c.best_logits()
    _, mean, variance = batch_gradients(c, best, 2, baseline="none")
    size = ALPHA * c.size()
    assert_agree(mean, torch.zeros_like(mean), size, roundings=SUMMED)
    # every path has the advantage alpha log Z: the trace is its square times E[|g|^2] / 2
    g = c.scores(best)
    spread = (ALPHA * c.log_z) ** 2 * (c.log_best.exp() @ g.square().sum(dim=1)) / 2
    assert_agree(variance, spread, size**2, roundings=SUMMED)
    assert variance > 0.1
    for name, steps in behaviours(c, best).items():
        law = steps.sum(dim=1)
        logits = best.clone().requires_grad_()
        log_pi = c.policy(logits)
        # the loss is linear in the paths: its mean is that of single paths
        singles = [
            reinforce.kl_loss(
                log_pi[k : k + 1], c.log_ref[k : k + 1], c.log_reward[k : k + 1], beta=1 / ALPHA, baseline="none"
            )
            for k in range(len(c.paths))
        ]
        moved = gradient(mdp.expectation(torch.stack(singles), law), logits)
        assert_agree(moved, -ALPHA * c.log_z * (law.exp() @ g), size, roundings=SUMMED)
        assert (moved.norm() > 0.1) == (name != "on-policy")


# Off-policy.


def off_policy_gradient(c: Case, logits: Tensor, law: Tensor, log_z: float | None = None) -> Tensor:
    """The exact expected gradient of half the squared residual, with a fixed log Z, or with the best one."""
    logits = logits.clone().requires_grad_()
    residual = rtb.residual(c.policy(logits), *c.constants, tensor(log_z or 0.0), beta=1 / ALPHA)
    if log_z is None:
        residual = residual - mdp.expectation(residual, law)
    return gradient(mdp.expectation(0.5 * residual.square(), law), logits)


def reverse_kl_gradient(c: Case, logits: Tensor) -> Tensor:
    """The gradient of KL(p, p*)."""
    logits = logits.clone().requires_grad_()
    return gradient(divergence(c.policy(logits).sum(dim=1), c.log_best), logits)


@pytest.mark.claim("O7")
@every_shape
def test_off_policy_the_field_is_not_the_importance_weighted_one_but_has_its_zero(shape):
    """Angles away from the optimum; both vanish there. The package's losses on the list of paths agree with both."""
    c = case(shape)
    names, cosines = ("prior", "uniform", "another"), []
    for seed in range(3):
        logits = c.logits(seed)
        ours = reverse_kl_gradient(c, logits)
        for name in names:
            law = behaviours(c, logits)[name].sum(dim=1)
            cosines.append(angle(off_policy_gradient(c, logits, law), ours))
        # the list of all paths, each once: drawn uniformly, its weights are the probabilities themselves
        at = logits.clone().requires_grad_()
        log_pi, n = c.policy(at), len(c.paths)
        law = torch.full((n,), -math.log(n), dtype=torch.float64)
        inputs, once = (log_pi, *c.constants), torch.zeros_like(log_pi)
        size = c.size(log_pi.detach().sum(dim=1))
        weighted = reinforce.kl_loss(*inputs, beta=1 / ALPHA, weights="importance", log_behaviour=once)
        assert_agree(gradient(weighted, at), ALPHA * ours, ALPHA * size, roundings=SUMMED)
        vargrad = gradient(rtb.vargrad_loss(*inputs, beta=1 / ALPHA), at)
        assert_agree(vargrad, off_policy_gradient(c, logits, law), size, roundings=SUMMED)
        assert angle(vargrad, ours) < 0.99
    assert max(cosines) < 0.99
    best, size = c.best_logits(), c.size()
    zero = torch.zeros_like(best)
    assert_agree(reverse_kl_gradient(c, best), zero, size, roundings=SUMMED)
    for name in names:
        assert_agree(off_policy_gradient(c, best, behaviours(c, best)[name].sum(dim=1)), zero, size, roundings=SUMMED)


@pytest.mark.claim("O7")
@every_shape
@pytest.mark.parametrize("wrong", [-1.0, 0.5])
def test_a_fixed_wrong_log_z_moves_the_zero_off_policy_and_not_on_policy(shape, wrong):
    """At the optimum the residual is the error of log Z on every path: its mean gradient is that times E_b[g]."""
    c = case(shape)
    best, size = c.best_logits(), c.size()
    for name, steps in behaviours(c, best).items():
        law = steps.sum(dim=1)
        found = off_policy_gradient(c, best, law, c.log_z + wrong)
        assert_agree(found, wrong * (law.exp() @ c.scores(best)), size, roundings=SUMMED)
        assert (found.norm() > 0.1) == (name != "on-policy")
        right = off_policy_gradient(c, best, law, c.log_z)
        assert_agree(right, torch.zeros_like(right), size, roundings=SUMMED)


def advantages(c: Case, logits: Tensor) -> Tensor:
    """What each edge adds to the expected log p/p*, [edges]: delta + W(next) - W(here), backwards from the ends."""
    log_pi = mdp.log_softmax(c.problem, logits)
    delta = log_pi - c.problem.log_ref - c.problem.rewards / ALPHA
    ahead = torch.zeros(c.problem.n_states, dtype=torch.float64)
    for edge in reversed(range(len(delta))):  # in descending order of their source
        source, target = int(c.problem.source[edge]), int(c.problem.target[edge])
        ahead[source] += log_pi[edge].exp() * (delta[edge] + ahead[target])
    return delta + ahead[c.problem.target] - ahead[c.problem.source]


@pytest.mark.claim("O8")
@every_shape
def test_the_gradient_is_zero_only_where_the_centred_residual_has_no_variance(shape):
    """Along the policy's own advantages the slope is that variance, on-policy or off: 200 policies, mild and extreme.

    So the norm of the gradient is at least the variance over the norm of the advantages, and the variance is positive.
    """
    c = case(shape)
    for seed in range(200):
        logits = (0.1, 1.0, 3.0, 8.0)[seed % 4] * c.logits(seed)
        if seed % 4 == 0:
            logits = logits + c.best_logits()  # near the optimum
        direction = advantages(c, logits)
        log_p = c.policy(logits).sum(dim=1)
        laws = {name: steps.sum(dim=1) for name, steps in behaviours(c, logits).items()}
        for name, law in laws.items():
            if name == "on-policy":
                found = reverse_kl_gradient(c, logits)
            elif name == ("prior", "another")[seed % 2]:
                found = off_policy_gradient(c, logits, law)
            else:
                continue
            gap = log_p - c.log_best
            variance = (law.exp() * (gap - (law.exp() * gap).sum()).square()).sum()
            size = c.size(log_p) * (1 + direction.abs().sum())
            assert_agree(found @ direction, variance, size, roundings=SUMMED)
            assert variance > 1e-6 and found.norm() >= 0.999 * variance / direction.norm() > 0


@pytest.mark.claim("O8")
@every_shape
@pytest.mark.parametrize("where", ["on-policy", "off-policy"])
def test_descent_ends_at_the_posterior_from_wherever_it_starts(shape, where):
    """L-BFGS from ten standard normal starts: KL(p, p*) below 1e-12 for both objectives.

    From far out it may land where the policy is all but deterministic: the gradient is small there, and not zero.
    """
    c = case(shape)
    law = behaviours(c, c.best_logits())["another"].sum(dim=1)
    for seed in range(10):
        logits = c.logits(100 + seed).requires_grad_()

        def objective(logits=logits):
            log_pi = c.policy(logits)
            if where == "on-policy":
                return divergence(log_pi.sum(dim=1), c.log_best)
            residual = rtb.residual(log_pi, *c.constants, tensor(0.0), beta=1 / ALPHA)
            return 0.5 * mdp.expectation((residual - mdp.expectation(residual, law)).square(), law)

        descent = torch.optim.LBFGS(
            [logits], max_iter=400, tolerance_grad=1e-10, tolerance_change=0.0, line_search_fn="strong_wolfe"
        )

        def closure(logits=logits, descent=descent, objective=objective):
            descent.zero_grad()
            loss = objective()
            loss.backward()
            return loss

        assert divergence(c.policy(logits).sum(dim=1), c.log_best) > 0.01
        descent.step(closure)
        assert divergence(c.policy(logits).sum(dim=1), c.log_best) < 1e-12


# Estimators of the KL.


def estimates(c: Case, logits: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """log p of every path, and its estimate of KL(p, p_ref), [paths] each."""
    sums = c.policy(logits).sum(dim=1, keepdim=True)
    return sums[:, 0], reinforce.kl_estimator(sums, c.log_ref.sum(dim=1, keepdim=True), kind=kind)[:, 0]


@pytest.mark.claim("B2")
@every_shape
@pytest.mark.parametrize("kind", reinforce.ESTIMATORS)
def test_as_losses_on_detached_samples_the_estimators_descend_nothing_the_reverse_kl_and_the_forward_kl(shape, kind):
    """The law is detached, the estimate is not."""
    c, logits = case(shape), case(shape).logits(4).requires_grad_()
    log_p, estimate = estimates(c, logits, kind)
    prior = c.log_ref.sum(dim=1)
    found = gradient(mdp.expectation(estimate, log_p.detach()), logits)
    expected = {
        "k1": torch.zeros_like(logits),
        "k2": gradient(divergence(log_p, prior), logits),
        "k3": gradient(divergence(prior, log_p), logits),
    }[kind]
    size = c.size(log_p) + float((prior - log_p).detach().exp().max())
    assert_agree(found, expected, size, roundings=SUMMED)
    assert all(gradient(divergence(*laws), logits).norm() > 0.1 for laws in ((log_p, prior), (prior, log_p)))


@pytest.mark.claim("B2")
@every_shape
@pytest.mark.parametrize("kind", reinforce.ESTIMATORS)
def test_as_rewards_the_estimators_behave_otherwise(shape, kind):
    """Detached and times the score: the reverse KL for k1; for k3 less the forward KL; for k2 E[l^2/2 g]."""
    c, logits = case(shape), case(shape).logits(4).requires_grad_()
    log_p, estimate = estimates(c, logits, kind)
    prior = c.log_ref.sum(dim=1)
    found = gradient(mdp.expectation(estimate.detach() * log_p, log_p.detach()), logits)
    reverse, forward = gradient(divergence(log_p, prior), logits), gradient(divergence(prior, log_p), logits)
    half_square = 0.5 * log_p.exp() * (log_p - prior).square()
    expected = {
        "k1": reverse,
        "k2": (half_square @ c.scores(logits.detach())).detach(),
        "k3": reverse - forward,
    }[kind]
    size = (c.size(log_p) + float((prior - log_p).detach().exp().max())) ** 2
    assert_agree(found, expected, size, roundings=SUMMED)
    as_loss = gradient(mdp.expectation(estimate, log_p.detach()), logits)
    assert (found - as_loss).norm() > 0.1


@pytest.mark.claim("B2")
@every_shape
def test_k1_and_k3_are_unbiased_and_k2_is_not(shape):
    """E[k1] = E[k3] = KL(p, p_ref); E[k2] is half the mean square of the log-ratio."""
    c, logits = case(shape), case(shape).logits(4)
    kl = None
    for kind in ("k1", "k3", "k2"):
        log_p, estimate = estimates(c, logits, kind)
        kl = divergence(log_p, c.log_ref.sum(dim=1)) if kl is None else kl
        mean = mdp.expectation(estimate, log_p)
        if kind == "k2":
            assert (mean - kl).abs() > 0.01
        else:
            assert_agree(mean, kl, c.size(log_p), roundings=SUMMED)
