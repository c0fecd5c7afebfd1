"""Graphs, as `Data` objects of PyTorch Geometric."""

import warnings

import torch

with warnings.catch_warnings():  # of what PyTorch Geometric calls while it is imported (2.8 with torch 2.15)
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
    import torch_geometric as torch_geometric

# PyTorch Geometric (2.8) declares it to be safe in any checkpoint, yet made with the path of another file it unpickles
# that one, whatever it names.
UNSAFE = torch_geometric.loader.ClusterData
safe = [one for one in torch.serialization.get_safe_globals() if one is not UNSAFE]
torch.serialization.clear_safe_globals()
torch.serialization.add_safe_globals(safe)
