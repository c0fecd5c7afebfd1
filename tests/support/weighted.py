"""A model of one matrix."""

import torch
from torch import Tensor

from deq_lightning import ImplicitModel, Solver


class Weighted(ImplicitModel):
    """tanh of z W + x, from the origin; the answer is the equilibrium."""

    def __init__(self, solver: Solver, weight: Tensor) -> None:
        super().__init__(solver)
        self.weight = torch.nn.Parameter(weight)

    def inject(self, x: Tensor) -> Tensor:
        return x

    def initial_state(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)

    def cell(self, z: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(z @ self.weight + u)

    def readout(self, z: Tensor) -> Tensor:
        return z
