"""What the recordings share: the numbers that go in (TRL and verl), and the file that comes out."""

import json
import random
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

#: The most by which a token's log-probability under the behaviour and under the reference differs from the policy's:
#: enough to meet a clipped ratio of either sign, verl's dual clip (a ratio of 3) and its cap on k3 (a value of 10).
BEHAVIOUR_SPREAD = 1.5
REFERENCE_SPREAD = 4.0


def draws() -> dict[str, dict]:
    """Return two batches of sequences of unequal lengths, [batch] and [batch, tokens], zero past a sequence's end.

    Every number is exact in binary, in single precision too. One group has equal rewards, so no spread to divide by.
    The seeds are the first at which tokens and sequences lie on both sides of every clip: tests/test_peers.py.
    """
    return {
        "pairs": _batch(1457, lengths=[3, 5, 4, 1, 2, 2], rewards=[1.0, -0.25, 0.5, 0.5, 0.0, 1.75], group_size=2),
        "fours": _batch(
            33,
            lengths=[6, 2, 4, 1, 3, 3, 5, 6],
            rewards=[1.0, 0.0, 0.0, 1.0, 0.25, -0.5, 2.0, 0.75],
            group_size=4,
        ),
    }


def _batch(seed: int, *, lengths: list[int], rewards: list[float], group_size: int) -> dict:
    generator = random.Random(seed)
    batch = {
        "group": [i // group_size for i in range(len(lengths))],
        "lengths": lengths,
        "reward": rewards,
        "log_pi": [],
        "log_old": [],
        "log_ref": [],
    }
    for length in lengths:
        log_pi = [-generator.randrange(8, 256) / 64 for _ in range(length)]
        rows = {
            "log_pi": log_pi,
            "log_old": [_near(x, BEHAVIOUR_SPREAD, generator) for x in log_pi],
            "log_ref": [_near(x, REFERENCE_SPREAD, generator) for x in log_pi],
        }
        for name, row in rows.items():
            batch[name].append(row + [0.0] * (max(lengths) - length))
    return batch


def _near(log_p: float, spread: float, generator: random.Random) -> float:
    """Return another log-probability, at most the spread away and mostly less."""
    while (found := log_p + round(64 * generator.triangular(-spread, spread)) / 64) >= 0:
        pass
    return found


def versions(*packages: str) -> dict[str, str]:
    """Return the packages' versions, without what says how a build was made."""
    return {name: version(name).split("+")[0] for name in packages}


def defaults(config: type, options: Iterable[str]) -> dict:
    """Return the values that a dataclass gives these options by itself."""
    fields = config.__dataclass_fields__
    found = {}
    for option in options:
        field = fields[option]
        found[option] = field.default_factory() if callable(field.default_factory) else field.default
    return found


def write(found: dict, path: str) -> None:
    """Write a fixture, a list of numbers to a line."""
    text = json.dumps(found, indent=1, allow_nan=False)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda match: " ".join(match[0].split()), text)
    Path(path).write_text(text + "\n")
