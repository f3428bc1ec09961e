"""The network of the names: the next token from the last few, and from what a wish knows of the text, if it is asked.

Tokens enter by a table for each place, summed; so every probability can be listed (:mod:`companion.automata`). The
length of the text and the state of an automaton enter by tables of their own, zero at first.
"""

from collections.abc import Mapping
from functools import partial
from math import sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import skip_init

from companion.automata import Automaton
from companion.validation import check_generator, check_positive_integers


class ContextNetwork(torch.nn.Module):
    """Logits of the next token, from the last ``order`` tokens: a module for a token sampler.

    Args:
        letters: A; the token A begins, ends and pads.
        generator: the source of the initial weights; nothing is drawn from global state.
        order: how many letters it looks back.
        width: number of hidden units.
        outputs: numbers it returns for each column; by default A + 1, logits.
        automaton: where given, the network is told the state that this has reached.
        max_length: where given, the network is told how many letters there are so far, at most this many.

    Raises ``ValueError`` for an automaton of another alphabet, and on rows of more letters than it may be told of.
    Source: language models of fixed context, Bengio et al. (2003). Used in chapter ``names-with-a-wish``.
    """

    def __init__(
        self,
        letters: int,
        generator: torch.Generator,
        *,
        order: int = 3,
        width: int = 64,
        outputs: int | None = None,
        automaton: Automaton | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        check_generator(generator)
        asked = {name: n for name, n in (("outputs", outputs), ("max_length", max_length)) if n is not None}
        check_positive_integers(letters=letters, order=order, width=width, **asked)
        if automaton is not None and automaton.letters != letters:
            raise ValueError(f"automaton reads {automaton.letters} letters; expected {letters}. Make one that does.")
        self.letters, self.order, self.automaton = letters, order, automaton
        draw = partial(torch.randn, generator=generator)
        self.tokens = torch.nn.Parameter(draw(order, letters + 1, width) / sqrt(order))
        layers = [skip_init(torch.nn.Linear, width, columns) for columns in (width, outputs or letters + 1)]
        for layer in layers:
            for parameter in layer.parameters():
                torch.nn.init.uniform_(parameter, -1 / sqrt(width), 1 / sqrt(width), generator=generator)
        self.rest = torch.nn.Sequential(torch.nn.GELU(), layers[0], torch.nn.GELU(), layers[1])
        self.wish = None if automaton is None else torch.nn.Parameter(torch.zeros(len(automaton.moves), width))
        self.length = None if max_length is None else torch.nn.Parameter(torch.zeros(max_length + 1, width))

    def with_weights(self, weights: Mapping[str, Tensor]) -> "ContextNetwork":
        """Take over weights by name, the rest staying as it is; ``ValueError`` for another name or shape."""
        own = self.state_dict()
        other = [name for name, value in weights.items() if name not in own or own[name].shape != value.shape]
        if other:
            raise ValueError(f"weights hold {', '.join(other)}; expected those of this network. Make one of that size.")
        self.load_state_dict(own | dict(weights))
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits after each token of rows that begin with the first: ``[batch, columns, A + 1]``."""
        contexts = self._after_begin(tokens).unfold(1, self.order, 1)
        states = None if self.automaton is None else self.automaton.states(tokens)
        return self._logits(contexts, states, torch.arange(tokens.shape[1]))

    def begin(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Any]:
        """Return the logits of the next token of rows, ``[batch, A + 1]``, and what :meth:`advance` needs to go on."""
        taken = torch.arange(tokens.shape[1]) < lengths[:, None]
        rows = torch.where(taken, tokens, self.letters)
        contexts = self._after_begin(rows).gather(1, lengths[:, None] - 1 + torch.arange(self.order))
        states = None if self.automaton is None else self.automaton.states(rows)[:, -1]
        return self._logits(contexts, states, lengths - 1), (contexts, states, lengths - 1)

    def advance(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Read one more token of each row, ``[batch]``: as :meth:`begin`."""
        contexts, states, places = cache
        contexts = torch.cat([contexts[:, 1:], tokens[:, None]], dim=1)
        if self.automaton is not None:
            states = self.automaton.after(states, tokens)
        places = places + 1
        if self.length is not None:
            places = places.clamp(max=len(self.length) - 1)  # of rows that have ended, which are read on with the rest
        return self._logits(contexts, states, places), (contexts, states, places)

    def table(self, length: int) -> Tensor:
        """Return log-probabilities after texts of ``length`` letters: see :class:`companion.automata.Law`."""
        places = self.letters ** torch.arange(min(length, self.order)).flip(0)
        known = torch.arange(self.letters ** len(places))[:, None] // places % self.letters
        contexts = torch.cat([torch.full((len(known), self.order - len(places)), self.letters), known], dim=1)
        states = None if self.wish is None else torch.arange(len(self.wish))
        return self._logits(contexts[:, None], states, torch.tensor(length)).log_softmax(dim=2)

    def _after_begin(self, tokens: Tensor) -> Tensor:
        return torch.cat([tokens.new_full((len(tokens), self.order - 1), self.letters), tokens], dim=1)

    def _logits(self, contexts: Tensor, states: Tensor | None, places: Tensor) -> Tensor:
        rows = (contexts + torch.arange(self.order) * (self.letters + 1)).reshape(-1, self.order)
        hidden = torch.nn.functional.embedding_bag(rows, self.tokens.flatten(0, 1), mode="sum")
        hidden = hidden.reshape(*contexts.shape[:-1], -1)
        if self.wish is not None:
            hidden = hidden + self.wish[states]
        if self.length is not None:
            most, room = int(places.max()), len(self.length) - 1
            if most > room:
                raise ValueError(f"A text has {most} letters; expected at most {room}. Raise max_length.")
            hidden = hidden + self.length[places]
        logits: Tensor = self.rest(hidden)
        return logits
