"""Seams: the model of their error, the halo that a calibration chooses, and the probes that measure it."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigdeconv import models, psf
from bigdeconv.calibration import halo
from bigdeconv.errors import BudgetError
from bigdeconv.geometry import Box
from bigdeconv.numerics import blending
from bigdeconv.numerics.restoration import CalibratedSettings
from bigdeconv.planning import planner
from bigdeconv.planning import seam_error as seams
from bigdeconv.planning import seam_probes as probes
from bigdeconv.planning.resources import Resources
from bigdeconv.planning.seam_error import EdgeErrorProfile
from bigdeconv.reporting import certificate
from bigdeconv.storage.cache import cached
from bigdeconv.storage.ledger import ledger_path
from tests import make
from tests.benchmarks import seams as benchmark

VOXEL_ZYX_UM = (0.1, 0.1, 0.1)
RL = CalibratedSettings(
    method="rl", iterations=10, voxel_zyx_um=VOXEL_ZYX_UM, tau=0.0, background=5.0, intensity_scale=100.0
)


def psf_of(views):
    return psf.PSF(views, VOXEL_ZYX_UM)


PSF = psf_of(psf.gaussian((1.2, 1.0, 1.0), truncate=3.0)[None])
curves = st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=30).map(lambda e: tuple(sorted(e, reverse=True)))


class TestLaw:
    @given(above=curves, below=curves, halo=st.integers(0, 12), blend=st.integers(0, 5), slack=st.integers(0, 3))
    @settings(max_examples=50, deadline=None)
    def test_against_blended_error_fields(self, above, below, halo, blend, slack):
        """Two blocks with one column of errors each that know nothing of each other, blended as a run blends them."""
        face, core = 60, 60
        reach = 2 * blend + halo + slack
        lower, upper = np.zeros(120), np.zeros(120)
        for plane in range(face + reach):
            lower[plane] = above[min(face + reach - 1 - plane, len(above) - 1)]
        for plane in range(face - halo, 120):
            upper[plane] = below[min(plane - (face - halo), len(below) - 1)]
        up = blending.ramp(2 * blend)
        weights = np.concatenate([np.zeros(face), up, np.ones(core - 2 * blend)])
        energy = np.square(lower * (1 - weights)) + np.square(upper * weights)
        width = max(2, blend)
        measured = np.sqrt(energy[face - width : face + width].mean())
        predicted = seams.seam_error(EdgeErrorProfile(above, below), halo, reach, blend)
        assert predicted == pytest.approx(measured, rel=1e-5)

    @given(above=curves, below=curves, blend=st.integers(0, 5), tolerance=st.floats(1e-6, 0.9))
    @settings(max_examples=50, deadline=None)
    def test_the_least_halo(self, above, below, blend, tolerance):
        profile = EdgeErrorProfile(above, below)
        least = seams.min_halo(profile, blend, tolerance)
        errors = [seams.seam_error(profile, h, h + 2 * blend, blend) for h in range(least + 1)]
        wanted = max(tolerance / seams.SAFETY, 1.1 * profile.floor)
        assert errors[-1] <= wanted
        assert all(e > wanted for e in errors[:-1])

    def test_where_the_volume_ends_nothing_is_missing(self):
        profile = EdgeErrorProfile((0.5, 0.1), (0.5, 0.1))
        assert seams.seam_error(profile, None, None, 4) == 0
        one_sided = seams.seam_error(profile, 0, None, 0)
        assert 0 < one_sided < seams.seam_error(profile, 0, 0, 0)

    def test_the_worst_of_two_problems(self):
        first, second = EdgeErrorProfile((0.5, 0.1), (0.4,)), EdgeErrorProfile((0.3, 0.2, 0.1), (0.6, 0.1))
        assert seams.worst([first, second]) == EdgeErrorProfile((0.5, 0.2, 0.1), (0.6, 0.4))


class TestCalibration:
    def test_a_psf_of_one_voxel_takes_no_halo(self):
        profile = halo.measure(psf_of(np.ones((1, 1, 1, 1), np.float32)), RL, None, 0, 1e-3)
        assert profile.ends_above[0] < 1e-6
        assert seams.min_halo(profile, 0, 1e-3) == 0

    def test_a_wide_axis_takes_more_than_a_narrow_one(self):
        kernel = psf_of(psf.gaussian((2.5, 1.0, 1.0), truncate=3.0)[None])
        deep, wide = (seams.min_halo(halo.measure(kernel, RL, None, a, 1e-3), 4, 1e-3) for a in (0, 2))
        assert deep > 1.5 * wide

    def test_more_iterations_take_more(self):
        halos = [
            seams.min_halo(halo.measure(PSF, replace(RL, iterations=n), None, 1, 1e-3), 4, 1e-3) for n in (3, 10, 40)
        ]
        assert halos == sorted(set(halos))

    def test_a_mirrored_problem_has_mirrored_curves(self, monkeypatch):
        """Light that is seen 6 voxels further up carries errors one way; seen in a mirror, the other way."""
        kernel = np.zeros((1, 15, 3, 3), np.float32)
        kernel[0, 7, 1, 1], kernel[0, 13, 1, 1] = 0.7, 0.3
        straight = halo.measure(psf_of(kernel), RL, None, 0, 1e-3)
        slab = halo.slab
        monkeypatch.setattr(
            halo, "slab", lambda _, settings, shape: slab(psf_of(kernel), settings, shape)[:, ::-1].copy()
        )
        mirrored = halo.measure(psf_of(kernel[:, ::-1]), RL, None, 0, 1e-3)
        assert mirrored.ends_above == pytest.approx(straight.ends_below, rel=1e-2, abs=1e-5)
        assert mirrored.ends_below == pytest.approx(straight.ends_above, rel=1e-2, abs=1e-5)
        assert straight.ends_above[3] != pytest.approx(straight.ends_below[3], rel=0.1)

    def test_the_learned_prior_is_part_of_it(self):
        model = models.resolve("default")
        strong = replace(RL, method="garl", tau=1.0, sigma=0.04, iterations=5)
        curves = [halo.measure(PSF, s, model, 2, 1e-3) for s in (RL, strong)]
        assert curves[0] != curves[1]

    def test_a_measurement_is_made_once(self, monkeypatch):
        first = halo.calibrate(PSF, RL, None, 0, 2e-3)
        monkeypatch.setattr(halo, "measure", None)
        assert halo.calibrate(PSF, RL, None, 0, 2e-3) == first
        with pytest.raises(TypeError):
            halo.calibrate(PSF, replace(RL, iterations=9), None, 0, 2e-3)


class TestCache:
    @pytest.mark.parametrize(
        "damage",
        [
            "",
            "{",
            "[]",
            "7",
            '{"name": "other", "result": {"x": 9}}',
            '{"name": "one"}',
            '{"name": "one", "result": {}}',
        ],
    )
    def test_a_damaged_file_is_made_anew(self, tmp_path, monkeypatch, damage):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert cached("one", lambda: {"x": 1.5}, lambda r: r["x"]) == 1.5
        (tmp_path / "bigdeconv" / "one.json").write_text(damage)
        assert cached("one", lambda: {"x": 2.5}, lambda r: r["x"]) == 2.5
        assert cached("one", dict, lambda r: r["x"]) == 2.5
        assert [p.name for p in (tmp_path / "bigdeconv").iterdir()] == ["one.json"]

    def test_a_folder_that_cannot_be_written_is_done_without(self, tmp_path, monkeypatch):
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert cached("one", lambda: {"x": 1}, lambda r: r["x"]) == 1


@pytest.mark.slow
class TestTiledAgainstUntiled:
    """A small part of the benchmark: eight blocks, and one."""

    @pytest.mark.parametrize(
        ("name", "edge", "method", "tau"),
        # A core and its halo must leave out a part of the volume, or there is nothing to see.
        [("isotropic", 24, "rl", 0.0), ("isotropic", 24, "garl", 0.1), ("asymmetric", 32, "rltv", 1e-3)],
    )
    def test_measured_keeps_the_tolerance_and_is_near_the_prediction(self, tmp_path, name, edge, method, tau):
        kernel, _ = benchmark.psfs()[name]
        counts = benchmark.tubes(kernel, (2 * edge,) * 3)
        options = {"method": method, "tau": tau, "iterations": 10, "block_shape": (edge,) * 3}
        found = benchmark.compare(tmp_path / "run", kernel, counts, **options)
        assert all(n < 2 * edge for n in found.plan.read_shape)
        predicted, measured = max(found.plan.seam_errors), max(found.measured)
        assert measured <= benchmark.TOLERANCE
        assert measured / 3 <= predicted <= 3 * measured

    @pytest.mark.parametrize("blend", [4, 0])
    def test_the_gradient_on_seam_planes_is_that_of_the_whole(self, tmp_path, blend):
        kernel, _ = benchmark.psfs()["isotropic"]
        block = (24, 24, 24)
        counts = benchmark.texture(kernel, (48, 48, 48))
        options = {"method": "rl", "iterations": 10, "block_shape": block, "blend": (blend,) * 3}
        assert benchmark.compare(tmp_path / "run", kernel, counts, **options).gradient_change < 0.005
        # Without a halo the planes stand out.
        cut = benchmark.compare(tmp_path / "cut", kernel, counts, halo=(0, 0, 0), **options)
        assert cut.gradient_change > (0.005 if blend == 0 else 0.001)


class TestBudget:
    def request(self, **changes):
        values = {
            "zyx_shape": (512, 512, 512),
            "psf_shape": PSF.support_zyx,
            "voxel_zyx_um": (1.0, 1.0, 1.0),
            "chunk_shape": (16, 16, 16),
        }
        return planner.PlanRequest(**values | changes)

    def test_the_refusal_names_iterations_that_would_fit(self):
        plan = halo.make_plan(self.request(block_shape=(16, 16, 16)), RL, [PSF], None)
        small = self.request(block_shape=(16, 16, 16), resources=Resources(budget_bytes=plan.peak_bytes_per_worker))
        with pytest.raises(BudgetError, match=r"--iterations \d+ would fit, with a halo of [\d,]+\.$"):
            halo.make_plan(small, replace(RL, iterations=20), [PSF], None)

    def test_the_refusal_names_a_block_that_would_fit(self):
        plan = halo.make_plan(self.request(block_shape=(16, 16, 16)), RL, [PSF], None)
        large = self.request(block_shape=(256, 256, 256), resources=Resources(budget_bytes=plan.peak_bytes_per_worker))
        with pytest.raises(BudgetError, match=r"--block-shape 16,16,16 would fit\."):
            halo.make_plan(large, RL, [PSF], None)

    def test_a_halo_that_is_too_small_is_said(self):
        request = self.request(block_shape=(64, 64, 64), halo=(0, 0, 0))
        plan = halo.make_plan(request, RL, [PSF], None)
        assert plan.halo == (0, 0, 0)
        assert "leave --halo out" in halo.warnings(plan, request)[0]
        assert halo.warnings(halo.make_plan(replace(request, halo=None), RL, [PSF], None), request) == []


def plan_of(**changes):
    profile = EdgeErrorProfile(tuple(0.5**d for d in range(20)), tuple(0.5**d for d in range(20)))
    values = {
        "zyx_shape": (64, 96, 64),
        "psf_shape": (5, 5, 5),
        "voxel_zyx_um": (1.0, 1.0, 1.0),
        "chunk_shape": (16, 16, 16),
        "block_shape": (64, 32, 32),
        "edge_profiles": (None, profile, profile),
    }
    return planner.make_plan(planner.PlanRequest(**values | changes))


class TestProbes:
    @given(count=st.integers(0, 12), seed=st.text(max_size=5), blend=st.integers(0, 6))
    @settings(max_examples=40, deadline=None)
    def test_chosen_seams_are_faces_between_cores(self, count, seed, blend):
        plan = plan_of(blend=(blend,) * 3)
        chosen = probes.choose((plan,), count, seed)
        # Six columns of cores: two faces across y in each of two, one across x in each of three.
        assert len(chosen) == min(count, 4 + 3) == probes.available((plan,), count)
        assert len({(p.axis, p.face, p.strip) for p in chosen}) == len(chosen)
        assert chosen == probes.choose((plan,), count, seed)
        for probe in chosen:
            assert probe.axis in (1, 2)
            assert probe.face % plan.core_shape[probe.axis] == 0
            width = max(2, plan.blend[probe.axis])
            assert probe.strip.start[probe.axis] == probe.face - width
            assert probe.strip.stop[probe.axis] == probe.face + width
            for patch in probe.patches():
                window = probes.window_of(plan, patch)
                assert probe.strip.contains(patch)
                assert window.contains(patch.grow((0, *plan.halo[1:])).intersect(Box.of_shape(plan.zyx_shape)))
                assert all(n <= most for n, most in zip(window.shape, plan.read_shape, strict=True))

    @given(count=st.integers(1, 9), seed=st.text(max_size=5), outside=st.lists(st.booleans(), min_size=12, max_size=12))
    @settings(max_examples=60, deadline=None)
    def test_nothing_is_probed_where_the_mask_leaves_out_a_block(self, count, seed, outside):
        """A strip is probed if every block that reaches into the cores beside it is computed; all such are found."""
        plan = plan_of(timepoints=(0, 3))
        chosen = probes.choose((plan,), count, seed, bytes(outside))
        tasks = list(plan.tasks())

        def good(probe):
            beside = [t.core for t in tasks if t.core.intersect(probe.strip).size]
            near = [
                t for t in tasks if t.timepoint == probe.timepoint and any(t.keep.intersect(c).size for c in beside)
            ]
            return not any(outside[t.index] for t in near)

        assert all(good(probe) for probe in chosen)
        assert len(chosen) == min(count, sum(good(probe) for probe in probes.choose((plan,), 100, "all")))

    @pytest.mark.parametrize(("n_volumes", "count"), [(2, 5), (3, 3), (40, 8)])
    def test_several_volumes_take_turns(self, n_volumes, count):
        plans = tuple(plan_of(zyx_shape=(64, 96, 64 + 32 * (v % 2))) for v in range(n_volumes))
        chosen = probes.choose(plans, count, "a")
        assert len(chosen) == count
        assert len({(p.volume, p.axis, p.face, p.strip) for p in chosen}) == count
        assert len({p.volume for p in chosen}) == min(n_volumes, count)
        for probe in chosen:
            assert Box.of_shape(plans[probe.volume].zyx_shape).contains(probe.strip)
        with_mask = probes.choose(plans, count, "a", bytes(sum(plan.n_blocks for plan in plans)))
        assert len(with_mask) == count

    def test_a_plan_without_seams_has_none(self):
        assert probes.choose((plan_of(block_shape=(64, 96, 64)),), 8, "a") == []

    def test_a_million_blocks_are_no_more_work(self):
        plan = plan_of(zyx_shape=(6400, 6400, 6400), block_shape=(64, 64, 64), resources=Resources(budget_bytes=2**40))
        assert {p.axis for p in probes.choose((plan,), 9, "a")} == {0, 1, 2}

    def test_errors_are_pooled_over_probes_less_the_rounding(self):
        box = Box((0, 0, 0), (1, 2, 2))
        first = probes.SeamMeasurement(1, 0, 0, 32, box, box, 5.0, 1.0, 100.0, 0.5, (0, 1, 1))
        second = replace(first, difference=12.0, rounding=3.0, reference=300.0)
        dark = replace(first, axis=2, difference=0.0, rounding=0.0, reference=0.0)
        found = certificate.certificate((plan_of(),), 0.2, [first, second, dark])
        assert found["measured"]["y"] == {
            "error": pytest.approx(np.sqrt(13 / 400), rel=1e-2),
            "as_stored": pytest.approx(np.sqrt(17 / 400), rel=1e-2),
            "rounding": pytest.approx(0.1),
        }
        assert found["measured"]["z"] is found["measured"]["x"] is None
        assert found["within_tolerance"] is True
        assert found["worst"]["error"] == pytest.approx(0.2)
        assert certificate.certificate((plan_of(),), 0.1, [first, second])["within_tolerance"] is False
        assert certificate.certificate((plan_of(),), 0.1, [dark])["within_tolerance"] is None


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cluster_address):
    """A folder with one run that keeps its tolerance and one that was told not to."""
    folder = tmp_path_factory.mktemp("seams")
    make.volume(folder / "input.zarr", make.scene(16, 64, 96, background=5.0, signal=60.0))
    make.psf_tiff(folder / "psf.tif")
    job = (folder / "input.zarr", "--psf", folder / "psf.tif", "--method", "rl", "--iterations", "10")
    options = ("--block-shape", "16,32,32", "--scheduler", cluster_address)
    results = {
        "good": make.bigdeconv("run", *job[:1], folder / "good.zarr", *job[1:], *options, "--json"),
        "cut": make.bigdeconv(
            "run", *job[:1], folder / "cut.zarr", *job[1:], *options, "--halo", "0,0,0", "--blend", "0,0,0"
        ),
    }
    return folder, results


class TestCertificate:
    def test_a_run_says_how_good_its_seams_are(self, finished):
        folder, results = finished
        assert results["good"].exit_code == 0
        summary = json.loads(results["good"].stdout)
        assert not [w for w in summary["warnings"] if "seam" in w.lower()]
        found = summary["seams"]
        assert found == json.loads((ledger_path(folder / "good.zarr") / "certificate.json").read_text())
        assert len(found["probes"]) == 7  # all seams that six blocks have
        assert found["within_tolerance"]
        assert found["error"] < 1e-3
        for axis in "yx":
            assert found["measured"][axis]["error"] <= found["measured"][axis]["as_stored"]
            assert found["measured"][axis]["rounding"] > 0

    def test_a_run_above_its_tolerance_warns_and_still_succeeds(self, finished):
        _, results = finished
        assert results["cut"].exit_code == 0
        assert "SEAMS ABOVE TOLERANCE" in results["cut"].stderr
        assert "ABOVE the tolerance of 0.001" in results["cut"].stdout

    def test_what_is_measured_is_what_is_stored(self, finished, tmp_path):
        """The measure of the probes against that of the whole volumes: the good run stands for the untiled one."""
        from bigdeconv.numerics import metrics as quality

        folder, _ = finished
        good, cut = (make.pixels(folder / f"{name}.zarr").astype(float) for name in ("good", "cut"))
        _, y, x = quality.seam_error(cut, good, ((), (32,), (32, 64)), 2)
        found = json.loads((ledger_path(folder / "cut.zarr") / "certificate.json").read_text())
        assert found["measured"]["y"]["error"] == pytest.approx(y, rel=0.5)
        assert found["measured"]["x"]["error"] == pytest.approx(x, rel=0.5)
        assert found["predicted"]["y"] == pytest.approx(y, rel=2)

    def test_none_on_request(self, finished, tmp_path, cluster_address):
        folder, _ = finished
        options = ("--block-shape", "16,32,32", "--scheduler", cluster_address, "--seam-probes", "0", "--json")
        done = make.bigdeconv(
            "run", folder / "input.zarr", tmp_path / "out.zarr", "--psf", folder / "psf.tif", *make.RL, *options
        )
        assert json.loads(done.stdout)["seams"] is None
        assert not (ledger_path(tmp_path / "out.zarr") / "certificate.json").exists()


class _Tags(HTMLParser):
    """Checks that what is opened is closed, and collects pictures and text."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in {"meta", "img"}:
            self.open.append(tag)
        if tag == "img":
            self.sources.append(dict(attrs)["src"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


class TestReport:
    def test_as_json(self, finished):
        folder, _ = finished
        done = make.bigdeconv("report", folder / "good.zarr", "--json")
        assert done.exit_code == 0
        values = json.loads(done.stdout)
        assert values == json.loads((ledger_path(folder / "good.zarr") / "report.json").read_text())
        assert values["state"] == "complete"
        assert values["good"] is True
        assert values["work"]["blocks_done"] == values["plan"]["blocks"] == 6
        assert values["work"]["solve_seconds"] > 0
        assert values["settings"]["iterations"] == 10
        assert values["channels"]["0"]["intensity_scale"] > 0
        assert values["seams"]["within_tolerance"] is True

    def test_as_a_page(self, finished):
        folder, _ = finished
        done = make.bigdeconv("report", folder / "cut.zarr")
        assert done.exit_code == 0
        assert "ABOVE the tolerance" in done.stdout
        page = (ledger_path(folder / "cut.zarr") / "report.html").read_text()
        found = _Tags()
        found.feed(page)
        assert found.open == []
        assert len(found.sources) == 2
        assert all(s.startswith("data:image/png;base64,iVBOR") for s in found.sources)
        assert "SEAMS ABOVE TOLERANCE" in found.text
        assert "http" not in page

    def test_seams_are_probed_again_on_request(self, finished):
        folder, _ = finished
        values = json.loads(make.bigdeconv("report", folder / "good.zarr", "--seam-probes", "2", "--json").stdout)
        assert len(values["seams"]["probes"]) == 2

    def test_without_the_input_there_is_no_picture_of_it(self, finished, tmp_path):
        folder, _ = finished
        (folder / "input.zarr").rename(tmp_path / "elsewhere")
        try:
            assert make.bigdeconv("report", folder / "cut.zarr").exit_code == 0
        finally:
            (tmp_path / "elsewhere").rename(folder / "input.zarr")
        page = (ledger_path(folder / "cut.zarr") / "report.html").read_text()
        assert page.count("<img") == 1

    def test_without_a_ledger_there_is_nothing_to_report(self, tmp_path):
        done = make.bigdeconv("report", tmp_path / "none.zarr")
        assert done.exit_code == 3
        assert "has no ledger" in done.stderr
