"""Record what verl's core_algos makes of the sequences of shared.py, and the defaults of its options.

Advantages, penalties, aggregations and policy losses are verl's own functions, found in its registries and called in
float64 as its workers call them, with its own configuration classes.

    python record_verl.py OUT.json
"""

import os
import sys
from itertools import product
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "VERL_USE_EXTERNAL_PLUGINS": "none"}

import numpy as np
import shared
import torch
import verl
from omegaconf import OmegaConf
from verl.trainer.config import AlgoConfig, KLControlConfig, RolloutCorrectionConfig
from verl.trainer.ppo import core_algos
from verl.workers.config import ActorConfig, PolicyLossConfig

AGGREGATIONS = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
KL_PENALTIES = ("k1", "abs", "k2", "k3", "low_var_kl")
#: Those that need no more than rewards, a mask and groups, with the options that each is recorded under.
ESTIMATORS = {
    "grpo": ({}, {"norm_adv_by_std_in_grpo": False}),
    "grpo_vectorized": ({}, {"norm_adv_by_std_in_grpo": False}),
    "grpo_passk": ({}, {"norm_adv_by_std_in_grpo": False}),
    "gdpo": ({},),
    "rloo": ({},),
    "rloo_vectorized": ({},),
    "opo": ({},),
    "reinforce_plus_plus": ({}, {"gamma": 0.9}),
    "reinforce_plus_plus_baseline": ({},),
    "gpg": ({},),
}
#: Every policy loss, with the options that each is recorded under.
POLICY_LOSSES = {
    "vanilla": ({}, {"clip_ratio": 0.5}, {"clip_ratio_high": 0.28}, {"clip_ratio_c": 1.5}),
    "dppo_tv": ({},),
    "dppo_kl": ({},),
    "gspo": ({}, {"clip_ratio_low": 0.0003, "clip_ratio_high": 0.0004}),
    "sapo": ({},),
    "gpg": ({},),
    # Every token between the bounds is left out, where the default leaves out one of them at random.
    "clip_cov": ({"policy_loss": {"clip_cov_ratio": 1.0, "clip_cov_lb": 0.25}},),
    "kl_cov": ({}, {"policy_loss": {"kl_cov_ratio": 0.25}}),
    "geo_mean": ({},),
    "dro": ({"policy_loss": {"dro_beta": 0.3}},),
    "cispo": ({},),
    "bypass_mode": (
        {},
        {"policy_loss": {"rollout_correction": {"loss_type": "reinforce", "rollout_is": "token"}}},
        {"policy_loss": {"rollout_correction": {"loss_type": "reinforce", "rollout_is": "sequence"}}},
    ),
}
#: The options that choose the loss, or its numbers, and where the trainer's own file has them.
OPTIONS = {
    ActorConfig: (
        "actor_rollout_ref.actor",
        """clip_ratio clip_ratio_low clip_ratio_high clip_ratio_c loss_agg_mode loss_scale_factor entropy_coeff tau_pos
        tau_neg use_kl_loss kl_loss_coef kl_loss_type ppo_epochs ppo_mini_batch_size""".split(),
    ),
    PolicyLossConfig: (
        "actor_rollout_ref.actor.policy_loss",
        "loss_mode clip_cov_ratio clip_cov_lb clip_cov_ub kl_cov_ratio ppo_kl_coef dro_beta".split(),
    ),
    AlgoConfig: (
        "algorithm",
        "adv_estimator gamma lam norm_adv_by_std_in_grpo use_kl_in_reward kl_penalty".split(),
    ),
    KLControlConfig: ("algorithm.kl_ctrl", "type kl_coef horizon target_kl".split()),
    RolloutCorrectionConfig: (
        "algorithm.rollout_correction",
        """rollout_is rollout_is_threshold rollout_is_batch_normalize rollout_rs rollout_rs_threshold bypass_mode
        loss_type""".split(),
    ),
}


def trainer_defaults() -> dict:
    """Return the options' values where a run starts: in the flattened configuration that verl ships."""
    shipped = OmegaConf.load(Path(verl.__file__).parent / "trainer/config/_generated_ppo_trainer.yaml")
    found = {}
    for config, (place, options) in OPTIONS.items():
        given = OmegaConf.select(shipped, place)
        found[config.__name__] = {option: given[option] for option in options}
    return found


def actor(options: dict) -> ActorConfig:
    """Return the configuration of an actor, at its defaults but for these options."""
    policy_loss = dict(options.get("policy_loss", {}))
    correction = RolloutCorrectionConfig(**policy_loss.pop("rollout_correction", {}))
    policy_loss = PolicyLossConfig(rollout_correction=correction, **policy_loss)
    required = {"strategy": "fsdp", "rollout_n": 1, "ppo_micro_batch_size_per_gpu": 1}
    return ActorConfig(**required | options | {"policy_loss": policy_loss})


