"""Graphs, as `Data` objects of PyTorch Geometric."""

import warnings

with warnings.catch_warnings():  # of what PyTorch Geometric calls while it is imported (2.8 with torch 2.15)
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
    import torch_geometric as torch_geometric
