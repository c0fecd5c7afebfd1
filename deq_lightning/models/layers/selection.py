"""Which layers a sample gets, decided by a network that is trained along with them."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Selection = Literal["independent", "categorical"]
INCLINATION = 1.0  # bias of the logits at the start: most layers are on, so that it is seen what they are good for


class Flops(NamedTuple):
    """Floating-point operations for one sample: those of convolutions, linear layers and attention."""

    once: int  # with all layers off
    steps: list[int]  # of one step of each layer


class Introspection(nn.Sequential):
    """A network that says from features how much each layer is wanted: (batch, in_features) to logits (batch, layers).

    Args:
        in_features: numbers per sample.
        layers: layers to choose from.
        widths: of the hidden layers.

    References:
        Mathur, Pearlmutter and Plis, "MIND over body: adaptive thinking using dynamic computation", ICLR 2025.
    """

    def __init__(self, in_features: int, layers: int, widths: Sequence[int]) -> None:
        hidden = [
            part for size in pairwise((in_features, *widths)) for part in (nn.Linear(*size), nn.ReLU(inplace=True))
        ]
        last = nn.Linear((in_features, *widths)[-1], layers)
        nn.init.constant_(last.bias, INCLINATION)
        super().__init__(*hidden, last)


def chosen(logits: Tensor, selection: Selection, temperature: float, training: bool) -> Tensor:
    r"""Return which layers are on, 1 or 0, with the gradient of a relaxed choice.

    In training Gumbel noise is added to the logits and the larger one wins; backward, the choice is
    :math:`\mathrm{softmax}((\mathrm{logits} + \mathrm{noise}) / \tau)` (straight-through). In evaluation there is no
    noise.

    Args:
        logits: (batch, layers); 0 is that of doing nothing.
        selection: whether each layer is chosen by itself, `independent`, or one of them or none, `categorical`.
        temperature: τ, above 0.
        training: whether noise is added.

    References:
        Jang, Gu and Poole, "Categorical reparameterization with Gumbel-softmax", ICLR 2017, arXiv:1611.01144.
    """
    logits = logits.float()
    if selection == "independent":
        logits = torch.stack([logits, torch.zeros_like(logits)], dim=-1)
        return _one_of(logits, temperature, training)[..., 0]
    return _one_of(F.pad(logits, (0, 1)), temperature, training)[:, :-1]


def _one_of(logits: Tensor, temperature: float, training: bool) -> Tensor:
    if training:
        return F.gumbel_softmax(logits, temperature, hard=True)
    return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits)
