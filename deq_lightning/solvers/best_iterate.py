"""The choice of the iterate that a solver returns."""

import torch
import torch.nn.functional as F
from torch import Tensor

from deq_lightning.solvers.algebra import replace_rows
from deq_lightning.solvers.solution import Partition, Solution, Status
from deq_lightning.state import State, unpack


class BestIterate:
    """Keeps the iterate to return for each sample, and what to report about it.

    A sample is running until it meets the tolerance or turns non-finite; after that it no longer changes. During the
    solve one key per evaluation decides: the relative residual, or −1 where only the absolute tolerance is met. Steps,
    status and residual are read off the record at the end.

    Args:
        z: (batch, dim) the starting point.
        atol: absolute tolerance.
        rtol: tolerance relative to the scale.
        scale: (batch,) what residuals are relative to. None: ‖f(z)‖.
        partition: the samples, where they are not the rows of `z`.
    """

    def __init__(
        self,
        z: Tensor,
        atol: float,
        rtol: float,
        scale: Tensor | None = None,
        partition: Partition | None = None,
    ) -> None:
        self.z = z.clone()
        self.partition = partition
        self.atol = atol
        self.rtol = rtol
        self.scale = scale
        # A tensor on the device, because a number would be converted to one at every use.
        self.tiny = z.new_full((), torch.finfo(z.dtype).tiny)
        count = z.shape[0] if partition is None else partition.count
        self.bound = z.new_full((count,), torch.inf)  # the key to beat; −inf or NaN once the sample no longer runs
        self.keys: list[Tensor] = []
        self.residuals: list[Tensor] = []
        self.rows: Tensor | None = None  # the samples still in the solve, where some have left it
        self.whole: Tensor | None = None  # the iterates of all samples

    def update(self, z: Tensor, fz: Tensor, gap: Tensor) -> None:
        """Record one evaluation."""
        distance = self._lengths(gap)
        scale = self._lengths(fz) if self.scale is None else self.scale
        residual = key = distance / torch.maximum(scale, self.tiny)  # 0 / 0 is an exact fixed point at the origin
        if self.atol > 0:  # then a sample can meet the tolerance with a residual that is not its lowest
            key = torch.where(distance <= self.atol + self.rtol * scale, -1, residual)
        if self.partition is not None and self.partition.together:
            key = key.amax().expand_as(key)  # of the worst sample
        self._replace(key < self.bound, z)
        self.bound = torch.minimum(self.bound, F.threshold(key, self.rtol, -torch.inf))
        self.keys.append(self._of_all(key))
        self.residuals.append(self._of_all(residual))

    def _lengths(self, state: Tensor) -> Tensor:
        """Return the norm of every sample's part of the state."""
        if self.partition is None:
            return torch.linalg.vector_norm(state, dim=1)
        index = self.partition.index
        squares = torch.linalg.vector_norm(state.view(len(index), -1), dim=1).square()
        return squares.new_zeros(self.partition.count).index_add_(0, index, squares).sqrt()

    def _replace(self, better: Tensor, z: Tensor) -> None:
        """Copy the iterates of the samples for which `better` holds."""
        if self.partition is None and torch.compiler.is_compiling():
            self.z = torch.where(better[:, None], z, self.z)  # exported, it may run with gradients on
        elif self.partition is None:
            replace_rows(better, self.z, z)
        else:
            index = self.partition.index
            replace_rows(better[index], self.z.view(len(index), -1), z.view(len(index), -1))

    def running(self) -> Tensor:
        """Return the indices of the running samples among those in the solve (waits for the device)."""
        return (self.bound > -torch.inf).nonzero()[:, 0]

    def select(self, rows: Tensor) -> None:
        """Remove all samples but these from the solve."""
        self.whole = self._iterates()
        self.rows = rows if self.rows is None else self.rows[rows]
        self.z, self.bound = self.z[rows], self.bound[rows]
        self.scale = None if self.scale is None else self.scale[rows]

    def _iterates(self) -> Tensor:
        """Return the iterates of all samples, those that left and those that stayed."""
        return self.z if self.whole is None or self.rows is None else self.whole.index_copy(0, self.rows, self.z)

    def _of_all(self, values: Tensor) -> Tensor:
        """Return the (batch,) values of all samples; NaN for those that left."""
        if self.whole is None or self.rows is None:
            return values
        return values.new_full((len(self.whole),), torch.nan).index_copy(0, self.rows, values)

    def solution(self, like: State) -> Solution:
        """Report the iterates kept, in the structure of `like`."""
        keys = torch.stack(self.keys)
        evaluations = len(keys)
        ran = (keys > self.rtol).cumprod(dim=0).sum(dim=0)  # evaluations before the one that ended it
        steps = (ran + 1).clamp_max(evaluations)
        converged = keys.gather(0, steps[None] - 1)[0] <= self.rtol
        status = torch.full_like(steps, Status.diverged)
        status.masked_fill_(ran == evaluations, Status.max_steps).masked_fill_(converged, Status.converged)
        before = torch.arange(evaluations, device=keys.device)[:, None] < steps
        lowest = torch.where(before & (keys < torch.inf), keys, torch.inf).min(dim=0)
        residual = torch.stack(self.residuals).gather(0, lowest.indices[None])[0]
        residual = torch.where(lowest.values < torch.inf, residual, torch.inf)
        return Solution(unpack(self._iterates(), like), residual, steps, status, evaluations)
