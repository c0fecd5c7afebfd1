"""The choice of the iterate that a solver returns."""

import torch
from torch import Tensor

from deq_lightning.solvers.algebra import replace_rows
from deq_lightning.solvers.solution import Partition, Solution, Status
from deq_lightning.state import State, unpack

EQUAL = 16  # roundings by which two residuals may differ and count as equal


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
        last: whether a running sample keeps its last finite iterate rather than the one with the lowest key.
    """

    def __init__(
        self,
        z: Tensor,
        atol: float,
        rtol: float,
        scale: Tensor | None = None,
        partition: Partition | None = None,
        last: bool = False,
    ) -> None:
        self.z = z.clone()
        self.partition = partition
        self.atol = atol
        self.rtol = rtol
        self.last = last
        self.scale = scale
        self.info = torch.finfo(z.dtype)
        # A tensor on the device, because a number would be converted to one at every use.
        self.equal = z.new_full((), 1 + EQUAL * self.info.eps)
        count = z.shape[0] if partition is None else partition.count
        self.size: Tensor | None = None  # where ‖f(z)‖ is not above it, it is lost in rounding beside the start
        self.distance = z.new_full((count,), torch.inf)  # ‖f(z) − z‖ of the iterate kept
        self.bound = z.new_full((count,), torch.inf)  # the key to beat; −inf or NaN once the sample no longer runs
        self.keys: list[Tensor] = []
        self.residuals: list[Tensor] = []
        self.better: list[Tensor] = []  # whether the iterate was the best so far
        self.rows: Tensor | None = None  # the samples still in the solve, where some have left it
        self.whole: Tensor | None = None  # the iterates of all samples

    def update(self, z: Tensor, fz: Tensor, gap: Tensor) -> None:
        """Record one evaluation."""
        distance = self._lengths(gap)
        scale = self._lengths(fz) if self.scale is None else self.scale
        residual = key = distance / self._measure(distance, scale)
        if self.atol > 0:  # then a sample can meet the tolerance with a residual that is not its lowest
            key = torch.where(distance <= self.atol + self.rtol * scale, -1, residual)
        if self.partition is not None and self.partition.together:  # the worst sample decides for all
            key, distance = (values.amax().expand_as(values) for values in (key, distance))
        # On its way to the origin an iteration may have the same residual at every step, but for rounding.
        closer = torch.where(distance < self.distance, self.bound * self.equal, self.bound)
        if self.last:  # any finite one, while the sample runs
            closer = torch.where(self.bound > -torch.inf, torch.inf, self.bound)
        better = key < closer
        self.distance = torch.where(better, distance, self.distance)
        self._replace(better, z)
        self.bound = torch.minimum(self.bound, torch.threshold(key, self.rtol, -torch.inf))
        self.keys.append(self._of_all(key))
        self.residuals.append(self._of_all(residual))
        self.better.append(self._of_all(better))

    def _measure(self, distance: Tensor, scale: Tensor) -> Tensor:
        """Return what distances are relative to.

        It is never 0, because 0 / 0 is an exact fixed point at the origin, and does not shrink with a state that is
        only the rounding of its start: such a state meets the tolerance once its distance is as small.
        """
        if self.size is None:
            start = torch.maximum(distance, scale) if self.scale is None else torch.zeros_like(scale)
            self.size = (self.info.eps * start).clamp_min(self.info.tiny)
            self.rest = self.size / (max(self.rtol, self.info.eps) if self.scale is None else 1)
        return torch.where(scale > self.size, scale, self.rest)

    def without_diverged(self, z: Tensor, fz: Tensor, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Return f(z) and f(z) − z, where samples that diverged stand still.

        A partition's samples share the products of the solver's algebra, and NaN in one would be in all.
        """
        if self.partition is None:
            return fz, gap
        sound = (torch.maximum(self.keys[-1], self.bound) < torch.inf)[self.partition.index]
        rows = sound[:, None].expand(-1, z.numel() // len(sound)).reshape(z.shape)
        return torch.where(rows, fz, z), torch.where(rows, gap, 0)

    def _lengths(self, state: Tensor) -> Tensor:
        """Return the norm of every sample's part of the state."""
        if self.partition is None:
            return torch.linalg.vector_norm(state, dim=1)
        index = self.partition.index
        squares = torch.linalg.vector_norm(state.view(len(index), -1), dim=1).square()
        return squares.new_zeros(self.partition.count).index_add_(0, index, squares).sqrt()

    def _replace(self, better: Tensor, z: Tensor) -> None:
        """Copy the iterates of the samples for which `better` holds."""
        if self.partition is None:
            self.z = replace_rows(better, self.z, z)
        else:
            index = self.partition.index
            rows = replace_rows(better[index], self.z.view(len(index), -1), z.view(len(index), -1))
            self.z = rows.view_as(z)

    def running(self) -> Tensor:
        """Return the indices of the running samples among those in the solve (waits for the device)."""
        return (self.bound > -torch.inf).nonzero()[:, 0]

    def select(self, rows: Tensor) -> None:
        """Remove all samples but these from the solve."""
        self.whole = self._iterates()
        self.rows = rows if self.rows is None else self.rows[rows]
        self.z, self.bound, self.distance = self.z[rows], self.bound[rows], self.distance[rows]
        if self.size is not None:
            self.size, self.rest = self.size[rows], self.rest[rows]
        self.scale = None if self.scale is None else self.scale[rows]

    def _iterates(self) -> Tensor:
        """Return the iterates of all samples, those that left and those that stayed."""
        return self.z if self.whole is None or self.rows is None else self.whole.index_copy(0, self.rows, self.z)

    def _of_all(self, values: Tensor) -> Tensor:
        """Return the (batch,) values of all samples; NaN, or False, for those that left."""
        if self.whole is None or self.rows is None:
            return values
        absent = torch.nan if values.is_floating_point() else False
        return values.new_full((len(self.whole),), absent).index_copy(0, self.rows, values)

    def solution(self, like: State) -> Solution:
        """Report the iterates kept, in the structure of `like`."""
        keys = torch.stack(self.keys)
        evaluations = len(keys)
        ran = (keys > self.rtol).cumprod(dim=0).sum(dim=0)  # evaluations before the one that ended it
        steps = (ran + 1).clamp_max(evaluations)
        converged = keys.gather(0, steps[None] - 1)[0] <= self.rtol
        status = torch.full_like(steps, Status.diverged)
        status.masked_fill_(ran == evaluations, Status.max_steps).masked_fill_(converged, Status.converged)
        count = torch.arange(1, evaluations + 1, device=keys.device)[:, None]
        kept = (torch.stack(self.better) * count).amax(dim=0)  # the last one that was the best; 0: none
        residual = torch.stack(self.residuals).gather(0, (kept - 1).clamp_min(0)[None])[0]
        residual = torch.where(kept > 0, residual, torch.inf)
        return Solution(unpack(self._iterates(), like), residual, steps, status, evaluations)
