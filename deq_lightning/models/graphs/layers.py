"""Implicit graph neural networks."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deq_lightning.configured import above, sizes, within
from deq_lightning.models.base import Equilibrium, ImplicitModel, Network, Start
from deq_lightning.models.graphs.adjacency import Adjacency, GraphBatch, graph_batch
from deq_lightning.models.graphs.well_posed import check_perron
from deq_lightning.models.layers.projections import project_rows_to_l1_ball_
from deq_lightning.solvers import FixedPointIteration, Partition, Solver


class GraphInjection(NamedTuple):
    """What the cell of a graph layer needs beside its state."""

    bias: Tensor  # (1, nodes, width)
    adjacency: Adjacency
    graph: Tensor  # (nodes,) the place in the batch of each node's graph
    num_graphs: int


class ImplicitGraphLayer(ImplicitModel):
    r"""Layer whose node states are the equilibrium of :math:`X = \varphi(W X A + \Omega_1 U A)`.

    U are the node features, :math:`A_{st}` is the weight of the edge from s to t, and nodes are columns. W is kept
    where the equilibrium exists and is unique: after every optimizer step each of its rows is projected onto the
    :math:`\ell_1` ball of radius κ / ρ, so that :math:`\|W\|_\infty \rho(A) \le \kappa`. (The published code does it
    before every forward pass, with the ρ of the batch, in evaluation too, where a graph of larger ρ changes the model.)

    Args:
        in_features: features of a node.
        width: of the state of a node.
        kappa: κ, in (0, 1).
        perron: ρ, a bound on the Perron-Frobenius eigenvalue of |A| for every graph, above 0. 1 for an adjacency with
            degree normalisation.
        activation: φ, applied to every number by itself, with slopes in [−1, 1]. None: `torch.nn.ReLU()`.
        unused_parameters: whether to have Ω₂ (width, in_features) and a bias (width,), which the published code
            creates, counts and never uses.
        solver: finds the equilibrium. None: `FixedPointIteration(max_steps=300, rtol=1e-5)`.

    Shapes:
        A `GraphBatch` to (nodes, width). The state is (1, nodes, width), because nodes interact; every graph has its
        own residual, stops by itself and keeps its own best iterate. An adjoint solve stops for all of them at once.

    Raises:
        ValueError: if an argument is out of its range.
        CombinationError: from `forward`, if a graph's Perron-Frobenius eigenvalue is above `perron`.

    References:
        Gu et al., "Implicit graph neural networks", NeurIPS 2020, arXiv:2009.06211, Eq. 1 and Section 3.3.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        kappa: float = 0.9,
        perron: float = 1.0,
        activation: nn.Module | None = None,
        unused_parameters: bool = False,
        solver: Solver | None = None,
    ) -> None:
        super().__init__(solver or FixedPointIteration(max_steps=300, rtol=1e-5))
        sizes(1, in_features=in_features, width=width)
        within("(0, 1)", kappa=kappa)
        above(0, perron=perron)
        self.perron = perron
        self.radius = kappa / perron
        self.weight = nn.Parameter(torch.empty(width, width))
        self.omega1 = nn.Parameter(torch.empty(width, in_features))
        if unused_parameters:
            self.omega2 = nn.Parameter(torch.empty(width, in_features))
            self.bias = nn.Parameter(torch.empty(width, 1))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(width), 1 / math.sqrt(width))
        self.activation = activation or nn.ReLU()
        self.project([])

    @property
    def separable(self) -> bool:
        """One product takes all graphs."""
        return False

    def partition(self, u: GraphInjection) -> Partition | None:
        """Return the graphs, where there are several."""
        return Partition(u.graph, u.num_graphs) if u.num_graphs > 1 else None

    def inject(self, x: GraphBatch) -> GraphInjection:
        """Return Ω₁ U A, and A, which must be one that the projection is made for."""
        check_perron(x, self.perron)
        bias = F.linear((x.adjacency @ x.features).to(self.omega1.dtype), self.omega1)[None]
        return GraphInjection(bias, x.adjacency, x.graph, x.num_graphs)

    def initial_state(self, u: GraphInjection) -> Tensor:
        """Return zeros."""
        return self.zeros(u.bias.shape)

    def cell(self, z: Tensor, u: GraphInjection) -> Tensor:
        """Return φ(W X A + Ω₁ U A)."""
        return self.activation(u.adjacency.add_product(u.bias[0], F.linear(z[0], self.weight))[None]).to(z.dtype)

    def readout(self, z: Tensor) -> Tensor:
        """Return the states of the nodes."""
        return z[0]

    def project(self, equilibria: Sequence[Equilibrium]) -> None:
        """Project every row of W."""
        del equilibria
        project_rows_to_l1_ball_(self.weight, self.radius)


