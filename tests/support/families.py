"""A small network of every family."""

import torch
from torch import nn

from deq_lightning import (
    FPN,
    MDEQ,
    MON,
    DenseFPN,
    DEQTransformer,
    IGNNGraphClassifier,
    IGNNNodeClassifier,
    MDEQSegmentation,
    MONConv,
    MONMultiTier,
    Segment,
)

WORDS = dict(vocab_size=20, width=8, heads=2, inner_width=16)
FAMILIES = {
    "mdeq": lambda solver: MDEQ(1, 3, (4, 4), 2, 2, head_channels=(2, 2), final_channels=4, solver=solver),
    "segmentation": lambda solver: MDEQSegmentation(1, 3, (4, 4), 2, 2, downsample=1, solver=solver),
    "fpn": lambda solver: FPN(image_size=8, channels=4, solver=solver),
    "dense": lambda solver: DenseFPN(solver=solver),
    "mon": lambda solver: MON(64, 3, 8, solver=solver),
    "mon_conv": lambda solver: MONConv(1, 8, 3, 4, solver=solver),
    "mon_multi": lambda solver: MONMultiTier(1, 8, 3, (4, 4), solver=solver),
    "language": lambda solver: DEQTransformer(**WORDS, cutoffs=(), div_val=1, solver=solver),
    "adaptive": lambda solver: DEQTransformer(**WORDS, cutoffs=(5, 10), div_val=2, solver=solver),
}
GRAPHS = {
    "graphs": lambda solver: IGNNGraphClassifier(5, 2, width=4, depth=1, perron=3.0, solver=solver),
    "nodes": lambda solver: IGNNNodeClassifier(5, 2, [4], perron=3.0, solver=solver),
}


class Prediction(nn.Module):
    """The prediction alone: equilibria are no output of a graph."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, edge_index=None):
        if isinstance(self.net, DEQTransformer):
            return self.net(Segment(x))[0].hidden
        if edge_index is not None:
            from torch_geometric.data import Data

            x = Data(x=x, edge_index=edge_index)
        return self.net(x)[0]


def batch(family: str, size: int):
    generator = torch.Generator().manual_seed(size)
    if family in ("language", "adaptive"):
        return torch.randint(0, 20, (size, 4), generator=generator)
    side = 28 if family == "dense" else 8
    return torch.randn(size, 1, side, side, dtype=torch.float64, generator=generator)
