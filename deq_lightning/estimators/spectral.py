"""The spectral radius of a Jacobian."""

import torch
from torch import Tensor

from deq_lightning.configured import check_at_least
from deq_lightning.estimators.linearise import differentiable, linearise, vjp
from deq_lightning.solvers import FixedPointMap
from deq_lightning.state import State


def spectral_radius(f: FixedPointMap, z: State, steps: int = 30) -> Tensor:
    """Estimate the spectral radius of the Jacobian of f at `z` by Arnoldi's method.

    Right for complex pairs of eigenvalues, on which the power method's Rayleigh quotient never settles. The start is a
    fixed vector, so the answer can be repeated and the random state is left alone.

    Args:
        f: the map.
        z: where to linearise it; dimension 0 is the batch.
        steps: vector-Jacobian products, 1 or more; memory: one state each. The answer is exact once it is the dimension
            of the state.

    Returns:
        (batch,) the radius of every sample; NaN where the Jacobian is not finite.

    Raises:
        ValueError: if `steps` is below 1.

    References:
        Saad, "Numerical methods for large eigenvalue problems", 2nd edition, 2011, algorithm 6.2.
    """
    check_at_least(1, steps=steps)
    with differentiable():
        leaf, fz = linearise(f, z)
        with torch.autocast(leaf.device.type, enabled=False):  # the products below must not be rounded to half
            hessenberg = _arnoldi(fz, leaf, min(steps, leaf.shape[1]))
    finite = torch.isfinite(hessenberg).flatten(1).all(dim=1)
    eigenvalues = torch.linalg.eigvals(torch.where(finite[:, None, None], hessenberg, 0).double().cpu())
    return torch.where(finite, eigenvalues.abs().amax(dim=1).to(hessenberg), torch.nan)


@torch.no_grad()
def _arnoldi(fz: Tensor, leaf: Tensor, steps: int) -> Tensor:
    """Return (batch, steps, steps), the restriction of Jᵀ to its Krylov space in an orthonormal basis."""
    batch, dim = leaf.shape
    basis = leaf.new_zeros(batch, steps + 1, dim)
    hessenberg = leaf.new_zeros(batch, steps + 1, steps)
    start = torch.randn(dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis[:, 0] = (start / start.norm()).to(leaf)
    for step in range(steps):
        image = vjp(fz, leaf, basis[:, step])
        size = torch.linalg.vector_norm(image, dim=1)
        for _ in range(2):  # one pass of Gram-Schmidt loses orthogonality
            overlap = torch.einsum("bkd,bd->bk", basis[:, : step + 1], image)
            image = image - torch.einsum("bk,bkd->bd", overlap, basis[:, : step + 1])
            hessenberg[:, : step + 1, step] += overlap
        rest = torch.linalg.vector_norm(image, dim=1)
        # Once the basis spans an invariant subspace only rounding is left of the image; it must not become a direction.
        rest = torch.where(rest <= 10 * torch.finfo(rest.dtype).eps * size, 0, rest)
        hessenberg[:, step + 1, step] = rest
        basis[:, step + 1] = torch.where(rest[:, None] > 0, image / rest[:, None], 0)
    return hessenberg[:, :steps]
