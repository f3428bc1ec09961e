"""Toy models of texts: a causal transformer with a key-value cache, a recurrent network, a table of prefixes."""

import torch
from torch import Tensor

from companion.validation import check_generator


def drawn_anew(module: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """Draw all weights of a module from a generator, normal, in float64; small, or one text would have all the mass."""
    check_generator(generator)
    for parameter in module.double().parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return module


class Transformer(torch.nn.Module):
    """One head of causal attention over tokens and their places; it is told the columns that it may have."""

    def __init__(self, vocabulary: int, columns: int, generator: torch.Generator, width: int = 4):
        super().__init__()
        self.token, self.place = torch.nn.Embedding(vocabulary, width), torch.nn.Embedding(columns, width)
        self.mixed, self.out = torch.nn.Linear(width, 3 * width, bias=False), torch.nn.Linear(width, vocabulary)
        self.register_buffer("causal", torch.ones(columns, columns, dtype=torch.bool).tril(), persistent=False)
        drawn_anew(self, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits after each column, ``[batch, columns, vocabulary]``."""
        columns = tokens.shape[1]
        hidden = self.token(tokens) + self.place.weight[:columns]
        queries, keys, values = self.mixed(hidden).chunk(3, dim=2)
        return self.answer(hidden, queries, keys, values, self.causal[:columns, :columns])

    def answer(self, hidden: Tensor, queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """Logits of what attends to the keys that it has seen."""
        scores = (queries @ keys.transpose(1, 2)).masked_fill(~seen, float("-inf"))
        return self.out(torch.tanh(hidden + scores.softmax(dim=2) @ values))

    def begin(self, tokens: Tensor, lengths: Tensor):
        """Logits of the next token, ``[batch, vocabulary]``, and the cache: keys, values, and what was read."""
        hidden = self.token(tokens) + self.place.weight[: tokens.shape[1]]
        keys, values = self.mixed(hidden).chunk(3, dim=2)[1:]
        return self.logits(tokens.gather(1, lengths[:, None] - 1), lengths - 1, keys, values)

    def advance(self, tokens: Tensor, cache):
        """Read one more token of each row; rows that have ended stay at the last column."""
        keys, values, places = cache
        return self.logits(tokens[:, None], (places + 1).clamp(max=keys.shape[1] - 1), keys, values)

    def logits(self, last: Tensor, places: Tensor, keys: Tensor, values: Tensor):
        """Logits after the last tokens, read at their places."""
        hidden = self.token(last) + self.place(places)[:, None]
        queries, key, value = self.mixed(hidden).chunk(3, dim=2)
        here = (torch.arange(keys.shape[1]) == places[:, None])[:, :, None]
        keys, values = torch.where(here, key, keys), torch.where(here, value, values)
        seen = torch.arange(keys.shape[1]) <= places[:, None, None]
        return self.answer(hidden, queries, keys, values, seen)[:, 0], (keys, values, places)


class Recurrent(torch.nn.Module):
    """A gated recurrent network whose answers are the embeddings, tied, read again."""

    def __init__(self, vocabulary: int, generator: torch.Generator, width: int = 4):
        super().__init__()
        self.token, self.read = torch.nn.Embedding(vocabulary, width), torch.nn.GRU(width, width, batch_first=True)
        self.out = torch.nn.Linear(width, vocabulary, bias=False)
        self.out.weight = self.token.weight
        drawn_anew(self, generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits after each column."""
        return self.out(self.read(self.token(tokens))[0])


class Prefixes(torch.nn.Module):
    """A table of logits for each text so far, of A letters: any law of texts at all. The token A begins and ends."""

    def __init__(self, letters: int, max_length: int, outputs: int | None = None):
        super().__init__()
        self.letters = letters
        rows = sum(letters**length for length in range(max_length + 1))
        self.table = torch.nn.Parameter(torch.zeros(rows, outputs or letters + 1, dtype=torch.float64))

    def prefixes(self, tokens: Tensor) -> Tensor:
        """The number of what stands in each row up to each column; 0 is nothing yet, and an end changes nothing."""
        number, found = torch.zeros_like(tokens[:, 0]), []
        for column in tokens.unbind(dim=1):
            number = torch.where(column < self.letters, number * self.letters + column + 1, number)
            found.append(number.clamp(max=len(self.table) - 1))
        return torch.stack(found, dim=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits after each column."""
        return self.table[self.prefixes(tokens)]


class Ahead(torch.nn.Module):
    """A value of each state of a batch, from the tokens that its states are: zero at first."""

    def __init__(self, letters: int, max_length: int):
        super().__init__()
        self.inner = Prefixes(letters, max_length, outputs=1)

    def forward(self, batch) -> Tensor:
        """``[batch, steps + 1]``."""
        return self.inner(batch.states).squeeze(2)
