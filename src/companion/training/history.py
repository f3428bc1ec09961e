"""What a run leaves behind, column by column."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass
class History:
    """What a run left behind.

    Attributes:
        steps: by name, one number per iteration: the loss, the mean of log r, the ELBO estimate of the batch (a mean
            over the behaviour's paths), the learned number where there is just one, seconds of processor time so far.
        evaluations: by name, one number per evaluation; ``"iteration"`` says after how many steps.
        diverged_at: the iteration whose loss or gradient was not finite, where the run stopped; None if none was.
        reason: which number was not finite there: of the reward, the policy, the loss or its gradient.
        learned: what the objective learned beside the policy, as it was at the end: log Z, V(s_0), a baseline.
    """

    steps: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    evaluations: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    diverged_at: int | None = None
    reason: str | None = None
    learned: list[Tensor] = field(default_factory=list)

    def append(self, table: str, row: Mapping[str, float]) -> None:
        """Add one row to ``"steps"`` or ``"evaluations"``. Raises ``ValueError`` for other columns than before."""
        columns = getattr(self, table)
        if columns and set(columns) != set(row):
            raise ValueError(f"The row has {sorted(row)}; expected {sorted(columns)}, as before. Keep to these.")
        for name, value in row.items():
            columns[name] = np.append(columns.get(name, np.empty(0)), float(value))
