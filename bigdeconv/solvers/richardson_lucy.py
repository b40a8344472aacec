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
MOST_MOMENTUM = 0.875
"""Bound of the momentum of the convergent update, which 21 iterations of Nesterov's sequence reach.

With more the objective swings, where the prior is strong, after some 60 iterations; with less weak priors take longer than the
reference to its objective after 50.  It is the momentum for a curvature that is at least 0.4 % of the greatest.
"""


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
    """Estimate one step before; its memory becomes the next momentum point."""
    sensitivity: Tensor
    """``Σ_v H_vᵀ w_v``, floored."""
    t: float = 1.0
    """Sequence of the momentum."""


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
    """Go one step from the momentum point ``p = x + ((t − 1)/t₊)(x − x_previous)``; the old estimates' memory is used."""
    t_next, momentum = _momentum(state.t, problem)
    point = state.previous.mul_(-momentum).add_(state.x, alpha=1 + momentum).clamp_(min=FLOOR)
    ratios = _back_projected_ratios(problem, point)
    if _is_convergent(problem):
        moved = _convergent_update(problem, point, ratios, state.sensitivity)
    else:
        moved = _reference_update(problem, point, ratios, state.sensitivity)
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


def _is_convergent(problem: Problem) -> bool:
    """Whether a step is the convergent update; without a prior both updates are Richardson-Lucy's."""
    return problem.update == "convergent" and problem.prior is not None and problem.tau > 0


def _reference_update(problem: Problem, point: Tensor, ratios: Tensor, sensitivity: Tensor) -> Tensor:
    """``p ∘ (Σ_v H_vᵀ(w_v ∘ y_v ⊘ (H_v p + b)) − τ∇R(p)) ⊘ Σ_v H_vᵀ w_v``, in the memory of ``p``.

    Pham (2025), algorithm 1, line 4.  It has no step-size control: where the prior is strong, it chatters.
    """
    if problem.prior is not None and problem.tau > 0:
        window = prior_window(problem.blur)
        ratios[window] -= problem.tau * problem.prior.gradient(point[window])
    return point.mul_(ratios).div_(sensitivity)


def _convergent_update(problem: Problem, point: Tensor, ratios: Tensor, sensitivity: Tensor) -> Tensor:
    """Lower a function that touches the objective at ``p`` and lies above it, in the memory of ``ratios``.

    With a constant ``m ≥ 0`` such that ``Hm ≤ b``, part of the background may count as light of the estimate, ``x + m``.  The
    data term is majorised as by Richardson-Lucy, with ``e = (p + m) ∘ Σ_v H_vᵀ(w_v ∘ y_v ⊘ (H_v p + b))``; what is left,
    ``Σ (Hᵀw x − e log(x + m)) + τ R(x)``, costs no blurring and takes `prior_steps` steps.  From ``p = x``, without momentum,
    they can only lower the objective, where ``Hᵀw`` is above its floor.  The larger ``m``, the sooner a dark voxel brightens.

    Fessler and Hero, IEEE Trans. Image Process. 4 (1995), for the background in the hidden data (ML-EM-3).
    """
    assert problem.prior is not None
    window = prior_window(problem.blur)
    shift = problem.background / problem.blur.greatest_sum
    # Rounding may leave a ratio below 0 where no light comes from.
    expected = ratios.clamp_(min=0).mul_(point.add_(shift))
    lit = _prior_steps(problem, point[window], expected[window], sensitivity[window], shift)
    moved = expected.div_(sensitivity)
    moved[window] = lit
    return moved.sub_(shift)


def _prior_steps(problem: Problem, lit: Tensor, expected: Tensor, weight: Tensor, shift: float) -> Tensor:
    """Lower ``Σ (Hᵀw x − e log(x + m)) + τ R(x)`` from ``x + m``, whose memory is used, and return where it ends."""
    assert problem.prior is not None
    previous, spare = lit, None
    t = 1.0
    for _ in range(prior_steps(problem.prior, problem.blur.n_views)):
        t, momentum = _nesterov(t) if problem.momentum else (t, 0.0)
        start = lit if previous is lit else previous.mul_(-momentum).add_(lit, alpha=1 + momentum)
        start.clamp_(min=FLOOR + shift)
        end = torch.empty_like(start) if spare is None else spare
        _prior_step(problem, start, expected, weight, end)
        spare = None if start is lit else start
        lit, previous = end, lit
    return lit


def _prior_step(problem: Problem, start: Tensor, expected: Tensor, weight: Tensor, out: Tensor) -> None:
    """Lower ``Σ (Hᵀw u − e log u) + τ R(u)``, ``u = x + m``; ``R`` does not feel the constant ``m``.

    A parabola of curvature ``C`` in every voxel lies above ``τR``.  Half of that is enough not to rise, as in any proximal
    gradient step; a momentum wants more where the data do not hold it: ``c = max(C/2, C − Hᵀw/2)`` is taken.  The minimum is the
    positive root of ``c u² + B u − e = 0`` with ``B = Hᵀw + τ∇R(start) − c start``.

    De Pierro, IEEE Trans. Med. Imaging 14 (1995), for separable surrogates in emission tomography.
    """
    assert problem.prior is not None
    for planes, gradient, bound in problem.prior.parabolas(start):
        bound = bound * problem.tau
        curvature = weight[planes].clamp(max=bound).mul_(-0.5).add_(bound)
        slope = gradient.mul_(problem.tau).add_(weight[planes]).sub_(start[planes] * curvature)
        # Each form of the root is taken where it does not subtract numbers of nearly one size.
        root = (expected[planes] * curvature).mul_(4).addcmul_(slope, slope).sqrt_().add_(slope.abs())
        rising = torch.div(expected[planes], root).mul_(2)
        falling = root.div_(curvature).div_(2)
        torch.where(slope > 0, rising, falling, out=out[planes])


def _momentum(t: float, problem: Problem) -> tuple[float, float]:
    """Return the next number of an iteration's sequence and the factor of the momentum, the same for every block."""
    if not problem.momentum:
        return t, 0.0
    t_next, momentum = _nesterov(t)
    return t_next, min(momentum, MOST_MOMENTUM) if _is_convergent(problem) else momentum


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
            ratio = torch.where(data >= problem.saturation, ratio.clamp(min=1), ratio)
        return ratio if problem.weights is None else ratio.mul_(problem.weights[view, planes])

    return problem.blur.there_and_back(point, ratio)
