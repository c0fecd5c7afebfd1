"""An equilibrium network of dense layers."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.configured import sizes, within
from deq_lightning.models.base import Equilibrium, ImplicitModel
from deq_lightning.models.layers.projections import clamp_singular_values_
from deq_lightning.solvers import Solver


class EquilibriumMLP(ImplicitModel):
    r"""An equilibrium in place of the hidden layers of a dense network: z = ReLU(W z + U x + b), then a linear layer.

    W starts with a spectral norm of at most κ below 1 and is brought back there after every optimizer step, to the
    nearest such matrix. So the cell is a contraction: it has exactly one equilibrium, and every solver that iterates it
    comes κ times as near in each step.

    Args:
        in_features: numbers of a row, or values of any other input, flattened.
        num_classes: outputs: classes, or numbers to predict, 1 or more.
        width: dimension of z, 1 or more.
        kappa: κ, in (0, 1).
        dropout: probability of a value of z to be zero in the last layer, in [0, 1).
        solver: finds the equilibrium. None: `Anderson()`.

    Shapes:
        Inputs (batch, ...) to outputs (batch, num_classes). The state is (batch, width).

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        in_features: int = 64,
        num_classes: int = 10,
        width: int = 64,
        kappa: float = 0.9,
        dropout: float = 0.0,
        solver: Solver | None = None,
    ) -> None:
        super().__init__(solver)
        sizes(in_features=in_features, num_classes=num_classes, width=width)
        within("(0, 1)", kappa=kappa)
        within("[0, 1)", dropout=dropout)
        self.in_features = in_features
        self.num_classes = num_classes
        self.kappa = kappa
        self.lift = nn.Sequential(nn.Flatten(), nn.Linear(in_features, width))
        self.mix = nn.Linear(width, width, bias=False)  # b is that of `lift`
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_classes))
        self.project([])

    def inject(self, x: Tensor) -> Tensor:
        """Return U x + b."""
        return self.lift(x)

    def cell(self, z: Tensor, u: Tensor) -> Tensor:
        """Return ReLU(W z + u)."""
        return F.relu(self.mix(z) + u)

    def readout(self, z: Tensor) -> Tensor:
        """Return the outputs."""
        return self.head(z)

    def project(self, equilibria: Sequence[Equilibrium]) -> None:
        """Bring W back to a spectral norm of at most κ."""
        del equilibria
        clamp_singular_values_(self.mix.weight, self.kappa)
