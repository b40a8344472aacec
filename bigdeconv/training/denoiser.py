"""Denoising by the regulariser, ``D(z) = argmin ½‖x - z‖² + R(x)``, and its derivative with respect to the parameters.

The minimum is a fixed point that does not depend on the iterates, so its derivative follows from the fixed-point equation alone
(Bai, Kolter, Koltun, "Deep equilibrium models", NeurIPS 2019), without any iterate in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from bigdeconv.training.regularizer import Operator


@torch.no_grad()
def denoise(
    noisy: Tensor,
    gradient: Callable[[Tensor], Tensor],
    mu: float,
    *,
    iterations: int,
    tolerance: float = 0.0,
    seen: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Minimise ``½‖x - z‖² + R(x)`` by accelerated gradient steps of 1/(1 + μ) from ``x = z``.

    Nesterov's momentum is restarted for each item of the batch for which it points uphill (O'Donoghue and Candès 2015).

    Parameters
    ----------
    noisy : Tensor, ``b z y x``
        Noisy volumes z.
    gradient : callable
        ``∇R`` of a batch.
    mu : float
        Largest curvature of R.
    iterations : int
        Largest number of steps.
    tolerance : float
        The iteration stops when no item of the batch changes by more than this fraction of its norm.
    seen : callable, optional
        Is called after each step with its number, from 1, and its result.

    Returns
    -------
    Tensor, ``b z y x``

    Examples
    --------
    Without a regulariser nothing changes:

    >>> denoise(torch.ones(1, 1, 1, 2), torch.zeros_like, 1.0, iterations=3)
    tensor([[[[1., 1.]]]])
    """
    x = before = noisy
    t = noisy.new_ones(len(noisy))
    for k in range(1, iterations + 1):
        t_next = (1 + (1 + 4 * t * t).sqrt()) / 2
        p = x + _column((t - 1) / t_next) * (x - before)
        move = (noisy - p - gradient(p)) / (1 + mu)
        before, x = x, p + move
        t = torch.where(_dot(move, x - before) < 0, torch.ones_like(t), t_next)
        if seen is not None:
            seen(k, x)
        if tolerance > 0 and bool((_dot(move, move) <= tolerance**2 * _dot(x, x)).all()):
            break
    return x


def parameter_surrogate(
    operator: Operator, x: Tensor, slope: Tensor, *, iterations: int, tolerance: float
) -> tuple[Tensor, int]:
    """Return a number that has the derivative of the loss with respect to the parameters.

    From ``x - z + ∇R_θ(x) = 0`` follows ``dL/dθ = -uᵀ ∂∇R_θ(x)/∂θ`` with ``(I + ∇²R) u = dL/dx``; the number is
    ``-uᵀ∇R_θ(x) = -⟨Wu, ψ'(αWx)/α⟩`` with x and u held fixed.

    Parameters
    ----------
    operator : Operator
        R with gradients to the parameters.
    x : Tensor, ``b z y x``
        The fixed point.
    slope : Tensor, ``b z y x``
        ``dL/dx`` at ``x``.
    iterations, tolerance : int, float
        Bounds of the conjugate gradients for u, see `conjugate_gradients`.

    Returns
    -------
    surrogate : Tensor
        The number.
    steps : int
        Steps of the conjugate gradients.
    """
    with torch.no_grad():
        hessian = operator.detach().hessian(x)
        u, n = conjugate_gradients(lambda v: v + hessian(v), slope, iterations=iterations, tolerance=tolerance)
    both = operator.respond(torch.cat([x, u]))
    at_x, at_u = both[: len(x)], both[len(x) :]
    return -(at_u * operator.potential_derivative(at_x)).sum(), n


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor], right: Tensor, *, iterations: int, tolerance: float
) -> tuple[Tensor, int]:
    """Solve ``A u = r`` with a symmetric positive A for each item of a batch.

    Parameters
    ----------
    matrix : callable
        Product with A.
    right : Tensor, ``b z y x``
        Right-hand sides r.
    iterations : int
        Largest number of steps.
    tolerance : float
        Residual, relative to r, at which all items are solved.

    Returns
    -------
    u : Tensor, ``b z y x``
        Solutions.
    steps : int
        Steps taken.

    Examples
    --------
    >>> conjugate_gradients(lambda u: 2 * u, torch.ones(1, 1, 1, 2), iterations=5, tolerance=1e-6)
    (tensor([[[[0.5000, 0.5000]]]]), 1)
    """
    u = torch.zeros_like(right)
    residual = direction = right
    power = first = _dot(right, right)
    for k in range(iterations):
        if bool((power <= tolerance**2 * first).all()):
            return u, k
        image = matrix(direction)
        # An item with r = 0 would divide 0 by 0; the clamp keeps its u at 0.
        length = _column(power / _dot(direction, image).clamp(min=torch.finfo(right.dtype).tiny))
        u = u + length * direction
        residual = residual - length * image
        power, power_before = _dot(residual, residual), power
        direction = residual + _column(power / power_before.clamp(min=torch.finfo(right.dtype).tiny)) * direction
    return u, iterations


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _column(numbers: Tensor) -> Tensor:
    return numbers[:, None, None, None]
