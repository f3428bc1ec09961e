"""Record TRL's GRPO, RLOO, DPO and A*-PO losses of the sequences of shared.py, and the defaults of their options.

The trainers are TRL's own, built as a user builds them, with a model of a few weights. What a model and a sampler
would answer is put in their place: a model that returns the log-probabilities given, a generator that returns tokens
of the lengths given. Rewards, advantages, penalties and losses are then computed by the trainers, in float64.

    python record_trl.py OUT.json
"""

import logging
import os
import sys
import tempfile
import warnings
from itertools import product
from types import SimpleNamespace

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "TQDM_DISABLE": "1"}

import shared
import torch
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.a2po import A2POConfig, A2POTrainer
from trl.trainer.utils import split_tensor_dict

PAD, EOS, TOKEN, FIRST_PROMPT = range(4)
WORDS = ("pad", "eos", "token", "first", "second", "third")
MAX_COMPLETION_LENGTH = 8  # what dr_grpo divides by; longer than every sequence

#: The options that choose the loss, or its numbers.
OPTIONS = {
    GRPOConfig: """beta num_generations num_iterations max_completion_length loss_type scale_rewards
        importance_sampling_level epsilon epsilon_high delta use_bias_correction_kl multi_objective_aggregation
        reward_weights mask_truncated_completions top_entropy_quantile entropy_coef off_policy_mask_threshold
        sapo_temperature_pos sapo_temperature_neg vespo_k_pos vespo_lambda_pos vespo_k_neg vespo_lambda_neg
        vllm_importance_sampling_correction vllm_importance_sampling_mode vllm_importance_sampling_clip_min
        vllm_importance_sampling_clip_max temperature steps_per_generation disable_dropout sync_ref_model
        ref_model_mixup_alpha ref_model_sync_steps gradient_accumulation_steps learning_rate""".split(),
    RLOOConfig: """beta num_generations num_iterations max_completion_length epsilon epsilon_high
        normalize_advantages reward_clip_range reward_weights mask_truncated_completions temperature
        steps_per_generation disable_dropout sync_ref_model ref_model_mixup_alpha ref_model_sync_steps
        learning_rate""".split(),
    DPOConfig: """beta loss_type loss_weights label_smoothing f_divergence_type f_alpha_divergence_coef ld_alpha
        use_weighting discopop_tau max_length truncation_mode precompute_ref_log_probs disable_dropout sync_ref_model
        ref_model_mixup_alpha ref_model_sync_steps learning_rate""".split(),
    A2POConfig: """beta1 beta2 num_value_samples filter_all_incorrect max_completion_length reward_weights temperature
        learning_rate""".split(),
}


class Given(torch.nn.Module):
    """In a language model's place: returns the log-probabilities given, whatever the tokens, and generates those."""

    is_gradient_checkpointing = False

    def __init__(self, log_p: torch.Tensor, generated: list[torch.Tensor] = ()):
        super().__init__()
        self.log_p, self.generated = log_p, list(generated)

    def forward(self, input_ids, attention_mask, labels=None, **_):
        """Return TRL's fused output where there are labels, and otherwise logits over the vocabulary."""
        length = self.log_p.shape[1]
        real = (attention_mask if labels is None else labels != -100)[:, -length:].bool()
        if labels is None:
            return SimpleNamespace(logits=self.logits(input_ids[:, -length:], real))
        # TRL's head leaves zeros where nothing is predicted, and has one column fewer than there are tokens.
        log_p = torch.nn.functional.pad(self.log_p.where(real, 0.0), (input_ids.shape[1] - 1 - length, 0))
        unused = torch.zeros_like(log_p)
        return SimpleNamespace(log_probs=log_p, entropy=unused, mean_logits=unused, is_top1=unused.bool())

    def logits(self, tokens, real):
        """Return normalised logits that give the tokens their log-probability, and one other token all the rest."""
        log_p = self.log_p.where(real, -1.0)
        logits = torch.full((*tokens.shape, len(WORDS)), -1e4).scatter(-1, tokens[..., None], log_p[..., None])
        logits = logits.scatter(-1, (tokens[..., None] + 1) % len(WORDS), torch.log1p(-log_p.exp())[..., None])
        return torch.nn.functional.pad(logits, (0, 0, 0, 1))  # what predicts the token after the last, unused

    def generate(self, **_):
        """Return the next tokens given."""
        return self.generated.pop(0)


