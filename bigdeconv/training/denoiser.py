"""Denoising by the regulariser, ``D(z) = argmin ½‖x - z‖² + R(x)``, and its derivative by the parameters.

The minimum is a fixed point that does not depend on the way to it, so neither does the derivative: it is found from the
fixed-point equation itself (Bai, Kolter, Koltun, "Deep equilibrium models", NeurIPS 2019), with no iteration kept in memory.
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

    Momentum after Nesterov, restarted for each item of the batch where it points uphill (O'Donoghue and Candès 2015).

    Parameters
    ----------
    noisy
        ``b z y x``.
    gradient
        ``∇R`` of a batch.
    mu
        Largest curvature of R.
    iterations
        Most steps.
    tolerance
        Stop where no item of the batch moves by more than this share of its norm.
    seen
        Is called with the number of each step and its result.
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
    """Return a number whose derivative by the parameters is that of the loss, and the steps that its adjoint took.

    From ``x - z + ∇R_θ(x) = 0`` follows ``dL/dθ = -uᵀ ∂∇R_θ(x)/∂θ`` with ``(I + ∇²R) u = dL/dx``; the number is
    ``-uᵀ∇R_θ(x) = -⟨Wu, ψ'(αWx)/α⟩`` with x and u held fixed.

    Parameters
    ----------
    operator
        R with its way back to the parameters.
    x
        The fixed point, ``b z y x``.
    slope
        ``dL/dx`` there.
    iterations, tolerance
        Of the conjugate gradients for u.
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
    """Solve ``A u = r`` with a symmetric positive A for each item of a batch; return u and the steps taken."""
    u = torch.zeros_like(right)
    residual = direction = right
    power = first = _dot(right, right)
    for k in range(iterations):
        if bool((power <= tolerance**2 * first).all()):
            return u, k
        image = matrix(direction)
        # Items without a slope stay at 0 rather than divide by it.
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
