"""Accelerated Richardson-Lucy with an optional prior: RL, RL-TV and GARL.

Minimises ``Σ_v Σ_m w_v [H_v x + b − y_v log(H_v x + b)]_m + τ R(x)`` over ``x ≥ 0``, all in units of the intensity scale.

References
----------
Pham, "3D Deconvolution Microscopy with a Learned Regularizer" (2025), eqs. 3 and 9, algorithm 1; Richardson (1972), Lucy (1974);
Nesterov (1983) for the momentum; Bertero and Boccacci, A&A 437 (2005) for the unknown exterior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.functional import avg_pool2d

from bigdeconv.geometry import PRIOR_MARGIN

if TYPE_CHECKING:
    from torch import Tensor

    from bigdeconv.numerics.convolution import Blur
    from bigdeconv.numerics.priors.protocol import Prior

FLOOR = 1e-6
"""Smallest value of ``Hp + b``, ``p`` and ``x``, in units of the intensity scale."""
SENSITIVITY_FLOOR = 1e-3
"""Smallest value of ``Hᵀw``, as a fraction of its maximum: far outside the data ``Hᵀw`` tends to zero."""
MAX_INNER_ITERATIONS = 4
"""Largest number of iterations in the prior per iteration on the data."""
LEAST_CURVATURE = 0.02
"""Smallest curvature of the prior that a step relies on, as a fraction of its bound."""
SMALL_MOVE = 3e-3
"""Move, in units of the intensity scale, at which the curvature along it gives way to the bound: rounding decides smaller ones,
and an iteration that comes to rest ends with steps that cannot raise the objective."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The objective and its settings, in units of the intensity scale."""

    data: Tensor
    """Views on the data window, ``v z y x``, non-negative."""
    weights: Tensor | None
    """Voxel weights in [0, 1], like ``data``, 0 for voxels that are not valid; None means 1 everywhere."""
    background: float
    blur: Blur
    """Forward model ``H`` of the data window."""
    prior: Prior | None = None
    tau: float = 0.0
    """Strength of the prior."""
    saturation: float = math.inf
    """Data from this value on are lower bounds: the ratio of such a voxel is never below 1."""
    update: Literal["convergent", "reference"] = "convergent"
    """Treatment of the prior in an iteration; without a prior both are the same."""
    momentum: bool = True
    """Whether Nesterov's momentum accelerates the iteration; plain iterations serve comparisons."""


@dataclass(slots=True)
class Secant:
    """The last point in the prior and the gradient there: with the next ones they tell the curvature in between."""

    point: Tensor | None = None
    gradient: Tensor | None = None

    def curvature(self, planes: slice, point: Tensor, gradient: Tensor, bound: float) -> Tensor:
        """Return the curvature along the last move in some planes, at most ``bound``, and remember point and gradient.

        Before the first move it is the bound.

        It is ``√(Σ Δ∇R² / Σ Δx²)`` over 3×3 neighbours in a plane.  A bound for all voxels is reached where responses are small,
        as on flat ground; beyond its knee ψ' falls to zero, so that bright points, which need the longest steps, have hardly any
        curvature.  Barzilai and Borwein, IMA J. Numer. Anal. 8 (1988), take one such quotient for all unknowns; one for each
        neighbourhood keeps blocks independent of each other.

        Parameters
        ----------
        planes : slice
        point : Tensor, ``z y x``
            The whole point.
        gradient : Tensor, ``z y x``
            ``∇R`` in the planes.
        bound : float
        """
        if self.point is None or self.gradient is None:
            self.point, self.gradient = point.clone(), torch.zeros_like(point)
        before, after = self.point[planes], point[planes]
        squares = torch.stack([(gradient - self.gradient[planes]).square_(), (after - before).square_()])
        before.copy_(after)
        self.gradient[planes] = gradient
        rise, run = avg_pool2d(squares, 3, 1, 1)
        curvature: Tensor = rise.add_((bound * SMALL_MOVE) ** 2).div_(run.add_(SMALL_MOVE**2)).sqrt_()
        return curvature.clamp_(LEAST_CURVATURE * bound, bound)


