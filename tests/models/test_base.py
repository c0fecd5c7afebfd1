"""What every implicit model does, whatever its three functions."""

import pytest
import torch
from torch import nn

from deq_lightning import JFB, MDEQ, NPG, UPG, Anderson, FixedPointIteration, Implicit, ImplicitModel, Unrolled

STRATEGIES = [UPG(), NPG(), JFB(), Implicit(), Unrolled(unroll_steps=2)]


class Counter(ImplicitModel):
    """Counts to where the step of its solver and those of its gradient have taken it: z ← z + 1."""

    def __init__(self, solver):
        super().__init__(solver)
        self.one = nn.Parameter(torch.ones(()))

    def inject(self, x):
        return x

    def cell(self, z, u):
        return z + self.one + 0 * u

    def readout(self, z):
        return z


@pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
@pytest.mark.parametrize("budget", [1, 2, 12])
def test_evaluation_answers_the_same_with_and_without_gradients(strategy, budget):
    torch.manual_seed(0)
    small = dict(in_channels=1, channels=(4,), groups=2, expansion=2, head_channels=(2,), final_channels=8)
    model = MDEQ(**small, dropout=0.3, solver=Anderson(max_steps=budget, rtol=1e-2)).double().eval()
    model.gradient = strategy
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        expected, _ = model(x)
    with torch.inference_mode():
        torch.testing.assert_close(model(x)[0], expected, rtol=1e-10, atol=1e-12)
    logits, _ = model(x)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    (saliency,) = torch.autograd.grad(logits.logsumexp(dim=1).sum(), x)
    assert saliency.abs().sum() > 0


def test_a_budget_of_one_evaluation_keeps_the_steps_of_the_strategy():
    """The solver can only hand back its start; what the model learned to do is in the steps after it."""
    model = Counter(FixedPointIteration(max_steps=1)).eval()
    model.gradient = UPG(k=3, damping=1)
    with torch.no_grad():
        assert model(torch.zeros(2, 1))[0].tolist() == [[3.0], [3.0]]


def test_training_and_evaluation_have_their_own_budgets():
    model = Counter(FixedPointIteration(max_steps=2, eval_max_steps=5, rtol=0))
    x = torch.zeros(1, 1)
    assert model(x)[1][0].solution.evaluations == 2
    model.eval()
    assert model(x)[1][0].solution.evaluations == 5
    with torch.no_grad():
        assert model(x)[1][0].solution.evaluations == 5
