"""Golden results of tiny problems, keyed by the versions that are raised when results change.

A failure here means that results have changed: raise the version named in the message and add the new numbers under it, or mend
the change.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import bigdeconv
from bigdeconv.calibration import block_cost, halo
from bigdeconv.geometry import Box
from bigdeconv.numerics import NUMERICS_VERSION
from bigdeconv.numerics.restoration import CalibratedSettings
from bigdeconv.planning.cost import Costs, Rates
from bigdeconv.planning.planner import PlanRequest, make_plan
from bigdeconv.psf import PSF, gaussian

SHAPE = (16, 20, 24)
VOXEL_ZYX_UM = (0.2, 0.1, 0.1)
VIEW = gaussian((1.5, 1.0, 1.2), truncate=2.5)
NUMERICS = {
    9: {
        "rl": (33405.42, 15148.57, 3553970.0, 253.7667),
        "rltv": (33270.39, 15101.77, 3452869.0, 233.9921),
        "rltv-reference": (33393.9, 15141.09, 3407472.0, 238.5553),
        "garl": (33412.38, 15180.09, 3602454.0, 250.7833),
        "garl-reference": (33403.59, 15147.63, 3553260.0, 253.7145),
        "garl-large": (33958.65, 15421.17, 2227574.0, 144.158),
        "garl-auto": (33606.13, 15256.46, 2927955.0, 200.1149),
        "rl-auto": (41960.62, 19639.21, 3824153.0, 267.4971),
        "views": (32053.67, 14558.19, 2394971.0, 177.4866),
    }
}
HALO = {8: ((0.1059, 0.02304, 0.004917, 0.0008424), (0.1151, 0.0368, 0.005514, 0.0007195))}
COST = {8: 39.16014164029667}
JOBS = {
    "rl": {"method": "rl", "iterations": 8},
    "rltv": {"method": "rltv", "iterations": 8, "tau": 0.005},
    "rltv-reference": {"method": "rltv", "iterations": 8, "tau": 0.005, "update": "reference"},
    "garl": {"method": "garl", "iterations": 8, "tau": 0.05},
    "garl-reference": {"method": "garl", "iterations": 8, "tau": 0.02, "update": "reference"},
    "garl-large": {"method": "garl", "iterations": 4, "tau": 0.05, "model": "large"},
    "garl-auto": {"method": "garl", "iterations": 6},
    "rl-auto": {"method": "rl", "iterations": 8, "background": "auto", "intensity_scale": "auto"},
    "views": {"method": "rltv", "iterations": 5, "tau": 0.01},
}


def counts():
    """A scene from formulas: no random generator whose stream another version may change."""
    z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in SHAPE), indexing="ij")
    lines = np.exp(-((y - 8 - 0.3 * x) ** 2 + (z - 8) ** 2) / 3) + 0.7 * np.exp(-((x - 12) ** 2 + (z - 5) ** 2) / 4)
    noise = 3 * np.sin(12.9898 * z + 78.233 * y + 37.719 * x)
    return np.maximum(np.rint(4 + 80 * lines + noise), 0)


def fingerprint(estimate):
    """Four numbers that a change of any voxel by more than rounding moves."""
    ramp = np.arange(estimate.size, dtype=np.float64).reshape(estimate.shape) / estimate.size
    values = estimate.astype(np.float64)
    return float(values.sum()), float((values * ramp).sum()), float(np.square(values).sum()), float(values.max())


# The phantom was never blurred: it is sharper than any PSF allows, which is told.
@pytest.mark.filterwarnings("ignore:The data are sharper")
@pytest.mark.parametrize("name", JOBS)
def test_restorations(name):
    given = {"background": 4.0, "intensity_scale": 60.0, "voxel_zyx_um": VOXEL_ZYX_UM} | JOBS[name]
    y, psf = counts(), VIEW
    if name == "views":
        y, psf = np.stack([y, 0.6 * np.roll(y, 1, axis=2)]), np.stack([VIEW, 0.6 * np.roll(VIEW, 1, axis=2)])
    found = fingerprint(bigdeconv.deconvolve(y, psf, **given))
    assert NUMERICS_VERSION in NUMERICS, f"add the results of numerics version {NUMERICS_VERSION}"
    expected = NUMERICS[NUMERICS_VERSION][name]
    assert found == pytest.approx(expected, rel=2e-4), "results have changed: raise NUMERICS_VERSION"


def test_edge_error_profiles():
    settings = CalibratedSettings(
        method="rltv", iterations=6, voxel_zyx_um=VOXEL_ZYX_UM, tau=0.003, background=5.0, intensity_scale=100.0
    )
    profile = halo.measure(PSF(VIEW[None], VOXEL_ZYX_UM), settings, None, 2, 1e-3)
    found = [tuple(curve[i] for i in (0, 3, 6, 10)) for curve in (profile.ends_above, profile.ends_below)]
    assert halo.VERSION in HALO, f"add the profile of halo version {halo.VERSION}"
    for curve, expected in zip(found, HALO[halo.VERSION], strict=True):
        assert curve == pytest.approx(expected, rel=0.02), "profiles have changed: raise the VERSION of the halo"


def test_predicted_cost():
    rates = Rates(transform=1e-9, otf=2e-9, prior=3e-8)
    costs = Costs(small=rates, large=Rates(2e-9, 4e-9, 5e-8), prepare=4e-8, decode=5e-9, write=2e-8, block=0.02)
    plan = make_plan(
        PlanRequest(
            (100, 200, 300), (9, 11, 13), VOXEL_ZYX_UM, block_shape=(64, 64, 64), roi=Box((0, 0, 0), (90, 180, 300))
        )
    )
    assert block_cost.VERSION in COST, f"add the cost of version {block_cost.VERSION}"
    assert math.isclose(costs.total(plan, 2, 20), COST[block_cost.VERSION], rel_tol=1e-9), (
        "predicted costs have changed: raise the VERSION of the block cost"
    )