class Recorder:
    """One batch of sequences, and what TRL's trainers make of it."""

    def __init__(self, inputs: dict, folder: str):
        self.inputs, self.folder = inputs, folder
        self.log_pi, self.log_old, self.log_ref = (torch.tensor(inputs[f"log_{name}"]) for name in ("pi", "old", "ref"))
        self.batch, self.group_size = len(inputs["lengths"]), inputs["group"].count(0)
        self.completions = [[TOKEN] * (length - 1) + [EOS] for length in inputs["lengths"]]
        self.prompts = [WORDS[FIRST_PROMPT + group] for group in inputs["group"]]
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="token")),
            pad_token="pad",
            eos_token="eos",
            unk_token="token",
            padding_side="left",
        )

    def build(self, trainer: type, config: type, data: dict, options: dict, **arguments):
        """Return a trainer as its constructor leaves it."""
        return trainer(
            model=LlamaForCausalLM.from_pretrained(self.folder),
            args=config(
                output_dir=self.folder,
                per_device_train_batch_size=self.batch,
                use_cpu=True,
                bf16=False,
                report_to="none",
                **options,
            ),
            train_dataset=Dataset.from_dict(data),
            processing_class=self.tokenizer,
            **arguments,
        )

    def outputs(self, trainer, *micro_batches: tuple) -> dict:
        """Return the policy's loss, summed over micro-batches (rows, what was prepared of them), and its gradient."""
        log_pi = self.log_pi.clone().requires_grad_()
        loss = sum(trainer.compute_loss(Given(log_pi[rows]), prepared) for rows, prepared in micro_batches)
        (gradient,) = torch.autograd.grad(loss, log_pi)
        assert loss.dtype == gradient.dtype == torch.float64
        return {"loss": loss.item(), "grad_log_pi": gradient.tolist()}

    def online(self, trainer: type, config: type, *, old: str, **options) -> dict:
        """Return the advantages, the loss and its gradient, of GRPO or RLOO, on samples of the policy named."""
        trainer = self.build(
            trainer,
            config,
            {"prompt": self.prompts},
            options
            | {
                "num_generations": self.group_size,
                "max_completion_length": MAX_COMPLETION_LENGTH,
                # On the policy's own samples GRPO keeps no log-probabilities of theirs.
                "num_iterations": 2 if old == "log_old" else 1,
            },
            reward_funcs=lambda **_: self.inputs["reward"],
        )
        answer = self.completions, None
        trainer._generate_single_turn = lambda *_: answer if isinstance(trainer, GRPOTrainer) else answer[0]
        trainer.model, trainer.ref_model = Given(getattr(self, old)), Given(self.log_ref)
        # The training loop says how many there are, and splits what was prepared.
        trainer.current_gradient_accumulation_steps = count = trainer.args.gradient_accumulation_steps
        prepared = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in self.prompts])
        micro_batches = zip(torch.arange(self.batch).chunk(count), split_tensor_dict(prepared, count), strict=True)
        case = {"samples_of": old, "options": options, "advantages": prepared["advantages"].tolist()}
        return case | self.outputs(trainer, *micro_batches)

    def grpo(self) -> list[dict]:
        """Return GRPO's cases: every combination off-policy, some on-policy, and TRL's further losses once."""
        losses, levels = ("grpo", "dapo", "dr_grpo", "bnpo"), ("token", "sequence")
        penalties = ({"beta": 0.0}, *({"beta": 0.3, "use_bias_correction_kl": it} for it in (False, True)))
        found = []
        for loss, level, penalty in product(losses, levels, penalties):
            for old, scale in (("log_old", "group"), ("log_old", "batch"), ("log_old", "none"), ("log_pi", "group")):
                options = {"loss_type": loss, "importance_sampling_level": level, "scale_rewards": scale} | penalty
                found.append(self.online(GRPOTrainer, GRPOConfig, old=old, **options))
        for options in (
            {},
            *({"loss_type": loss, "gradient_accumulation_steps": 2} for loss in losses),
            {"loss_type": "grpo", "epsilon_high": 0.28},
            {"loss_type": "grpo", "delta": 1.5},
            {"loss_type": "grpo", "off_policy_mask_threshold": 0.25},
            {"loss_type": "cispo"},
            {"loss_type": "cispo", "epsilon_high": 2.0},
            {"loss_type": "sapo"},
            {"loss_type": "vespo"},
            {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        ):
            found.append(self.online(GRPOTrainer, GRPOConfig, old="log_old", **options))
        return [{"objective": "grpo"} | case for case in found]

    def rloo(self) -> list[dict]:
        """Return RLOO's cases, the one as shipped first."""
        found = []
        chosen = ({}, {"beta": 0.0}, {"beta": 0.3}, {"beta": 0.3, "normalize_advantages": True})
        for old, options in product(("log_old", "log_pi"), chosen):
            found.append(self.online(RLOOTrainer, RLOOConfig, old=old, **options))
        return [{"objective": "rloo"} | case for case in found]

    def dpo(self) -> list[dict]:
        """Return DPO's cases, of the sequences in pairs: the first of each is chosen, the second rejected."""
        order = [*range(0, self.batch, 2), *range(1, self.batch, 2)]
        examples = [
            {"prompt_ids": [FIRST_PROMPT], "chosen_ids": chosen, "rejected_ids": rejected}
            for chosen, rejected in zip(self.completions[::2], self.completions[1::2], strict=True)
        ]
        data = {"prompt": ["first"], "chosen": ["token"], "rejected": ["eos"]}
        found = []
        for loss, beta in product(("sigmoid", "ipo", "sigmoid_norm", "sppo_hard"), (0.1, 0.3)):
            options = {"loss_type": loss, "beta": beta}
            trainer = self.build(DPOTrainer, DPOConfig, data, options)
            trainer.ref_model = Given(self.log_ref[order])
            prepared = trainer.data_collator(examples)
            found.append({"objective": "dpo", "options": options} | self.outputs(trainer, (order, prepared)))
        return found

    def a2po(self) -> list[dict]:
        """Return A*-PO's cases: a group's rewards give its prompt's optimal value; then each sequence is regressed."""
        prompts = sorted(set(self.prompts), key=WORDS.index)
        prompt_ids = torch.tensor([[WORDS.index(prompt)] for prompt in self.prompts])
        padded = torch.nn.utils.rnn.pad_sequence(map(torch.tensor, self.completions), batch_first=True)
        generated = torch.cat([prompt_ids, padded], dim=1)
        found = []
        for options in ({}, {"beta1": 0.25, "beta2": 0.3}):
            arguments = {"num_value_samples": self.group_size, "filter_all_incorrect": False}
            trainer = self.build(
                A2POTrainer,
                A2POConfig,
                {"prompt": prompts},
                options | arguments,
                reward_funcs=lambda **_: self.inputs["reward"],
            )
            trainer.ref_model, trainer.model = Given(self.log_ref, [generated]), Given(self.log_pi, [generated])
            trainer._estimate_optimal_values()
            prepared = trainer._prepare_inputs([{"prompt": prompt} for prompt in self.prompts])
            values = {
                "optimal_value": [trainer._optimal_values[prompt] for prompt in prompts],
                # TRL rounds the values to single precision before it subtracts them.
                "rounded_value": prepared["v_star"].double().tolist(),
            }
            case = {"objective": "a2po", "options": options} | values
            found.append(case | self.outputs(trainer, (slice(None), prepared)))
        return found

    def cases(self) -> list[dict]:
        """Return every case of this batch."""
        return self.grpo() + self.rloo() + self.dpo() + self.a2po()


def main() -> None:
    """Write the fixture to the path given."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*gradient_checkpointing` is deprecated", FutureWarning)  # TRL's own default
    logging.getLogger("trl").setLevel(logging.ERROR)  # its advice against some combinations, once for each case
    disable_progress_bars()
    disable_progress_bar()
    found = {
        "versions": shared.versions("trl", "transformers", "accelerate", "torch"),
        "defaults": {config.__name__: shared.defaults(config, options) for config, options in OPTIONS.items()},
        "constants": {"max_completion_length": MAX_COMPLETION_LENGTH},
        "settings": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1}
        # TRL ends a completion at what the model calls an end, too.
        special = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
        LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), **sizes, **special)).save_pretrained(folder)
        torch.set_default_dtype(torch.float64)
        for name, inputs in shared.draws().items():
            found["settings"][name] = {"inputs": inputs, "cases": Recorder(inputs, folder).cases()}
    shared.write(found, sys.argv[1])


if __name__ == "__main__":
    main()
