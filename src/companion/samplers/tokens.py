"""Token samplers: any causal module from tokens to logits, with an end of sequence that comes for sure.

A row of tokens is a prompt, the text that goes on from it, the token that ends it, and padding, which is the end token
again. The module maps rows ``[batch, columns]`` to logits ``[batch, columns, vocabulary]``; the logits at a column are
of the token in the next one. A step of a path is a token after the prompt, the end among them. Padding is no step:
there every per-step entry is zero, and ``steps`` says where a path ends. A text of the maximal length ends with
probability one, so that the probabilities of all texts sum to one. Used in chapter ``names-with-a-wish``.
"""

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from companion.plain import storable
from companion.samplers.batch import Batch, Fading, at, check_draw, check_fading, weights_of
from companion.validation import (
    check_counts,
    check_finite,
    check_generator,
    check_kind,
    check_minus_infinity_only,
    check_number,
    check_positive_integers,
    check_replay,
    check_shares,
    check_tensor,
    check_tokens,
)

#: From rows of tokens, ``[batch, columns]``, to logits of each next one, ``[batch, columns, vocabulary]``.
Model = Callable[[Tensor], Tensor]


@storable
@dataclass(frozen=True)
class Writing:
    """The behaviour of a :class:`TokenSampler`: who writes the texts of a batch.

    ``epsilon`` is the probability, at each token, of a uniform one in place of the writer's, and ``reference`` that,
    for each text, of the reference as its writer: numbers, or such as fade. ``temperature``, > 0, divides the writer's
    logits. Where ``refresh`` is not None the policy's copy writes, refreshed at iterations that are multiples of it.
    ``replayed`` is the share of each batch that comes from the store, up to iteration ``replay_until``; None replays to
    the end. Raises ``ValueError`` for a number out of range, or an end of what never begins.
    """

    epsilon: float | Fading = 0.0
    temperature: float = 1.0
    reference: float | Fading = 0.0
    refresh: int | None = None
    replayed: float = 0.0
    replay_until: int | None = None

    def __post_init__(self) -> None:
        check_fading("epsilon", self.epsilon, at_most=1)
        check_fading("reference", self.reference, at_most=1)
        check_number("temperature", self.temperature, above=0)
        check_replay(self.replayed, self.replay_until)
        if self.refresh is not None:
            check_positive_integers(refresh=self.refresh)


@dataclass(frozen=True, eq=False)
class TextStore:
    """Texts kept to be drawn again: ``tokens``, ``[texts, max_length + 2]``, int64, are whole rows, prompts included.

    ``weights``, ``[texts]``, floats >= 0, say how often each is drawn, in proportion; ``prompt``, ``[texts]``, int64,
    which of the sampler's prompts it goes on from, None where there is just one; the sampler checks that. Raises
    ``ValueError`` for rows that are no tokens, or no weights.
    """

    tokens: Tensor
    weights: Tensor
    prompt: Tensor | None = None

    def __post_init__(self) -> None:
        check_tokens("tokens", self.tokens, sys.maxsize)
        check_shares("weights of the store", self.weights, len(self.tokens))


