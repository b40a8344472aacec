"""Accelerated Richardson-Lucy with an optional prior: RL, RL-TV and GARL.

Minimises ``Σ_v Σ_m w_v [H_v x + b − y_v log(H_v x + b)]_m + τ R(x)`` over ``x ≥ 0``, all in units of the intensity scale.

References
----------
Pham, "3D Deconvolution Microscopy with a Learned Regularizer" (2025), eqs. 3 and 9, algorithm 1; Richardson (1972), Lucy (1974);
Nesterov (1983) for the momentum; Bertero and Boccacci, A&A 437 (2005) for the unknown exterior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from bigdeconv.geometry import PRIOR_MARGIN

if TYPE_CHECKING:
    from torch import Tensor

    from bigdeconv.physics.convolution import Blur
    from bigdeconv.priors import Prior

FLOOR = 1e-6
"""Least value of ``Hp + b``, ``p`` and ``x``, in units of the intensity scale."""
SENSITIVITY_FLOOR = 1e-3
"""Least value of ``Hᵀw`` as a fraction of its maximum: far outside the data it tends to zero."""
MOST_PRIOR_STEPS = 4
"""Most steps in a prior per step on the data."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is minimised, in units of the intensity scale."""

    data: Tensor
    """Views on the data window, ``v z y x``, non-negative."""
    weights: Tensor | None
    """Weight of each datum in [0, 1], like ``data``; None means 1 everywhere."""
    background: float
    blur: Blur
    prior: Prior | None = None
    tau: float = 0.0
    """Strength of the prior."""
    saturation: float = math.inf
    """A datum from here on means "at least": its ratio is never below 1."""
    update: Literal["convergent", "reference"] = "convergent"
    """How a prior enters a step; without one both are the same."""
    momentum: bool = True
    """Whether Nesterov's momentum accelerates the iteration; plain steps are for comparison."""


@dataclass(slots=True)
class State:
    """Where the iteration stands."""

    x: Tensor
    """Estimate on the estimate window."""
    previous: Tensor
    """Estimate one step before; its memory becomes the next estimate."""
    sensitivity: Tensor
    """``Σ_v H_vᵀ w_v``, floored."""
    t: float = 1.0
    """Nesterov's momentum sequence."""


def solve(problem: Problem, iterations: int) -> Tensor:
    """Run the iteration and return the estimate on the data window, ``z y x``."""
    state = init(problem)
    for _ in range(iterations):
        step(problem, state)
    return state.x[problem.blur.data_slices].clone()


def init(problem: Problem) -> State:
    """Start from ``Hᵀ(w∘y) ⊘ Hᵀw``."""
    blur, data, weights = problem.blur, problem.data, problem.weights
    sensitivity = blur.adjoint((torch.ones_like(view) for view in data) if weights is None else weights)
    # Where there is no datum at all the maximum is 0: the second floor keeps the estimate at its own.
    sensitivity.clamp_(min=max(SENSITIVITY_FLOOR * float(sensitivity.max()), FLOOR))
    x = blur.adjoint(data if weights is None else (w * view for w, view in zip(weights, data, strict=True)))
    x.div_(sensitivity).clamp_(min=FLOOR)
    return State(x, x.clone(), sensitivity)


def step(problem: Problem, state: State) -> None:
    """Go one step from the momentum point ``p = x + ((t − 1)/t₊)(x − x_previous)``."""
    t_next, momentum = _momentum(state.t, problem)
    point = state.previous.mul_(-momentum).add_(state.x, alpha=1 + momentum).clamp_(min=FLOOR)
    ratios = _back_projected_ratios(problem, point)
    if problem.prior is None or problem.tau == 0:
        moved = point.mul_(ratios).div_(state.sensitivity)
    elif problem.update == "reference":
        moved = _reference_update(problem, point, ratios, state.sensitivity)
    else:
        moved = _convergent_update(problem, point, ratios, state.sensitivity)
    state.previous = state.x
    state.x = moved.clamp_(min=FLOOR)
    state.t = t_next


def objective(problem: Problem, x: Tensor) -> float:
    """Return ``Σ_v Σ_m w_v [H_v x + b − y_v log(H_v x + b)]_m + τ R(x)`` of an estimate on the estimate window."""
    total = 0.0
    for v, blurred in enumerate(problem.blur.views(x)):
        model = blurred.add_(problem.background).clamp_(min=FLOOR)
        terms = model - torch.xlogy(problem.data[v], model)
        total += float((terms if problem.weights is None else terms * problem.weights[v]).sum(dtype=torch.float64))
    if problem.prior is not None and problem.tau > 0:
        total += problem.tau * problem.prior.value(x[prior_window(problem.blur)])
    return total


