"""The spectral radius of a Jacobian."""

from collections.abc import Callable

import torch
from torch import Tensor

from deq_lightning.configured import whole
from deq_lightning.gradients.jacobian import Jacobian
from deq_lightning.precision import full_precision
from deq_lightning.solvers import FixedPointMap
from deq_lightning.solvers.algebra import combination, inner_products
from deq_lightning.state import State


def spectral_radius(f: FixedPointMap, z: State, steps: int = 30) -> Tensor:
    """Estimate the spectral radius of the Jacobian of f at `z` by Arnoldi's method.

    Handles complex pairs of eigenvalues, on which the power method's Rayleigh quotient never settles. The start is a
    fixed vector, so the answer is reproducible and the random state is left alone.

    Args:
        f: the map.
        z: where to linearise it; dimension 0 is the batch.
        steps: vector-Jacobian products, 1 or more; memory: one state each. With as many as the state has dimensions
            the answer is exact up to rounding, which counts for little where J is normal (symmetric, say). Far from
            normal the estimate is biased upwards: a nilpotent chain of 100 states, whose radius is 0, gives about 0.7.

    Returns:
        (batch,) the radius of every sample; NaN where the Jacobian is not finite.

    Raises:
        ValueError: if `steps` is below 1.

    References:
        Saad, "Numerical methods for large eigenvalue problems", 2nd edition, 2011, algorithm 6.2.
    """
    whole(1, steps=steps)
    jacobian = Jacobian(f, z)
    # No graph may hold tensors made in inference mode. J has the spectrum of its transpose.
    product = jacobian if torch.is_inference_mode_enabled() else jacobian.transposed
    with torch.no_grad(), full_precision(jacobian.leaf.device.type):
        hessenberg = _arnoldi(product, jacobian.leaf, min(steps, jacobian.leaf.shape[1]))
    finite = torch.isfinite(hessenberg).flatten(1).all(dim=1)
    eigenvalues = torch.linalg.eigvals(torch.where(finite[:, None, None], hessenberg, 0).cpu().double())
    return torch.where(finite, eigenvalues.abs().amax(dim=1).to(hessenberg.dtype).to(hessenberg.device), torch.nan)


def _arnoldi(product: Callable[[Tensor], Tensor], like: Tensor, steps: int) -> Tensor:
    """Return (batch, steps, steps), the restriction of the Jacobian to its Krylov space in an orthonormal basis."""
    batch, dim = like.shape
    basis = like.new_zeros(batch, steps + 1, dim)
    hessenberg = like.new_zeros(batch, steps + 1, steps)
    start = torch.randn(dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis[:, 0] = (start / start.norm()).to(like.dtype).to(like.device)
    for step in range(steps):
        image = product(basis[:, step])
        size = torch.linalg.vector_norm(image, dim=1)
        for _ in range(2):  # one pass of Gram-Schmidt loses orthogonality
            overlap = inner_products(basis[:, : step + 1], image)
            image = image - combination(overlap, basis[:, : step + 1])
            hessenberg[:, : step + 1, step] += overlap
        rest = torch.linalg.vector_norm(image, dim=1)
        # Once the basis spans an invariant subspace only rounding is left of the image; it must not become a direction.
        rest = torch.where(rest <= 10 * torch.finfo(rest.dtype).eps * size, 0, rest)
        hessenberg[:, step + 1, step] = rest
        basis[:, step + 1] = torch.where(rest[:, None] > 0, image / rest[:, None], 0)
    return hessenberg[:, :steps]
