"""Operators and their adjoints."""

import pytest
import torch
from torch import Tensor

from deq_lightning import Blur, Downsampling, Mask, Operator

OPERATORS = [Blur(0.8), Blur(2.0, 7, "zero"), Mask(0.4, seed=3), Downsampling(3)]


def matrix(operator: Operator, height: int = 6, width: int = 9) -> Tensor:
    """Return A as a matrix, a column for each pixel."""
    pixels = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    return operator(pixels).flatten(1).T


@pytest.mark.parametrize("operator", OPERATORS, ids=repr)
def test_the_adjoint_is_the_transpose_and_the_norm_at_most_one(operator: Operator) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 9, dtype=torch.float64)
    y = torch.randn_like(operator(x))
    assert operator.adjoint(y).shape == x.shape
    assert abs((operator(x) * y).sum() - (x * operator.adjoint(y)).sum()) < 1e-12
    assert torch.linalg.matrix_norm(matrix(operator), ord=2) <= 1 + 1e-12
    torch.testing.assert_close(operator(x[:1, :1]).flatten(), matrix(operator) @ x[0, 0].flatten())


def test_what_the_operators_do() -> None:
    ones = torch.ones(1, 2, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(Blur()(ones), ones)
    assert (Blur(padding="zero")(ones)[..., 0, 0] < 1).all()
    point = torch.zeros(1, 1, 7, 7, dtype=torch.float64).index_put_(
        [torch.tensor(n) for n in (0, 0, 3, 3)], ones[0, 0, 0, 0]
    )
    ratio = Blur(1.5)(point)[0, 0, 3]
    torch.testing.assert_close(ratio[4] / ratio[3], torch.tensor(-1 / (2 * 1.5**2), dtype=torch.float64).exp())
    assert torch.equal(
        Downsampling(2)(torch.arange(16.0).view(1, 1, 4, 4)).flatten(), torch.tensor([2.5, 4.5, 10.5, 12.5])
    )
    masked = Mask(0.3)(torch.ones(1, 2, 100, 100))
    assert torch.equal(masked[:, 0], masked[:, 1]) and abs(masked.mean() - 0.7) < 0.02
    assert not torch.equal(masked, Mask(0.3, seed=1)(torch.ones(1, 2, 100, 100)))
    assert Mask(0.3) == Mask(0.3) and hash(Mask(0.3)) == hash(Mask(0.3)) and Mask(0.3) != Mask(0.2) and Blur() != Mask()


def test_what_does_not_fit_is_said() -> None:
    with pytest.raises(ValueError, match=r"`kernel_size` must be odd, got 4\. Set `kernel_size=5`\."):
        Blur(kernel_size=4)
    assert Blur(kernel_size=19).fault(8, 9) == "`kernel_size` must be 17 or less, got 19"
    assert Blur(kernel_size=19, padding="zero").fault(8, 9) is None and Blur(kernel_size=17).fault(8, 9) is None
    assert Downsampling(3).fault(9, 8) == "`factor` must divide height and width, got 3"
    assert Mask().fault(1, 1) is None