def prior_window(blur: Blur) -> tuple[slice, ...]:
    """Index of the part of the estimate window on which a prior acts."""
    return tuple(
        slice(max(s.start - PRIOR_MARGIN, 0), min(s.stop + PRIOR_MARGIN, n))
        for s, n in zip(blur.data_slices, blur.estimate_shape, strict=True)
    )


def prior_steps(prior: Prior, n_views: int) -> int:
    """Return the steps in a prior per step on the data: more where many views make a step on the data dear."""
    return min(max(n_views // 4, prior.steps), MOST_PRIOR_STEPS)


def _reference_update(problem: Problem, point: Tensor, ratios: Tensor, sensitivity: Tensor) -> Tensor:
    """``p ∘ (Σ_v H_vᵀ(w_v ∘ y_v ⊘ (H_v p + b)) − τ∇R(p)) ⊘ Σ_v H_vᵀ w_v``, in the memory of ``p``.

    Pham (2025), algorithm 1, line 4.  It has no step-size control: where the prior is strong, it chatters.
    """
    assert problem.prior is not None
    window = prior_window(problem.blur)
    ratios[window] -= problem.tau * problem.prior.gradient(point[window])
    return point.mul_(ratios).div_(sensitivity)


def _convergent_update(problem: Problem, point: Tensor, ratios: Tensor, sensitivity: Tensor) -> Tensor:
    """Lower a function that touches the objective at ``p`` and lies above it, in the memory of ``p``.

    The data term is majorised as by Richardson-Lucy, with ``e = p ∘ Σ_v H_vᵀ(w_v ∘ y_v ⊘ (H_v p + b))``; what is left,
    ``Σ (Hᵀw x − e log x) + τ R(x)``, costs no blurring and takes `prior_steps` steps.  From ``p = x``, without momentum, they
    can only lower the objective, where ``Hᵀw`` is above its floor.
    """
    assert problem.prior is not None
    window = prior_window(problem.blur)
    # Rounding may leave a ratio below 0 where no light comes from.
    expected = point[window] * ratios[window].clamp_(min=0)
    weight = sensitivity[window]
    x = previous = point[window]
    t = 1.0
    for _ in range(prior_steps(problem.prior, problem.blur.n_views)):
        t, momentum = _momentum(t, problem)
        start = x + momentum * (x - previous) if momentum else x
        x, previous = _prior_step(problem, start.clamp_(min=FLOOR), expected, weight), x
    moved = point.mul_(ratios).div_(sensitivity)
    moved[window] = x
    return moved


def _prior_step(problem: Problem, start: Tensor, expected: Tensor, weight: Tensor) -> Tensor:
    """Lower ``Σ (Hᵀw x − e log x) + τ R(x)``.

    ``R`` is majorised by a parabola of curvature ``c`` in every voxel; the minimum is the positive root of
    ``c x² + B x − e = 0`` with ``B = Hᵀw + τ∇R(start) − c start``.

    De Pierro, IEEE Trans. Med. Imaging 14 (1995), for separable surrogates in emission tomography.
    """
    assert problem.prior is not None
    curvature = problem.tau * problem.prior.curvature(start)
    slope = problem.prior.gradient(start).mul_(problem.tau).add_(weight)
    slope -= curvature * start
    root = slope.square().add_(4 * curvature * expected).sqrt_()
    # Each form of the root is taken where it does not subtract numbers of nearly one size.
    total = slope + root
    rising = torch.div(expected, total, out=total).mul_(2)
    falling = root.sub_(slope).div_(2 * curvature)
    return torch.where(slope > 0, rising, falling)


def _momentum(t: float, problem: Problem) -> tuple[float, float]:
    """Return the next number of Nesterov's sequence and the factor of the momentum."""
    t_next = (1 + math.sqrt(1 + 4 * t**2)) / 2
    return t_next, (t - 1) / t_next if problem.momentum else 0.0


def _back_projected_ratios(problem: Problem, point: Tensor) -> Tensor:
    """Return ``Σ_v H_vᵀ(w_v ∘ y_v ⊘ (H_v p + b))``."""

    def ratio(view: int, planes: slice, blurred: Tensor) -> Tensor:
        data = problem.data[view, planes]
        model = blurred.add_(problem.background).clamp_(min=FLOOR)
        ratio = torch.div(data, model, out=model)
        if math.isfinite(problem.saturation):
            ratio = torch.where(data >= problem.saturation, ratio.clamp(min=1), ratio)
        return ratio if problem.weights is None else ratio.mul_(problem.weights[view, planes])

    return problem.blur.there_and_back(point, ratio)
