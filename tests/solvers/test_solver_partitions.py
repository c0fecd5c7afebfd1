"""Samples that can only be evaluated together: each has its own residual, stop and choice all the same."""

import pytest
import torch

from deq_lightning import Anderson, Broyden, FixedPointIteration, Partition, Solver, Status

RATES = torch.tensor([0.2, 0.95, 0.6], dtype=torch.float64)
INDEX = torch.tensor([0, 0, 1, 1, 1, 2])  # three graphs of two, three and one node


class Joint:
    """A contraction at each graph's own rate, one state (1, nodes, 2) for all of them."""

    def __init__(self, shift: float = 1.0) -> None:
        self.partition = Partition(INDEX, 3)
        self.shift = torch.full((1, 6, 2), shift, dtype=torch.float64)

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        rates = RATES[INDEX][None, :, None] * torch.tensor([1.0, 0.9])
        return rates * torch.tanh(z.flip(2)) + self.shift


def alone(graph: int) -> "type":
    rows = INDEX == graph

    def f(z: torch.Tensor) -> torch.Tensor:
        padded = torch.zeros(1, 6, 2, dtype=torch.float64)
        padded[:, rows] = z
        return Joint()(padded)[:, rows]

    return f


def zeros(rows: int = 6) -> torch.Tensor:
    return torch.zeros(1, rows, 2, dtype=torch.float64)


@pytest.mark.parametrize("max_steps", [4, 9, 100])
def test_plain_iteration_treats_every_graph_as_if_it_were_alone(max_steps: int) -> None:
    solver = FixedPointIteration(max_steps=max_steps, rtol=1e-6, check_every=1)
    joint = solver.solve(Joint(), zeros())
    for graph in range(3):
        rows = INDEX == graph
        single = solver.solve(alone(graph), zeros(int(rows.sum())))
        torch.testing.assert_close(joint.z[:, rows], single.z, rtol=0, atol=0)
        torch.testing.assert_close(joint.residual[graph], single.residual[0])
        assert joint.steps[graph] == single.steps[0]
        assert joint.status[graph] == single.status[0]
    assert joint.evaluations == joint.steps.max()


@pytest.mark.parametrize(
    "solver", [Anderson(100, rtol=1e-10), Broyden(100, rtol=1e-10), FixedPointIteration(999, 1e-10)]
)
def test_every_solver_reports_every_graph(solver: Solver) -> None:
    solution = solver.solve(Joint(), zeros())
    gap = (Joint()(solution.z) - solution.z)[0].square().sum(dim=1)
    size = Joint()(solution.z)[0].square().sum(dim=1)
    for graph in range(3):
        rows = INDEX == graph
        torch.testing.assert_close(solution.residual[graph], (gap[rows].sum() / size[rows].sum()).sqrt())
    assert solution.status.tolist() == [Status.converged] * 3


def test_a_graph_that_diverges_leaves_the_others_alone() -> None:
    class Exploding(Joint):
        def __call__(self, z: torch.Tensor) -> torch.Tensor:
            fz = super().__call__(z)
            return torch.where((INDEX == 1)[None, :, None], 1e200 * (z + 1) ** 3, fz)

    solution = FixedPointIteration(100, rtol=1e-6).solve(Exploding(), zeros())
    assert solution.status.tolist() == [Status.converged, Status.diverged, Status.converged]
    expected = FixedPointIteration(100, rtol=1e-6).solve(Joint(), zeros())
    rows = INDEX != 1
    torch.testing.assert_close(solution.z[:, rows], expected.z[:, rows])
    assert solution.z.isfinite().all()