class TokenSampler:
    """A model of texts to be fine-tuned, with its reference.

    Args:
        policy: the model to be trained, a module; in ``eval()`` where it has dropout, which would change its law.
        reference: the model of the prior; no gradient flows into it.
        log_reward: log r of whole rows: tokens ``[batch, max_length + 2]`` and their lengths ``[batch]``, the end
            included, to ``[batch]``; -inf where r = 0, which only some objectives take. It must not read what pads.
        end: the token that ends a text, and pads.
        max_length: most tokens of a text, its prompt included, without the first token of the row and the end.
        prompts: ``[conditions, columns]``, int64, padded with ``end``; by default one prompt, the token ``end`` alone.
        group_size: texts for each prompt that is drawn; a batch is a multiple of it.
        store: texts to be replayed.
        lagged: whether to keep a copy of the policy, for behaviours with ``refresh``.

    Where a model has ``begin(tokens, lengths)``, which returns the logits of the next token, ``[batch, vocabulary]``,
    and a cache, and ``advance(tokens, cache)``, which reads one more token of each row and returns the same, texts are
    drawn with these; rows that have ended are read on, and what is said of them is not looked at. Raises ``ValueError``
    for prompts that are too long or outside the vocabulary; a model that returns another shape, looks ahead, or says
    otherwise from its cache; models of two vocabularies; a store of other rows; and, for a copy, a policy that
    :meth:`parameters` refuses. Source: Venkatraman et al. (2024), who train token models by RTB.
    """

    def __init__(
        self,
        policy: Model,
        reference: Model,
        log_reward: Callable[[Tensor, Tensor], Tensor],
        *,
        end: int,
        max_length: int,
        prompts: Tensor | None = None,
        group_size: int = 1,
        store: TextStore | None = None,
        lagged: bool = False,
    ) -> None:
        check_counts(end=end)
        check_positive_integers(max_length=max_length, group_size=group_size)
        for name, value in (("policy", policy), ("reference", reference), ("log_reward", log_reward)):
            if not callable(value) or isinstance(value, type):
                raise ValueError(f"{name} is {value!r}; expected a function or a module, made. Pass one.")
        self.policy, self.reference, self.log_reward = policy, reference, log_reward
        self.end, self.max_length, self.group_size, self.store = end, max_length, group_size, store
        self.prompts, self.conditional = torch.full((1, 1), end) if prompts is None else prompts, prompts is not None
        #: How many tokens there are.
        self.vocabulary = self._vocabulary()
        check_tokens("prompts", self.prompts, self.vocabulary)
        check_tokens("end", torch.tensor([[end]]), self.vocabulary)
        if self.prompts.shape[1] > max_length + 1:
            expected = f"at most {max_length + 1}, max_length and the first token. Shorten them, or raise max_length."
            raise ValueError(f"prompts has {self.prompts.shape[1]} columns; expected {expected}")
        #: Tokens of each prompt, ``[conditions]``.
        self.prompt_lengths = ((self.prompts != end) * torch.arange(self.prompts.shape[1])).amax(dim=1) + 1
        #: The most steps that a path has: the columns of a batch.
        self.steps = max_length + 2 - int(self.prompt_lengths.min())
        for name, model in (("policy", policy), ("reference", reference)):
            self._check_cache(name, model)
        self.copy = _untrained_copy(policy) if lagged and self.parameters() else None
        self._asked = False
        if store is not None:
            check_kind("store", store, TextStore)
            self.lengths(store.tokens, store.prompt)

    def parameters(self) -> list[Tensor]:
        """Return the tensors to be trained. Raises ``ValueError`` as :func:`companion.samplers.batch.weights_of`."""
        return weights_of(self.policy, self.reference, [])

    def constants(self) -> dict[str, object]:
        """Return what else the sampler is made of, by name: a checkpoint with another is that of another run."""
        names = ("reference", "log_reward", "end", "max_length", "prompts", "group_size", "store")
        return {name: getattr(self, name) for name in names}

    def draw(self, n: int, generator: torch.Generator, behaviour: Writing | None = None, iteration: int = 0) -> Batch:
        """Draw ``n`` texts, ``round(share * n)`` of them from the store, where any are replayed, the rest fresh.

        ``group`` of the batch is the prompt of each text, where the sampler has prompts; ``states``,
        ``[batch, steps + 1]``, is the last token of the prompt, then the tokens. At an iteration at which the behaviour
        refreshes the copy, that comes first. Raises ``ValueError`` for a behaviour of another sampler, or one that
        wants a copy or a store that is not there; for a number of fresh texts that is no multiple of a group; for
        logits that are NaN; and for a log-reward that is NaN or +inf, or looks past the end.
        """
        behaviour = Writing() if behaviour is None else behaviour
        check_draw(n, generator, behaviour, Writing)
        if behaviour.refresh is not None:
            self._refresh(behaviour.refresh, iteration)
        if behaviour.replayed and self.store is None:
            raise ValueError("replayed is above 0, but there is no store; expected one. Pass resampled_prior_texts'.")
        until = behaviour.replay_until
        old = round(behaviour.replayed * n) if until is None or iteration < until else 0
        parts = [self._fresh(n - old, generator, behaviour, iteration)] if old < n else []
        parts += [self._stored(old, generator)] if old else []
        tokens, prompt = (torch.cat(column) for column in zip(*parts, strict=True))
        return self._scored(tokens, prompt, None if old else behaviour, iteration)

    def lengths(self, tokens: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Return the number of tokens of each row up to its end, ``[rows]``: the first end token after its prompt.

        Raises ``ValueError`` for rows of another width, other tokens, prompt or no end, and a ``prompt`` not there.
        """
        check_tokens("tokens", tokens, self.vocabulary)
        prompt = self._prompt_of(len(tokens), prompt)
        after = torch.arange(tokens.shape[1]) >= self.prompt_lengths[prompt][:, None]
        ends = (tokens == self.end) & after
        wide = tokens.shape[1] == self.max_length + 2
        if not wide or not bool((ends.any(dim=1) & ((tokens == self._begun(prompt)) | after).all(dim=1)).all()):
            expected = f"[rows, {self.max_length + 2}], each its prompt, then a text with token {self.end} at its end"
            mend = "Pad with it."
            raise ValueError(f"tokens is {tuple(tokens.shape)}, of other rows; expected {expected}. {mend}")
        return ends.int().argmax(dim=1) + 1

    def log_prob(self, model: Model, tokens: Tensor, prompt: Tensor | None = None) -> Tensor:
        """Return the log-probability of each token after the prompt, with the end: ``[rows, steps]``, 0 in padding.

        Arguments and errors as in :meth:`lengths`. Keeps gradients.
        """
        lengths, prompt = self.lengths(tokens, prompt), self._prompt_of(len(tokens), prompt)
        return self._picked(self._law(model(tokens[:, :-1])), tokens, prompt, lengths)

    def _fresh(self, n: int, generator: torch.Generator, behaviour: Writing, iteration: int) -> tuple[Tensor, Tensor]:
        if n % self.group_size:
            raise ValueError(f"n is {n} fresh texts; expected a multiple of {self.group_size}. Draw whole groups.")
        prompt = torch.randint(len(self.prompts), (n // self.group_size,), generator=generator)
        prompt = prompt.repeat_interleave(self.group_size)
        share = at(behaviour.reference, iteration)
        borrowed = torch.rand(n, generator=generator) < share
        own = self.policy if behaviour.refresh is None else self.copy
        writers = ((own, behaviour, prompt[~borrowed]), (self.reference, Writing(), prompt[borrowed]))
        with torch.no_grad():
            written = [self._written(*writer, generator, iteration) for writer in writers if len(writer[2])]
        return torch.cat(written), torch.cat([prompt[~borrowed], prompt[borrowed]])

    def _written(
        self, model: Any, behaviour: Writing, prompt: Tensor, generator: torch.Generator, iteration: int
    ) -> Tensor:
        tokens, place = self._begun(prompt), self.prompt_lengths[prompt]
        alive, cached = torch.ones(len(prompt), dtype=torch.bool), _cached(model)
        logits, cache = model.begin(tokens[:, :-1], place) if cached else (_after(model, tokens, place), None)
        while True:
            chances = torch.where(alive[:, None], _mixed(logits, behaviour, iteration).exp(), 1.0)
            check_finite("the probability of the next token", chances, "Lower the rate of training.")
            drawn = torch.multinomial(chances, 1, generator=generator).squeeze(1)
            drawn = torch.where(alive & (place <= self.max_length), drawn, self.end)
            tokens = torch.where(torch.arange(tokens.shape[1]) == place[:, None], drawn[:, None], tokens)
            alive = alive & (drawn != self.end)
            place = place + alive.long()
            if not bool(alive.any()):
                return tokens
            logits, cache = model.advance(drawn, cache) if cached else (_after(model, tokens, place), None)

    def _begun(self, prompt: Tensor) -> Tensor:
        tokens = torch.full((len(prompt), self.max_length + 2), self.end)
        tokens[:, : self.prompts.shape[1]] = self.prompts[prompt]
        return tokens

    def _stored(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        assert self.store is not None
        index = torch.multinomial(self.store.weights, n, replacement=True, generator=generator)
        return self.store.tokens[index], self._prompt_of(len(self.store.tokens), self.store.prompt)[index]

    def _scored(self, tokens: Tensor, prompt: Tensor, behaviour: Writing | None, iteration: int) -> Batch:
        logits, lengths = self.policy(tokens[:, :-1]), self.lengths(tokens, prompt)
        log_pi = self._picked(self._law(logits), tokens, prompt, lengths)
        with torch.no_grad():
            log_ref = self.log_prob(self.reference, tokens, prompt)
            log_reward = self._ask(tokens, lengths).to(log_pi)
            log_behaviour = None
            if behaviour is not None:
                written = logits if behaviour.refresh is None or self.copy is None else self.copy(tokens[:, :-1])
                own = self._picked(self._law(_mixed(written, behaviour, iteration)), tokens, prompt, lengths)
                log_behaviour = _of_either(own, log_ref, at(behaviour.reference, iteration))
        columns = self.prompt_lengths[prompt][:, None] - 1 + torch.arange(self.steps + 1)
        states = tokens.gather(1, columns.minimum(lengths[:, None] - 1))
        group, steps = prompt if self.conditional else None, lengths - self.prompt_lengths[prompt]
        return Batch(log_pi, log_ref, log_reward, log_behaviour, steps=steps, group=group, states=states)

    def _law(self, logits: Tensor) -> Tensor:
        """Log-probabilities of each next token; after the longest text, of which it is the last column, the end's."""
        certain = torch.full_like(logits[:, -1:], float("-inf"))
        certain[..., self.end] = 0.0
        return torch.cat([logits[:, :-1].log_softmax(dim=2), certain], dim=1)

    def _picked(self, law: Tensor, tokens: Tensor, prompt: Tensor, lengths: Tensor) -> Tensor:
        """What a law says of the tokens that are there, ``[rows, steps]``, from the end of the prompt on."""
        columns = self.prompt_lengths[prompt][:, None] + torch.arange(self.steps)
        of_tokens = law.gather(2, tokens[:, 1:, None]).squeeze(2)
        picked = of_tokens.gather(1, (columns - 1).clamp(max=of_tokens.shape[1] - 1))
        return torch.where(columns < lengths[:, None], picked, 0.0)

    def _prompt_of(self, rows: int, prompt: Tensor | None) -> Tensor:
        if prompt is None and len(self.prompts) == 1:
            return torch.zeros(rows, dtype=torch.int64)
        whole = isinstance(prompt, Tensor) and prompt.dtype == torch.int64 and prompt.shape == (rows,)
        if prompt is None or not whole or not bool(((prompt >= 0) & (prompt < len(self.prompts))).all()):
            expected = f"int64 [{rows}], 0 to {len(self.prompts) - 1}. Say which each row has."
            raise ValueError(f"prompt is {prompt!r}; expected {expected}")
        return prompt

    def _ask(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """log r of rows; the first time also with other tokens beyond the end, which must change nothing."""
        answer = self.log_reward(tokens, lengths)
        check_tensor("log_reward", answer, (len(lengths),), f"floats, ({len(lengths)},). Return one for each.")
        check_minus_infinity_only("log_reward", answer)
        if not self._asked:
            beyond = torch.arange(tokens.shape[1]) >= lengths[:, None]
            other = self.log_reward(torch.where(beyond, (self.end + 1) % self.vocabulary, tokens), lengths)
            if not torch.equal(answer, other):
                raise ValueError("log_reward looks past the end of a text; expected no change there. Use the lengths.")
            self._asked = bool(beyond.any())
        return answer

    @torch.no_grad()
    def _vocabulary(self) -> int:
        """How many tokens the models know. Refuses logits of another shape, and a model that looks ahead."""
        sizes, tokens = set(), torch.zeros(1, self.max_length + 1, dtype=torch.int64)
        other = tokens.clone()
        for name, model in (("policy", self.policy), ("reference", self.reference)):
            logits = model(tokens)
            shape, rule = (1, tokens.shape[1], None), "[batch, columns, vocabulary]. Return all columns."
            check_tensor(f"{name}'s answer", logits, shape, rule)
            other[:, -1] = 1 % logits.shape[2]
            if not _alike(model(other)[:, :-1], logits[:, :-1]):
                raise ValueError(f"{name} looks ahead: later tokens change its logits; expected it causal. Mask them.")
            sizes.add(logits.shape[2])
        if len(sizes) > 1:
            raise ValueError(f"policy and reference know {sizes} tokens; expected as many. Pass models that fit.")
        return sizes.pop()

    @torch.no_grad()
    def _check_cache(self, name: str, model: Any) -> None:
        """Refuse a cache from which other logits come than from whole rows: after each prompt, and a token later."""
        rows = (self.prompt_lengths <= self.max_length).nonzero().squeeze(1)
        if not _cached(model) or not len(rows):
            return
        tokens, place = self._begun(rows), self.prompt_lengths[rows]
        tokens[torch.arange(len(rows)), place] = drawn = torch.full_like(place, (self.end + 1) % self.vocabulary)
        first, cache = model.begin(tokens[:, :-1], place)
        whole = model(tokens[:, :-1])[torch.arange(len(rows))[:, None], place[:, None] - torch.tensor([1, 0])]
        if not _alike(torch.stack([first, model.advance(drawn, cache)[0]], dim=1), whole):
            raise ValueError(f"{name} returns other logits from begin and advance; expected those of a call. Mend it.")

    @torch.no_grad()
    def _refresh(self, every: int, iteration: int) -> None:
        """Copy each weight and buffer by name, tied ones and those that no checkpoint keeps too, where it is time."""
        if self.copy is None:
            raise ValueError("refresh is set, but there is no copy of the policy; expected one. Pass lagged=True.")
        if iteration % every == 0:
            for name, value in self.copy.named_buffers():
                value.copy_(attrgetter(name)(self.policy))


def resampled_prior_texts(sampler: TokenSampler, n: int, generator: torch.Generator, *, beta: float = 1.0) -> TextStore:
    """Draw ``n`` texts of a sampler's reference, to be replayed in proportion to r(x)^beta within each prompt.

    As ``n`` grows the law of a replayed text tends to p*(x). Raises ``ValueError`` for ``beta <= 0``, and where no text
    of some prompt has r > 0. Source: as :func:`companion.samplers.diffusion.resampled_prior_paths`.
    """
    check_number("beta", beta, above=0)
    check_positive_integers(n=n)
    check_generator(generator)
    tokens, prompt = sampler._fresh(n, generator, Writing(reference=1.0), 0)
    log_reward = beta * sampler._ask(tokens, sampler.lengths(tokens, prompt)).detach()
    weights = torch.zeros_like(log_reward)
    for condition in range(len(sampler.prompts)):
        of_it = prompt == condition
        if not bool(log_reward[of_it].isfinite().any()):
            given = f"Of {int(of_it.sum())} texts of prompt {condition} none has a reward"
            raise ValueError(f"{given}; expected some. Draw more texts.")
        weights[of_it] = log_reward[of_it].softmax(dim=0)
    kept = weights > 0
    return TextStore(tokens[kept], weights[kept], prompt[kept])


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4, equal_nan=True)  # NaN is refused where it is drawn from


def _cached(model: object) -> bool:
    return hasattr(model, "begin") and hasattr(model, "advance")


def _after(model: Model, tokens: Tensor, place: Tensor) -> Tensor:
    """A model's logits of the next token of each row, ``[rows, vocabulary]``, from the rows as they are so far."""
    return model(tokens[:, : int(place.max())])[torch.arange(len(place)), place - 1]


def _mixed(logits: Tensor, behaviour: Writing, iteration: int) -> Tensor:
    """The writer's own law of the next token as logarithms, the last dimension the vocabulary."""
    law, epsilon = (logits / behaviour.temperature).log_softmax(dim=-1), at(behaviour.epsilon, iteration)
    return (law.exp() * (1 - epsilon) + epsilon / law.shape[-1]).log() if epsilon else law


def _of_either(own: Tensor, other: Tensor, share: float) -> Tensor:
    """Log-probabilities, step by step, of texts that ``other`` wrote with probability ``share``, else ``own``."""
    if share in (0.0, 1.0):
        return other if share else own
    shares = own.new_tensor([1 - share, share]).log()
    so_far = torch.logaddexp(shares[0] + own.cumsum(dim=1), shares[1] + other.cumsum(dim=1))
    return so_far.diff(dim=1, prepend=torch.zeros_like(so_far[:, :1]))


def _untrained_copy(policy: Model) -> Any:
    """A copy whose weights are buffers: a checkpoint keeps these, and nothing trains them."""
    made = copy.deepcopy(policy)
    for module in made.modules():  # type: ignore[attr-defined]
        for name, value in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            delattr(module, name)
            module.register_buffer(name, value.detach().clone())
    return made
