"""Whether fixed points depend on the start."""

import pytest
import torch
import torch.nn.functional as F

from deq_lightning import Anderson, FixedPointIteration, Partition, path_independence

SOLVER = FixedPointIteration(200, rtol=1e-12)
torch.manual_seed(0)
A = torch.randn(5, 5).double() * 0.3
U = torch.randn(4, 5).double()


@pytest.mark.parametrize("starts", ["permuted", "noise"])
def test_a_contraction_has_one_fixed_point(starts: str) -> None:
    for solver in (SOLVER, Anderson(60, rtol=1e-12)):
        score = path_independence(lambda z: torch.tanh(z @ A.T) * 0.5 + U, torch.zeros_like(U), solver, starts)
        assert torch.allclose(score, torch.ones(4).double(), atol=1e-9)


def test_the_identity_keeps_its_start() -> None:
    score = path_independence(lambda z: z, U, SOLVER, "permuted")
    assert torch.allclose(score, F.cosine_similarity(U, U.roll(1, 0)))
    both = path_independence(lambda z: z, U, SOLVER, "permuted", repeats=2)
    assert torch.allclose(both, (F.cosine_similarity(U, U.roll(1, 0)) + F.cosine_similarity(U, U.roll(2, 0))) / 2)


def test_two_attractors_are_told_apart_by_the_sign_of_the_start() -> None:
    start = torch.tensor([1.0, 1.0, -1.0, -1.0]).double()[:, None]
    score = path_independence(lambda z: torch.tanh(3 * z), start, SOLVER, "permuted")
    assert torch.allclose(score, torch.tensor([-1.0, 1.0, -1.0, 1.0]).double(), atol=1e-9)


def test_samples_of_a_partition_have_a_score_each() -> None:
    class Map:
        partition = Partition(torch.tensor([0, 0, 0, 1, 1]), 2)

        def __call__(self, z: torch.Tensor) -> torch.Tensor:
            return torch.cat([0.5 * z[:, :3] + 1, torch.tanh(3 * z[:, 3:])], dim=1)

    torch.manual_seed(1)
    score = path_independence(Map(), torch.ones(1, 5, 1).double(), SOLVER, "noise", repeats=20)
    assert score.shape == (2,) and score[0].item() == pytest.approx(1) and score[1].item() < 0.9


def test_one_sample_has_nothing_to_exchange() -> None:
    with pytest.raises(ValueError, match="two samples or more"):
        path_independence(lambda z: z, U[:1], SOLVER)
