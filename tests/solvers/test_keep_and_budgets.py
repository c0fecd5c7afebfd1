"""Which iterate a spent budget hands back, random budgets and noisy steps."""

import pytest
import torch
from torch import Tensor

from deq_lightning import GMRES, Anderson, Broyden, FixedPointIteration, Solver, Status

torch.manual_seed(0)
A = torch.linalg.qr(torch.randn(6, 6).double())[0] * 0.9
B = torch.randn(3, 6).double()
EVERY = [FixedPointIteration, Anderson, Broyden, GMRES]


def affine(z: Tensor) -> Tensor:
    return z @ A.T + B


def shift(z: Tensor) -> Tensor:
    """Each entry is the parity of the one before it and an input of ones: it travels one entry a step."""
    return torch.cat([torch.ones_like(z[:, :1]), 1 - z[:, :-1]], dim=1)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_last_iterate_is_f_applied_so_many_times(steps: int) -> None:
    solution = FixedPointIteration(steps, rtol=0, keep="last").solve(affine, torch.zeros(3, 6).double())
    z = torch.zeros(3, 6).double()
    for _ in range(steps):
        z = affine(z)
    assert torch.equal(solution.z, z) and solution.evaluations == steps + 1
    gap = affine(z) - z
    assert torch.allclose(solution.residual, gap.norm(dim=1) / affine(z).norm(dim=1), rtol=1e-14)
    assert solution.status.tolist() == [Status.max_steps] * 3


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_residual_is_that_of_what_is_handed_back(kind: type[Solver], keep: str) -> None:
    solution = kind(5, rtol=0, keep=keep).solve(affine, torch.ones(3, 6).double())
    fz = affine(solution.z)
    assert torch.allclose(solution.residual, (fz - solution.z).norm(dim=1) / fz.norm(dim=1), rtol=1e-9)


def test_two_halves_are_the_whole() -> None:
    start = torch.randn(3, 6).double()
    half = FixedPointIteration(10, rtol=0, keep="last", damping=0.7)
    whole = FixedPointIteration(20, rtol=0, keep="last", damping=0.7)
    assert torch.equal(half.solve(affine, half.solve(affine, start).z).z, whole.solve(affine, start).z)


def test_on_a_plateau_the_last_iterate_is_the_way_on() -> None:
    start = torch.zeros(1, 40).double()
    answer = torch.arange(40).double().remainder(2)[None].neg() + 1
    best, last = (FixedPointIteration(20, rtol=0, keep=keep) for keep in ("best", "last"))
    assert torch.equal(last.solve(shift, last.solve(shift, start).z).z, answer)
    assert not torch.equal(best.solve(shift, best.solve(shift, start).z).z, answer)


def test_what_has_converged_or_diverged_is_handed_back_as_ever() -> None:
    def f(z: Tensor) -> Tensor:
        return z * torch.tensor([[0.1], [1e200], [0.999]]).double() + 1

    for keep in ("best", "last"):
        solution = FixedPointIteration(30, rtol=1e-3, keep=keep, check_every=1).solve(f, torch.ones(3, 2).double())
        assert solution.status.tolist() == [Status.converged, Status.diverged, Status.max_steps]
        assert solution.steps.tolist() == [3, 1, 30 + (keep == "last")]
        assert solution.z.isfinite().all()


def test_every_sample_of_samples_that_left_keeps_its_last() -> None:
    rate = torch.tensor([0.1, 0.99]).double()[:, None]

    class Map:
        def __init__(self, rows: Tensor) -> None:
            self.rate = rate[rows]

        def __call__(self, z: Tensor) -> Tensor:
            return self.rate * z + 1

        def subset(self, rows: Tensor) -> "Map":
            return Map(rows + (len(self.rate) < 2))

    solution = FixedPointIteration(40, rtol=1e-6, keep="last", check_every=1).solve(
        Map(torch.arange(2)), torch.zeros(2, 3).double()
    )
    assert torch.allclose(solution.z[1], (1 - rate[1] ** 40) / (1 - rate[1]), rtol=1e-12)


def test_budgets_are_drawn_in_training_alone() -> None:
    solver = FixedPointIteration(9, min_steps=3, eval_max_steps=50)
    torch.manual_seed(3)
    drawn = [solver.for_mode(training=True).max_steps for _ in range(300)]
    assert set(drawn) == set(range(3, 10))
    torch.manual_seed(3)
    assert drawn == [solver.for_mode(training=True).max_steps for _ in range(300)]
    assert solver.for_mode(training=False).max_steps == solver.for_evaluation().max_steps == 50
    assert solver.max_steps == 9


def test_noise_is_added_in_training_alone() -> None:
    solver = FixedPointIteration(1, rtol=0, keep="last", noise=0.5)
    start = torch.zeros(2000, 6).double()
    noisy = solver.for_mode(training=True).solve(torch.ones_like, start).z - 1
    assert noisy.std().item() == pytest.approx(0.5, rel=0.03) and abs(noisy.mean().item()) < 0.02
    assert (solver.for_mode(training=False).solve(torch.ones_like, start).z == 1).all()
    asked = FixedPointIteration(1, rtol=0, keep="last", noise=0.5, eval_noise=True)
    assert (asked.for_mode(training=False).solve(torch.ones_like, start).z != 1).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": "first"}, "`keep` must be one of best, last; got .first.."),
        ({"min_steps": 31}, "`min_steps` must be"),
        ({"noise": -1.0}, "`noise` must be 0 or more, got -1.0."),
    ],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        FixedPointIteration(**options)
