"""The loss of each leaf of the atlas, as a function of what a batch of texts shows: for its tests and its study.

A batch is any object with, of its texts, ``x`` (log-probabilities, ``[texts, tokens]``, with gradients), ``old`` (of
the policy that drew them), ``begun`` (of the one that began the round), ``ref``, ``reward``, ``steps``, ``group``,
``pairs``, ``learned`` (log Z), ``rewards`` (per token), ``quantile`` (of the reward under the reference), ``warm``
(A*-PO's value), ``longest`` and ``mean_per_token``, as far as the loss asks. Groups are consecutive.
"""

import torch

from book.atlas import ALPHA, BETA, KEPT
from book.atlas import GROUP as N
from companion import family, rtb, trust_pcl


def grpo(**given):
    """GRPO as TRL has it, but for what is given."""

    def loss(b):
        longest = b.longest if given["normalisation"] == "dr_grpo" else None
        return family.grpo_loss(b.x, b.old, b.reward, longest=longest, group=b.group, steps=b.steps, **given)

    return loss


def grpo_with_kl(kl, scale="none"):
    """Sums over tokens, up to a factor: what a mean over all tokens of very many texts is."""

    def loss(b):
        return grpo(log_ref=b.ref, kl_weight=ALPHA, kl=kl, scale=scale, normalisation="dr_grpo")(b)

    return loss


def centred(b):
    """The reward less the mean of its group, which contains it."""
    return b.reward - b.reward.reshape(-1, N).mean(dim=1).repeat_interleave(N)


def qrpo(transform):
    """QRPO, by how the quantile is transformed."""
    return lambda b: family.qrpo_loss(b.x, b.ref, b.quantile, kl_weight=ALPHA, transform=transform, steps=b.steps)


def trust_pcl_loss(b):
    """Trust-PCL on whole texts, V learned."""
    values = trust_pcl.full_path_values(ALPHA * b.learned, b.x)
    return trust_pcl.loss(b.x, b.ref, b.rewards, values, kl_weight=ALPHA, steps=b.steps)


def mean_log_ratio(b):
    """RTB with the mean log-ratio of a token for that of the text."""
    residual = b.learned + (b.x - b.ref).sum(dim=1) / b.steps - BETA * b.reward
    return residual.square().mean()


def preferred_pairs(loss):
    """Each pair in both orders, by how likely the first is preferred: pairs as likely are taken together."""

    def both(b):
        first = (b.reward[b.pairs[:, 0]] - b.reward[b.pairs[:, 1]]).sigmoid()
        total = 0.0
        for chance in first.unique():
            pairs = b.pairs[first == chance]
            total = total + len(pairs) * (chance * loss(b, pairs) + (1 - chance) * loss(b, pairs.flip(1)))
        return total / len(first)

    return both


def with_others(b, of_kl):
    """RLOO over the deviation of its batch, TRL's `normalize_advantages`, with one prompt to a batch."""
    shaped = b.reward - ALPHA * of_kl
    groups = shaped.reshape(-1, N)
    advantage = (groups - (groups.sum(dim=1, keepdim=True) - groups) / (N - 1)) / (
        groups.std(dim=1, keepdim=True) + 1e-4
    )
    return -(advantage.reshape(-1) * b.x.sum(dim=1)).mean()


def tokens_after(b):
    """tinker-cookbook's: each token's advantage has alpha times, from it on, the mean log-ratio less the token's."""
    back = b.old - b.ref
    real = torch.arange(back.shape[1]) < b.steps[:, None]
    apart = torch.where(real, b.mean_per_token - back, 0.0)
    later = apart.flip(1).cumsum(dim=1).flip(1)
    return -(((centred(b)[:, None] + ALPHA * later) * b.x)[real]).sum() / len(b.x)


