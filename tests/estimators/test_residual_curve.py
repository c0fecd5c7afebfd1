"""How the residual falls along a solve."""

import torch

from deq_lightning import Anderson, FixedPointIteration, Partition, residual_curve

U = torch.tensor([[1.0], [2.0], [-3.0]]).double()


def test_the_residual_of_a_linear_map_in_closed_form() -> None:
    """z_n = u(1 − aⁿ)/(1 − a), so that f(z_n) − z_n = u aⁿ."""
    a, n = -0.8, torch.arange(12).double()
    found = residual_curve(lambda z: a * z + U, torch.zeros_like(U), FixedPointIteration(12, rtol=0.5))
    expected = (a**n).abs() * (1 - a) / (1 - a ** (n + 1)).abs()
    assert found.shape == (12, 3) and torch.allclose(found, expected[:, None].expand(12, 3), rtol=1e-12)


def test_anderson_ends_at_the_rounding_and_a_map_that_overflows_at_infinity() -> None:
    found = residual_curve(lambda z: 0.9 * torch.tanh(z) + U, torch.zeros_like(U), Anderson(30))
    assert found[0].eq(1).all() and found[-1].max() < 1e-14
    assert residual_curve(lambda z: z.exp() ** 2, U, FixedPointIteration(9))[-1].isinf().any()


def test_samples_of_one_state_have_one_residual() -> None:
    plain = residual_curve(lambda z: 0.5 * z + U, torch.zeros_like(U), FixedPointIteration(5))

    class Together:
        partition = Partition(torch.tensor([0, 0, 1]), 2)

        def __call__(self, z: torch.Tensor) -> torch.Tensor:
            return 0.5 * z + U[None]

    found = residual_curve(Together(), torch.zeros(1, 3, 1).double(), FixedPointIteration(5))
    assert found.shape == (5, 1) and torch.allclose(found, plain[:, :1])
