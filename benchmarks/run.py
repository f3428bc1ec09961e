"""Times this package beside torchgfn, in turns on one core, and records it all in results/benchmark.

Every program is a process of its own, started once. In each round each of them runs one block while the others wait, so
that what slows the machine down for a while slows all of them down. Ratios are taken within a round.

python -m benchmarks.run [--threads N] [--rounds N]
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from benchmarks import record
from benchmarks.worker import Size
from companion import records

#: The interpreter of the environment that benchmarks/environment makes.
PEER = record.ROOT / ".venv-peers-bench" / "bin" / "python"
STEPS_PER_BLOCK = 5
#: Each program's interpreter and arguments, in the order of their turns.
PROGRAMS = {
    "companion": (sys.executable, "benchmarks.step"),
    "torchgfn": (str(PEER), "benchmarks.peer_torchgfn"),
    "torchgfn, memory kept": (str(PEER), "benchmarks.peer_torchgfn"),
    "torchgfn, kept": (str(PEER), "benchmarks.peer_torchgfn", "--keep"),
    "bound": (sys.executable, "benchmarks.bound"),
    "parts": (sys.executable, "benchmarks.parts"),
    "growth": (sys.executable, "benchmarks.growth"),
}

#: What a program finds in its environment, beside the number of threads. These two tell glibc to hold on to memory that
#: was freed, as companion.samplers.tape does by itself; a user of torchgfn could set them.
ENVIRONMENTS = {
    "torchgfn, memory kept": {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
}


class Program:
    """A timed program, running in a process of its own, that waits for its turn."""

    def __init__(self, name: str, interpreter: str, module: str, *arguments: str, threads: int = 1) -> None:
        if not Path(interpreter).exists():
            raise ValueError(f"{interpreter} is not there; expected an environment. Run make bench, which makes it.")
        self.name, self.blocks = name, {}
        options = ("--paced", "--threads", str(threads), "--steps", str(STEPS_PER_BLOCK))
        self.process = subprocess.Popen(
            [interpreter, "-m", module, *options, *arguments],
            cwd=record.ROOT,
            env=os.environ
            | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
            | ENVIRONMENTS.get(name, {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about = self._read()

    def turn(self) -> None:
        """Let the program run one block, and keep what it measured."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for name, value in self._read().items():
            self.blocks.setdefault(name, []).append(float(f"{value:.5g}"))

    def finish(self) -> dict:
        """End the program, and return all that it said."""
        self.process.stdin.close()
        return self.about | self._read() | {"blocks": self.blocks}

    def stop(self) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def _read(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}; see above for what it said.")
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            raise RuntimeError(
                f"{self.name} said {line!r}; expected a line of JSON. Let it print nothing else."
            ) from None


def measure(programs: Mapping[str, tuple[str, ...]], rounds: int, threads: int) -> dict[str, dict]:
    """Let programs take turns for so many rounds, and return what each of them measured."""
    with ExitStack() as stack:
        started = []
        for name, command in programs.items():
            started.append(Program(name, *command, threads=threads))
            stack.callback(started[-1].stop)
        for _ in tqdm(range(rounds), desc="rounds"):
            for program in started:
                program.turn()
        return {program.name: program.finish() for program in started}


def main() -> None:
    """Measure, and put the record in the place of the last one on as many threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="threads of each program (default: 1)")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each program (default: 20)")
    options = parser.parse_args()
    if options.rounds < 2 or options.threads < 1:
        raise ValueError(
            f"--rounds is {options.rounds} and --threads {options.threads}; expected 2 or more, and 1 or more. "
            "Quartiles need two rounds."
        )
    configuration = {"name": f"threads-{options.threads}", "threads": options.threads, "rounds": options.rounds}
    configuration |= {"steps_per_block": STEPS_PER_BLOCK, "size": asdict(Size())}
    provenance = record.provenance()  # before the programs start, which are a load themselves
    programs = measure(PROGRAMS, options.rounds, options.threads)
    records.write("benchmark", configuration, provenance, programs, where=record.RESULTS)


if __name__ == "__main__":
    main()