#: Of each leaf: how many texts make a group, and the loss.
LOSSES = {
    "rtb": (1, lambda b: rtb.loss(b.x, b.ref, b.reward, b.learned, beta=BETA)),
    "vargrad": (N, lambda b: rtb.vargrad_loss(b.x, b.ref, b.reward, beta=BETA, group=b.group)),
    "trust-pcl": (1, trust_pcl_loss),
    "dro": (1, lambda b: family.dro_loss(b.x, b.ref, b.reward, ALPHA * b.learned, kl_weight=ALPHA)),
    "tba": (N, lambda b: family.tba_loss(b.x, b.ref, b.reward, kl_weight=ALPHA, group=b.group)),
    "agro": (N, lambda b: family.agro_loss(b.x, b.ref, b.reward, kl_weight=ALPHA, group=b.group)),
    "gvpo": (N, lambda b: family.gvpo_loss(b.x, b.begun, b.reward, kl_weight=ALPHA, group=b.group)),
    "a-star-po": (1, lambda b: family.a_star_po_loss(b.x, b.ref, b.reward, b.warm, kl_weight=ALPHA)),
    "kimi": (N, lambda b: family.kimi_loss(b.x, b.begun, b.reward, kl_weight=ALPHA, group=b.group)),
    "kimi-log-mean-exp": (
        N,
        lambda b: family.kimi_loss(b.x, b.begun, b.reward, kl_weight=ALPHA, partition="log_mean_exp", group=b.group),
    ),
    "openkimi": (
        N,
        lambda b: family.pmd_loss(b.x, b.begun, b.reward, kl_weight=ALPHA, group=b.group, steps=b.steps),
    ),
    "openkimi-log-mean-exp": (
        N,
        lambda b: family.pmd_loss(
            b.x, b.begun, b.reward, kl_weight=ALPHA, partition="log_mean_exp", group=b.group, steps=b.steps
        ),
    ),
    "qrpo-log": (1, qrpo("log")),
    "qrpo": (1, qrpo("identity")),
    "flipped-sign": (N, lambda b: family.lm_vargrad_loss(b.x, b.ref, b.reward, kl_weight=ALPHA, group=b.group)),
    "length-normalised": (1, mean_log_ratio),
    "flowrl": (
        N,
        lambda b: family.flowrl_loss(b.x, b.ref, b.old, b.reward, b.learned, scale=BETA, group=b.group, steps=b.steps),
    ),
    "rebel": (2, lambda b: family.rebel_loss(b.x, b.begun, b.reward, b.pairs, step_size=BETA)),
    "rebel-kl": (
        2,
        lambda b: family.rebel_loss(
            b.x, b.begun, b.reward - ALPHA * (b.begun - b.ref).sum(dim=1), b.pairs, step_size=0.7
        ),
    ),
    "dpo": (2, preferred_pairs(lambda b, pair: family.dpo_loss(b.x, b.ref, pair, kl_weight=ALPHA))),
    "ipo": (2, preferred_pairs(lambda b, pair: family.ipo_loss(b.x, b.ref, pair, kl_weight=ALPHA))),
    "ipo-mean": (
        2,
        preferred_pairs(
            lambda b, pair: family.ipo_loss(b.x, b.ref, pair, kl_weight=ALPHA, per_token=True, steps=b.steps)
        ),
    ),
    "dro-per-token": (N, lambda b: family.dro_per_token_loss(b.x, b.begun, centred(b), kl_weight=ALPHA)),
    "prime-rl": (N, lambda b: family.prime_rl_loss(b.x, b.old, centred(b), kl_weight=ALPHA)),
    "prime-rl-weighted": (
        N,
        lambda b: family.prime_rl_loss(b.x, b.old, centred(b), kl_weight=ALPHA, penalty="weighted"),
    ),
    "prime-rl-log-ratio": (
        N,
        lambda b: family.prime_rl_loss(b.x, b.old, centred(b), kl_weight=ALPHA, penalty="log_ratio"),
    ),
    "opmd": (N, lambda b: family.opmd_loss(b.x, b.reward, kl_weight=ALPHA, group=b.group)),
    "grpo-plain": (N, grpo(normalisation="dr_grpo")),
    "grpo-length": (N, grpo(normalisation="grpo")),
    "grpo-kl": (N, grpo_with_kl("k3_ratio")),
    "grpo-k3": (N, grpo_with_kl("k3")),
    "grpo-std-kl": (N, grpo_with_kl("k3_ratio", "group")),
    "grpo-std-k3": (N, grpo_with_kl("k3", "group")),
    "grpo-kl-in-reward": (N, grpo_with_kl("reward")),
    "rloo": (
        N,
        lambda b: family.rloo_loss(b.x, b.old, b.ref, b.reward, kl_weight=ALPHA, group=b.group),
    ),
    "rloo-std": (N, lambda b: with_others(b, (b.old - b.ref).sum(dim=1))),
    "kl-outside-mean": (
        N,
        lambda b: -((centred(b) - ALPHA * (b.old - b.ref).sum(dim=1)) * b.x.sum(dim=1)).mean(),
    ),
    "kl-of-later-tokens": (N, tokens_after),
    "reward-weighted": (1, lambda b: family.reward_weighted_loss(b.x, b.reward, kl_weight=ALPHA)),
    "filtered": (1, lambda b: family.filtered_likelihood_loss(b.x, b.reward, threshold=KEPT)),
}


#: The leaves that learn log Z beside the policy.
LEARNS = ("rtb", "trust-pcl", "dro", "length-normalised", "flowrl")
