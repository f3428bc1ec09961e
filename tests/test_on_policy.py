"""Policy gradients beside RTB, on the policy's own paths and batch by batch; and the estimators of the KL.

Expectations are sums over the lists of paths, or of all batches of two or three; nothing is sampled.
"""

import pytest
import torch
from cases import ALPHA, SUMMED, Case, batch_gradients, behaviours, case, divergence, every_shape, gradient
from hypothesis import given
from inputs import PROPERTY, Batch, assert_agree, batches, tensor
from torch import Tensor

from companion import mdp, reinforce, rtb, trust_pcl

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
