"""The equilibrium of dense layers is a contraction, and stays one."""

import pytest
import torch

from deq_lightning import Anderson, EquilibriumMLP, FixedPointIteration, Implicit


def net(**options) -> EquilibriumMLP:
    torch.manual_seed(0)
    return EquilibriumMLP(5, 2, **{"width": 12, "kappa": 0.8, **options})


def test_the_cell_contracts_by_kappa_before_and_after_a_projection() -> None:
    model = net()
    for _ in range(2):
        assert torch.linalg.matrix_norm(model.mix.weight, 2) <= 0.8 * (1 + 1e-6)
        a, b, u = torch.randn(3, 100, 12)
        assert ((model.cell(a, u) - model.cell(b, u)).norm(dim=1) <= 0.8001 * (a - b).norm(dim=1)).all()
        with torch.no_grad():
            model.mix.weight += torch.randn(12, 12)
        assert torch.linalg.matrix_norm(model.mix.weight, 2) > 2
        model.project([])


def test_there_is_one_equilibrium_whatever_the_start_and_solver() -> None:
    model = net(solver=Anderson(max_steps=200, rtol=1e-6)).eval()
    x = torch.randn(7, 5)
    _, (found,) = model(x)
    model.solver = FixedPointIteration(max_steps=500, rtol=1e-6)
    _, (other,) = model(x, start=10 * torch.randn(7, 12))
    torch.testing.assert_close(found.z, other.z, atol=1e-4, rtol=1e-4)


def test_the_implicit_gradient_is_that_of_a_dense_solve() -> None:
    exact = FixedPointIteration(max_steps=2000, rtol=1e-12)
    model = net(solver=exact).double()
    model.gradient = Implicit(adjoint_solver=exact)
    x = torch.randn(1, 5, dtype=torch.double)
    y, (equilibrium,) = model(x)
    y.sum().backward()
    z, w = equilibrium.z.detach(), model.mix.weight.detach()
    active = (z > 0).double().T
    head = model.head[1].weight.detach().sum(dim=0, keepdim=True)
    adjoint = torch.linalg.solve(torch.eye(12) - (active * w).T, head.T)
    torch.testing.assert_close(model.mix.weight.grad, (active * adjoint) @ z)
    torch.testing.assert_close(model.lift[1].bias.grad, (active * adjoint)[:, 0])


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 1), (3, 1, 5, 1)])
def test_inputs_are_flattened(shape: tuple[int, ...]) -> None:
    assert net()(torch.randn(shape))[0].shape == (3, 2)


def test_half_precision_is_projected_too() -> None:
    model = net().bfloat16()
    with torch.no_grad():
        model.mix.weight += 1
    model.project([])
    assert torch.linalg.matrix_norm(model.mix.weight.float(), 2) <= 0.8 * (1 + 2**-7)