@dataclass(slots=True)
class State:
    """State of the iteration between two steps."""

    x: Tensor
    """Estimate on the estimate window."""
    previous: Tensor
    """Estimate of the step before; the next momentum point takes its memory."""
    sensitivity: Tensor
    """``Σ_v H_vᵀ w_v``, floored."""
    t: float = 1.0
    """Number of Nesterov's sequence, which sets the momentum."""
    secant: Secant = field(default_factory=Secant)


def solve(problem: Problem, iterations: int) -> Tensor:
    """Minimise the objective.

    Parameters
    ----------
    problem : Problem
    iterations : int
        Number of steps.

    Returns
    -------
    Tensor, ``z y x``
        Estimate on the data window.

    Examples
    --------
    Without blur and background the data are their own best estimate:

    >>> from bigdeconv.numerics.convolution import Blur
    >>> data = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    >>> solve(Problem(data, None, 0.0, Blur(torch.ones(1, 1, 1, 1), (1, 1, 3))), 5).round(decimals=4)
    tensor([[[1., 2., 3.]]])
    """
    state = init(problem)
    for _ in range(iterations):
        step(problem, state)
    return state.x[problem.blur.data_slices].clone()


def init(problem: Problem) -> State:
    """Return the initial state, with the estimate ``Hᵀ(w∘y) ⊘ Hᵀw``."""
    blur, data, weights = problem.blur, problem.data, problem.weights
    sensitivity = blur.adjoint((torch.ones_like(view) for view in data) if weights is None else weights)
    # Without any valid voxel the maximum is 0: the second floor then keeps the estimate at `FLOOR`.
    sensitivity.clamp_(min=max(SENSITIVITY_FLOOR * float(sensitivity.max()), FLOOR))
    x = blur.adjoint(data if weights is None else (w * view for w, view in zip(weights, data, strict=True)))
    x.div_(sensitivity).clamp_(min=FLOOR)
    return State(x, x.clone(), sensitivity)


def step(problem: Problem, state: State) -> None:
    """Take one step from the momentum point ``p = x + ((t − 1)/t₊)(x − x_previous)``, in the memory of the old estimates.

    Parameters
    ----------
    problem : Problem
    state : State
        Is replaced by the next state.
    """
    t_next, momentum = _momentum(state.t, problem)
    point = state.previous.mul_(-momentum).add_(state.x, alpha=1 + momentum).clamp_(min=FLOOR)
    ratios = _back_projected_ratios(problem, point)
    if _is_convergent(problem):
        moved = _convergent_update(problem, point, ratios, state)
    else:
        moved = _reference_update(problem, point, ratios, state.sensitivity)
    state.previous = state.x
    state.x = moved.clamp_(min=FLOOR)
    state.t = t_next


def objective(problem: Problem, x: Tensor) -> float:
    """Return ``Σ_v Σ_m w_v [H_v x + b − y_v log(H_v x + b)]_m + τ R(x)``.

    Parameters
    ----------
    problem : Problem
    x : Tensor, ``z y x``
        Estimate on the estimate window.

    Returns
    -------
    float
        Summed in float64.
    """
    total = 0.0
    for v, blurred in enumerate(problem.blur.views(x)):
        model = blurred.add_(problem.background).clamp_(min=FLOOR)
        terms = model - torch.xlogy(problem.data[v], model)
        total += float((terms if problem.weights is None else terms * problem.weights[v]).sum(dtype=torch.float64))
    if problem.prior is not None and problem.tau > 0:
        total += problem.tau * problem.prior.value(x[prior_window(problem.blur)])
    return total


