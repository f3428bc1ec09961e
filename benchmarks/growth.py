"""Times a training step of this package as T, the batch and the width grow, one at a time.

python -m benchmarks.growth [--threads N]
"""

from dataclasses import replace
from functools import partial

from benchmarks.step import training
from benchmarks.worker import Block, Size, parser, seconds_per_step, serve

#: What is varied, and through which values; the published settings are among them.
SERIES = {"steps": (25, 50, 100, 200), "batch": (125, 250, 500, 1000), "width": (32, 64, 128)}


def along(name: str) -> list[Size]:
    """Return the sizes of one series: the published settings, but for one that takes all its values."""
    return [replace(Size(), **{name: value}) for value in SERIES[name]]


def sizes() -> list[Size]:
    """Return every size that is measured, each once."""
    return list(dict.fromkeys(size for name in SERIES for size in along(name)))


def name_of(size: Size) -> str:
    """Return the name under which a size is recorded."""
    return f"T={size.steps} batch={size.batch} width={size.width}"


def block(device: str = "cpu") -> Block:
    """Return a block of one step of every size."""
    trained = {name_of(size): training(size, device) for size in sizes()}
    return lambda: {name: seconds_per_step(partial(train, 1), 1, device) for name, train in trained.items()}


if __name__ == "__main__":
    chosen = parser(__doc__.splitlines()[0]).parse_args()
    serve(chosen, lambda: block(chosen.device), {})
