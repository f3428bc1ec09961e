"""Compare a fresh recording with the committed fixture, number by number, and say where they differ.

python compare.py FRESH.json COMMITTED.json
"""

import json
import sys
from pathlib import Path

#: In units in the last place of the largest number beside it, in the same list or case: processors round exp and log
#: unalike, and a loss may be what is left of terms that cancel.
ULPS = 16
EPS = 2.0**-52


def size(value) -> float:
    """Return the largest magnitude in a number or a (nested) list of them."""
    if isinstance(value, list):
        return max(map(size, value), default=0.0)
    return abs(value) if isinstance(value, (int, float)) else 0.0


def differences(fresh, committed, where: str = "", scale: float = 0.0) -> list[str]:
    """Return one line for each place where the two differ, by name."""
    if isinstance(fresh, dict) and isinstance(committed, dict) and fresh.keys() == committed.keys():
        scale = size(list(committed.values()))
        return [line for key in fresh for line in differences(fresh[key], committed[key], f"{where}/{key}", scale)]
    if isinstance(fresh, list) and isinstance(committed, list) and len(fresh) == len(committed):
        scale = max(scale, size(committed))
        pairs = enumerate(zip(fresh, committed, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{where}[{i}]", scale)]
    if isinstance(fresh, float) and isinstance(committed, float):
        same = abs(fresh - committed) <= ULPS * EPS * max(scale, abs(committed))
    else:
        same = type(fresh) is type(committed) and fresh == committed
    return [] if same else [f"{where or '/'}: recorded {_short(fresh)}, committed {_short(committed)}"]


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def main() -> int:
    """Return 0 where the two files agree, 1 after naming the first places where they do not."""
    fresh, committed = (json.loads(Path(name).read_text()) for name in sys.argv[1:3])
    found = differences(fresh, committed)
    for line in found[:20]:
        print(line)
    if found:
        print(f"{len(found)} difference(s) beyond {ULPS} units in the last place.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