class IGNN(Network):
    """Base of the implicit graph neural networks: stacked layers, each with an equilibrium of its own.

    Args:
        widths: features of a node, then the width of each layer.
        kappa: κ of every layer, in (0, 1).
        perron: bound on the Perron-Frobenius eigenvalue of the adjacency, above 0; 1 with degree normalisation.
        activation: φ of every layer. None: `torch.nn.ReLU()`.
        unused_parameters: whether every layer has the two tensors that the published code counts and never uses.
        solver: finds the equilibrium of every layer. None: `FixedPointIteration(max_steps=300, rtol=1e-5)`.

    Shapes:
        A `Data` or `Batch` of PyTorch Geometric with `x`, `edge_index` and, where edges have weights, `edge_weight`.

    Raises:
        CombinationError: from `forward`, if a graph's Perron-Frobenius eigenvalue is above `perron`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        kappa: float = 0.9,
        perron: float = 1.0,
        activation: nn.Module | None = None,
        unused_parameters: bool = False,
        solver: Solver | None = None,
    ) -> None:
        super().__init__()
        self.in_features = widths[0]
        self.perron = perron
        self.layers = nn.ModuleList(
            ImplicitGraphLayer(before, after, kappa, perron, activation, unused_parameters, solver)
            for before, after in pairwise(widths)
        )

    def forward(self, x: Any, start: Sequence[Start] | None = None) -> tuple[Tensor, list[Equilibrium]]:
        """Return the prediction and the equilibria, one for each layer.

        Args:
            x: the graphs.
            start: where the solver of each layer starts, such as the equilibria of an earlier call. None: at zeros.

        Raises:
            ValueError: if there is not one start for each layer, or one is not of the layer's shape.
        """
        layers = self.implicit_layers()
        if start is not None and len(start) != len(layers):
            raise ValueError(f"`start` must have one entry for each of {len(layers)} layers, got {len(start)}.")
        graphs, equilibria = graph_batch(x, next(self.parameters()).dtype), []
        for index, layer in enumerate(layers):
            states, solved = layer(graphs, None if start is None else start[index])
            equilibria += solved
            graphs = graphs._replace(features=self.combine(index, states, graphs.features))
        return self.predict(graphs), equilibria

    def implicit_layers(self) -> list[ImplicitGraphLayer]:
        """Return the layers."""
        return [layer for layer in self.layers if isinstance(layer, ImplicitGraphLayer)]

    def combine(self, index: int, states: Tensor, features: Tensor) -> Tensor:
        """Return what follows layer `index`, from the states that it found and the features that it was given."""
        del index, features
        return states

    @abstractmethod
    def predict(self, graphs: GraphBatch) -> Tensor:
        """Return the prediction from what follows the last layer."""

    def project(self, equilibria: Sequence[Equilibrium]) -> None:
        """Project the W of every layer."""
        del equilibria
        for layer in self.implicit_layers():
            layer.project([])

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the cell of every layer."""
        for layer in self.implicit_layers():
            layer.compile(*args, **kwargs)
