"""What the timed programs share: the settings of the illustrative example, and how one takes turns with the others.

It needs torch and nothing else: the environment of torchgfn has no `companion`. A program is timed in blocks of a few
steps. By itself it prints the medians over its blocks; with `--paced` it waits for a line before each block and answers
with a line of JSON, so that `benchmarks.run` can let several programs alternate on one core.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

#: sigma^2, the variance of the noise per unit of time.
VARIANCE = 5.0
#: The standard deviation that exploration adds to each step, to iteration 500 of the published schedule.
EXPLORATION = 0.5
#: Adam's rates for the policy, and for log Z.
RATE, SCALAR_RATE = 1e-3, 1e-1

#: A block of steps: what it measured, by name, in seconds per step unless the name says otherwise.
Block = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Size:
    """How large a training step is; the defaults are the published settings.

    Attributes:
        steps: T, the steps of a path.
        batch: paths.
        width: hidden units, and frequencies.
    """

    steps: int = 100
    batch: int = 500
    width: int = 64


def positive_integer(text: str) -> int:
    """What most options must be. Raises ``ValueError``, of which argparse makes its own message."""
    if int(text) < 1:
        raise ValueError(f"{text} is below 1")
    return int(text)


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the options that every timed program has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--threads", type=positive_integer, default=1, help="threads of torch (default: 1)")
    made.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    made.add_argument("--size", type=positive_integer, nargs=3, default=(100, 500, 64), metavar=("T", "BATCH", "WIDTH"))
    made.add_argument("--steps", type=positive_integer, default=5, help="training steps in a block (default: 5)")
    made.add_argument("--blocks", type=positive_integer, default=10, help="blocks, without --paced (default: 10)")
    made.add_argument("--paced", action="store_true", help="wait for a line before each block, answer in JSON")
    return made


def serve(options: argparse.Namespace, make: Callable[[], Block], versions: dict[str, str]) -> None:
    """Run blocks as the options say. ``make`` builds the program, after the memory of its imports was read."""
    torch.set_num_threads(options.threads)
    imported = peak_memory()
    block = make()
    block()  # the first block warms caches, and the memory that later ones use again
    if options.paced:
        versions = {"python": platform.python_version(), "torch": torch.__version__.split("+")[0]} | versions
        _answer({"versions": versions, "imported_bytes": imported})
        for _ in sys.stdin:
            _answer(block())
        _answer({"peak_bytes": peak_memory()})
        return
    blocks = [block() for _ in range(options.blocks)]
    for name in blocks[0]:
        print(f"{name:24} {median(each[name] for each in blocks):.4g}")
    print(f"{'peak memory, MB':24} {peak_memory() / 1e6:.0f}, {imported / 1e6:.0f} after imports")


def seconds_per_step(step: Callable[[], object], count: int, device: str) -> float:
    """Return the wall-clock time of one call of ``step``, the mean over ``count`` calls."""
    wait(device)
    begin = time.perf_counter()
    for _ in range(count):
        step()
    wait(device)
    return (time.perf_counter() - begin) / count


def wait(device: str) -> None:
    """Wait for what was queued on the device; the processor queues nothing."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_memory() -> int:
    """Return the most memory, in bytes, that this process ever had resident."""
    status = Path("/proc/self/status")
    if status.exists():
        # Of this process alone: getrusage on Linux counts the process that started it, too.
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return 1024 * int(line.split()[1])
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS gives bytes


def _answer(message: dict) -> None:
    print(json.dumps(message), flush=True)
