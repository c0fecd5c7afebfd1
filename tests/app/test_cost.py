"""What an answer costs, against matrices whose operations are known."""

import torch
from torch import Tensor, nn

from deq_lightning import UPG, Anderson, Classification, ImplicitModel, Reversible
from deq_lightning.app.cost import cost_of


class Known(ImplicitModel):
    """A cell of 5 x 5, an injection of 3 x 5, an answer of 5 x 2."""

    def __init__(self) -> None:
        super().__init__(Anderson(max_steps=7))
        self.inside, self.cell_weight, self.outside = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def inject(self, x: Tensor) -> Tensor:
        return self.inside(x)

    def initial_state(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)

    def cell(self, z: Tensor, u: Tensor) -> Tensor:
        return torch.tanh(0.3 * self.cell_weight(z) + u)

    def readout(self, z: Tensor) -> Tensor:
        return self.outside(z)


def test_the_operations_of_matrices() -> None:
    task = Classification(Known())
    task.net.gradient = UPG(k=3)
    before, solver = torch.get_rng_state(), task.net.solver
    cost = cost_of(task, (torch.randn(4, 3), torch.tensor([0, 1, 0, 1])))
    assert cost.evaluation == 2 * 5 * 5 and cost.once == 2 * 3 * 5 + 2 * 5 * 2 + 3 * 2 * 5 * 5
    assert task.net.solver is solver and task.training
    torch.set_rng_state(before)
    twice = cost_of(task, (torch.randn(8, 3), torch.zeros(8, dtype=torch.long)))
    assert twice == cost


def test_the_steps_of_a_strategy_that_solves_by_itself_are_no_part_of_the_rest() -> None:
    task = Classification(Known())
    task.net.gradient = Reversible(steps=4)
    cost = cost_of(task, (torch.randn(4, 3), torch.tensor([0, 1, 0, 1])))
    assert cost.evaluation == 2 * 5 * 5 and cost.once == 2 * 3 * 5 + 2 * 5 * 2
