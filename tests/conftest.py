"""Selects the checks of one claim, refuses markers that name no claim, and keeps torch to one thread."""

import itertools
import sys
import tempfile
from pathlib import Path

import nbval.kernel
import pytest
import torch
from changed import changed_files, tests_to_run
from jupyter_client.manager import KernelManager

from book.evidence import cell_checks
from companion.claims import registry, written

ROOT = Path(__file__).parents[1]
# The path of a socket may have a hundred characters or so, and the usual temporary folder can be longer.
KERNEL_FILES = tempfile.TemporaryDirectory(prefix="kernels-", dir="/tmp" if Path("/tmp").is_dir() else None)


def pytest_addoption(parser):
    parser.addoption("--claim", metavar="ID", help="run only the tests and notebook cells that check this claim")
    parser.addoption("--changed", action="store_true", help="run the tests of the losses and of what is not committed")


def pytest_configure(config):
    torch.set_num_threads(1)
    if sys.platform != "win32":
        nbval.kernel.KernelManager = _kernel_manager_over_files
    claim = config.getoption("--claim")
    if claim is not None and claim not in registry():
        raise pytest.UsageError(f"--claim {claim!r} is no claim; expected one of {', '.join(registry())}")
    if claim is not None and not written(ROOT, registry()[claim]):
        raise pytest.UsageError(f"{claim} belongs to a chapter that is still planned: it has no checks yet")


def pytest_collection_modifyitems(config, items):
    for item in items:
        for claim in _claims_of(item) - set(registry()):
            raise pytest.UsageError(f"{item.nodeid} is marked with {claim!r}, which is no claim")
    if config.getoption("--changed"):
        wanted = tests_to_run(ROOT, changed_files(ROOT))
        _keep(config, items, [item for item in items if item.path.name in wanted])
    claim = config.getoption("--claim")
    if claim is None:
        return
    last = _last_cells(claim)
    kept = [item for item in items if claim in _claims_of(item) or _cell(item) <= last.get(item.path.name, -1)]
    _keep(config, items, kept)


def _keep(config, items, kept):
    config.hook.pytest_deselected(items=list(set(items) - set(kept)))
    items[:] = kept


def _claims_of(item):
    return {claim for mark in item.iter_markers("claim") for claim in mark.args}


def _cell(item):
    """Number of a notebook cell, as nbval counts them; beyond every cell for anything else."""
    return getattr(item, "cell_num", 10**6)


def _last_cells(claim):
    """Notebook names and the last cell that checks the claim: a cell needs those before it, and none after it."""
    last = {}
    for check in cell_checks(ROOT):
        if check.claim == claim:
            last[check.notebook] = max(check.cell, last.get(check.notebook, -1))
    return last


def _kernel_manager_over_files(count=itertools.count(), **options):  # noqa: B008
    """Over TCP two kernels that start at once may pick one port, and a kernel that dies looks like a failed cell."""
    return KernelManager(transport="ipc", ip=f"{KERNEL_FILES.name}/{next(count)}", **options)