class Recorder:
    """One batch of sequences, and what verl makes of it."""

    def __init__(self, inputs: dict):
        self.log_pi, self.log_old, self.log_ref = (torch.tensor(inputs[f"log_{name}"]) for name in ("pi", "old", "ref"))
        lengths = torch.tensor(inputs["lengths"])
        self.mask = torch.arange(self.log_pi.shape[1]) < lengths[:, None]
        self.group = np.array(inputs["group"])
        # The whole reward on each sequence's last token.
        reward = torch.tensor(inputs["reward"])[:, None]
        self.rewards = torch.zeros_like(self.log_pi).scatter(1, lengths[:, None] - 1, reward)

    def advantages(self, estimator: str, options: dict) -> tuple:
        """Return advantages and returns, [batch, tokens], computed as verl's compute_advantage asks for them."""
        config = AlgoConfig(**options)
        arguments = {"token_level_rewards": self.rewards.clone(), "response_mask": self.mask.long()}
        arguments |= {"index": self.group, "config": config}
        if estimator == "grpo":  # the one to which compute_advantage hands this option
            arguments |= {"norm_adv_by_std_in_grpo": config.norm_adv_by_std_in_grpo}
        return core_algos.get_adv_estimator_fn(estimator)(**arguments)

    def estimators(self) -> list[dict]:
        """Return the advantages of every estimator."""
        found = []
        for name, choices in ESTIMATORS.items():
            for options in choices:
                advantages, returns = self.advantages(name, options)
                case = {"estimator": name, "options": options, "advantages": advantages.tolist()}
                # Most give the advantages themselves as returns.
                found.append(case if torch.equal(advantages, returns) else case | {"returns": returns.tolist()})
        return found

    def kl_penalties(self) -> list[dict]:
        """Return each estimate of the divergence, token by token, and the gradient of its sum."""
        found = []
        for name in [name + suffix for name in KL_PENALTIES for suffix in ("", "+")]:
            log_pi = self.log_pi.clone().requires_grad_()
            value = core_algos.kl_penalty(log_pi, self.log_ref, name).where(self.mask, 0.0)
            (gradient,) = torch.autograd.grad(value.sum(), log_pi)
            found.append({"kl_penalty": name, "value": value.tolist(), "grad_log_pi": gradient.tolist()})
        return found

    def aggregations(self) -> list[dict]:
        """Return each mean of log_pi, and its gradient: the weight of every token."""
        share = {"dp_size": 2, "batch_num_tokens": 40, "global_batch_size": 24}
        choices = [*product(AGGREGATIONS, ({}, share)), ("seq-mean-token-sum-norm", {"loss_scale_factor": 8})]
        return [
            {"aggregation": mode, "options": options}
            | self.outputs(lambda log_pi: core_algos.agg_loss(log_pi, self.mask, mode, **options))  # noqa: B023
            for mode, options in choices
        ]

    def outputs(self, loss_of) -> dict:
        """Return a loss of the policy's log-probabilities, and its gradient."""
        log_pi = self.log_pi.clone().requires_grad_()
        loss = loss_of(log_pi)
        (gradient,) = torch.autograd.grad(loss, log_pi)
        assert loss.dtype == gradient.dtype == torch.float64
        return {"loss": loss.item(), "grad_log_pi": gradient.tolist()}

    def policy_loss(self, name: str, options: dict, aggregation: str, old: str) -> dict:
        """Return a policy loss with GRPO's advantages, and its gradient, on samples of the policy named."""
        advantages, _ = self.advantages("grpo", {})
        loss = self.outputs(
            lambda log_pi: core_algos.get_policy_loss_fn(name)(
                old_log_prob=getattr(self, old),
                log_prob=log_pi,
                advantages=advantages,
                response_mask=self.mask,
                loss_agg_mode=aggregation,
                config=actor(options),
                rollout_is_weights=None,
            )[0]
        )
        case = {"policy_loss": name, "samples_of": old, "aggregation": aggregation, "options": options}
        return case | {"advantages": advantages[:, 0].tolist()} | loss

    def policy_losses(self) -> list[dict]:
        """Return every policy loss off-policy, the plain ones on-policy too, and two under every aggregation."""
        found = []
        for name, choices in POLICY_LOSSES.items():
            for options in choices:
                found.append(self.policy_loss(name, options, "token-mean", "log_old"))
            found.append(self.policy_loss(name, choices[0], "token-mean", "log_pi"))
        for name, aggregation in product(("vanilla", "gspo"), AGGREGATIONS[1:]):
            found.append(self.policy_loss(name, {}, aggregation, "log_old"))
        return found

    def cases(self) -> list[dict]:
        """Return every case of this batch."""
        return self.estimators() + self.kl_penalties() + self.aggregations() + self.policy_losses()


def main() -> None:
    """Write the fixture to the path given."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    assert POLICY_LOSSES.keys() == core_algos.POLICY_LOSS_REGISTRY.keys()
    found = {
        "versions": shared.versions("verl", "tensordict", "transformers", "numpy", "torch"),
        "defaults": {config.__name__: shared.defaults(config, options) for config, (_, options) in OPTIONS.items()},
        "trainer_defaults": trainer_defaults(),
        "estimators": list(core_algos.ADV_ESTIMATOR_REGISTRY),
        "settings": {},
    }
    for name, inputs in shared.draws().items():
        found["settings"][name] = {"inputs": inputs, "cases": Recorder(inputs).cases()}
    shared.write(found, sys.argv[1])


if __name__ == "__main__":
    main()