def prior_window(blur: Blur) -> tuple[slice, ...]:
    """Return the slices, z y x, of the part of the estimate window on which a prior acts.

    Parameters
    ----------
    blur : Blur
        Forward model, which knows both windows.

    Examples
    --------
    The data window grown by six voxels, as far as the estimate window reaches:

    >>> from bigdeconv.numerics.convolution import Blur
    >>> blur = Blur(torch.ones(1, 1, 5, 21), (1, 20, 20))
    >>> blur.data_slices[1:], prior_window(blur)[1:]
    ((slice(2, 22, None), slice(10, 30, None)), (slice(0, 24, None), slice(4, 36, None)))
    """
    return tuple(
        slice(max(s.start - PRIOR_MARGIN, 0), min(s.stop + PRIOR_MARGIN, n))
        for s, n in zip(blur.data_slices, blur.estimate_shape, strict=True)
    )


def inner_iterations(prior: Prior, n_views: int) -> int:
    """Return the number of iterations in a prior per iteration on the data.

    More views make an iteration on the data more expensive, so that more iterations in the prior cost little beside it.

    Parameters
    ----------
    prior : Prior
        Its ``min_inner_iterations`` is the smallest number.
    n_views : int
        Number of views.
    """
    return min(max(n_views // 4, prior.min_inner_iterations), MAX_INNER_ITERATIONS)


def _is_convergent(problem: Problem) -> bool:
    """Tell whether a step is the convergent update; without a prior both updates are Richardson-Lucy's."""
    return problem.update == "convergent" and problem.prior is not None and problem.tau > 0


def _reference_update(problem: Problem, point: Tensor, ratios: Tensor, sensitivity: Tensor) -> Tensor:
    """``p ∘ (Σ_v H_vᵀ(w_v ∘ y_v ⊘ (H_v p + b)) − τ∇R(p)) ⊘ Σ_v H_vᵀ w_v``, in the memory of ``p``.

    Pham (2025), algorithm 1, line 4.  It has no step-size control: with a strong prior the estimate oscillates.
    """
    if problem.prior is not None and problem.tau > 0:
        window = prior_window(problem.blur)
        ratios[window] -= problem.tau * problem.prior.gradient(point[window])
    return point.mul_(ratios).div_(sensitivity)


def _convergent_update(problem: Problem, point: Tensor, ratios: Tensor, state: State) -> Tensor:
    """Lower a majoriser of the objective, which equals the objective at ``p``, in the memory of ``ratios``.

    With a constant ``m ≥ 0`` such that ``Hm ≤ b``, part of the background counts as light of the estimate, ``x + m``.  The data
    term is majorised as by Richardson-Lucy, with ``e = (p + m) ∘ Σ_v H_vᵀ(w_v ∘ y_v ⊘ (H_v p + b))``.  The majoriser,
    ``Σ (Hᵀw x − e log(x + m)) + τ R(x)``, contains no blur and is lowered in `inner_iterations` iterations.  From ``p = x``,
    without momentum, these never raise the objective where ``Hᵀw`` is above its floor and the curvature is its bound; with the
    curvature along the last move they do not in any case of ``tests/benchmarks/convergence.py``.  The larger ``m``, the sooner a
    dark voxel brightens.

    Fessler and Hero, IEEE Trans. Image Process. 4 (1995), for the background in the hidden data (ML-EM-3).
    """
    assert problem.prior is not None
    window = prior_window(problem.blur)
    shift = problem.background / problem.blur.max_psf_sum
    # Rounding may leave a ratio below 0 at voxels from which no light reaches the data.
    expected = ratios.clamp_(min=0).mul_(point.add_(shift))
    lit = _inner_iterations(problem, point[window], expected[window], state.sensitivity[window], shift, state.secant)
    moved = expected.div_(state.sensitivity)
    moved[window] = lit
    return moved.sub_(shift)


def _inner_iterations(
    problem: Problem, lit: Tensor, expected: Tensor, weight: Tensor, shift: float, secant: Secant
) -> Tensor:
    """Lower ``Σ (Hᵀw x − e log(x + m)) + τ R(x)`` from ``x + m``, in its memory, and return the new ``x + m``."""
    assert problem.prior is not None
    previous, spare = lit, None
    t = 1.0
    for _ in range(inner_iterations(problem.prior, problem.blur.n_views)):
        t, momentum = _nesterov(t) if problem.momentum else (t, 0.0)
        start = lit if previous is lit else previous.mul_(-momentum).add_(lit, alpha=1 + momentum)
        start.clamp_(min=FLOOR + shift)
        end = torch.empty_like(start) if spare is None else spare
        _inner_iteration(problem, start, expected, weight, secant, end)
        spare = None if start is lit else start
        lit, previous = end, lit
    return lit


def _inner_iteration(
    problem: Problem, start: Tensor, expected: Tensor, weight: Tensor, secant: Secant, out: Tensor
) -> None:
    """Lower ``Σ (Hᵀw u − e log u) + τ R(u)``, ``u = x + m``; ``R`` does not change with the constant ``m``.

    A quadratic of curvature ``C`` in every voxel majorises ``τR``.  As in any proximal gradient step, half of that curvature is
    enough for the function not to rise; with momentum, voxels that the data determine little need more, and the curvature is
    ``c = max(C/2, C − Hᵀw/2)``, or the one along the last move (`Secant`) where that is less.  The minimum is the positive root
    of ``c u² + B u − e = 0`` with ``B = Hᵀw + τ∇R(start) − c start``.

    De Pierro, IEEE Trans. Med. Imaging 14 (1995), for separable surrogates in emission tomography.
    """
    assert problem.prior is not None
    for planes, gradient, bound in problem.prior.quadratic_majorisers(start):
        bound = bound * problem.tau
        curvature = weight[planes].clamp(max=bound).mul_(-0.5).add_(bound)
        if isinstance(bound, float):
            along = secant.curvature(planes, start, gradient, bound / problem.tau)
            curvature = torch.minimum(curvature, along.mul_(problem.tau), out=along)
        slope = gradient.mul_(problem.tau).add_(weight[planes]).sub_(start[planes] * curvature)
        # Of the two forms of the root, each voxel takes the one that does not subtract numbers of nearly the same size.
        root = (expected[planes] * curvature).mul_(4).addcmul_(slope, slope).sqrt_().add_(slope.abs())
        rising = torch.div(expected[planes], root).mul_(2)
        falling = root.div_(curvature).div_(2)
        torch.where(slope > 0, rising, falling, out=out[planes])


def _momentum(t: float, problem: Problem) -> tuple[float, float]:
    """Return the next number of the sequence and the factor of the momentum, the same for every block."""
    if not problem.momentum:
        return t, 0.0
    t_next, momentum = _nesterov(t)
    return t_next, momentum if problem.prior is None or not _is_convergent(problem) else min(
        momentum, problem.prior.max_momentum
    )


def _nesterov(t: float) -> tuple[float, float]:
    """Return the next number of Nesterov's sequence and the factor of the momentum."""
    t_next = (1 + math.sqrt(1 + 4 * t**2)) / 2
    return t_next, (t - 1) / t_next


def _back_projected_ratios(problem: Problem, point: Tensor) -> Tensor:
    """Return ``Σ_v H_vᵀ(w_v ∘ y_v ⊘ (H_v p + b))``."""

    def ratio(view: int, planes: slice, blurred: Tensor) -> Tensor:
        data = problem.data[view, planes]
        model = blurred.add_(problem.background).clamp_(min=FLOOR)
        ratio = torch.div(data, model, out=model)
        if math.isfinite(problem.saturation):
            # In place, since a GPU holds a whole window here; no ratio is negative.
            torch.maximum(ratio, (data >= problem.saturation).to(ratio.dtype), out=ratio)
        return ratio if problem.weights is None else ratio.mul_(problem.weights[view, planes])

    return problem.blur.forward_then_adjoint(point, ratio)
