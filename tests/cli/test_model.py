"""`bigdeconv model`: what is shipped, and models of others."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest

from tests import make
from tests.make import bigdeconv

PUBLISHED = Path(__file__).parents[3] / "shared" / "models" / "pyxudeconv-3Dtubes"


def test_model_show_describes_what_is_shipped():
    result = bigdeconv("model", "show")
    assert result.exit_code == 0
    assert re.search(r"^name +compact$", result.stdout, re.MULTILINE)
    assert "channels     1 → 4 → 8 → 16" in result.stdout


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published model is not at hand")
def test_a_published_model_is_imported_and_shown_and_planned_with(source, tmp_path):
    file = tmp_path / "tubes.safetensors"
    result = bigdeconv("model", "import", PUBLISHED, file)
    assert result.exit_code == 0
    assert result.stdout == f"Wrote {file}\n"
    shown = bigdeconv("model", "show", file).stdout
    assert "1 → 4 → 8 → 64" in shown
    assert re.search(r"μ +83\d", shown)
    assert "pyxudeconv checkpoint_40180.pth" in shown
    plan = json.loads(bigdeconv("plan", source[0], "--psf", source[1], "--model", file, "--json").stdout)
    assert not any("not trained" in w for w in plan["warnings"])
    with make.unchanged(tmp_path):
        again = bigdeconv("model", "import", PUBLISHED, file)
        assert again.exit_code == 3
        assert "exists" in again.stderr
    nowhere = bigdeconv("model", "import", PUBLISHED, tmp_path / "no" / "folder" / "m.safetensors")
    assert nowhere.exit_code in (0, 3)
    assert "Traceback" not in nowhere.stderr


def test_model_import_runs_no_code_from_a_checkpoint(tmp_path):
    folder, marker = tmp_path / "model", tmp_path / "was here"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "checkpoint_1.pth").write_bytes(pickle.dumps(make.Touch(marker), protocol=2))
    with make.unchanged(tmp_path):
        result = bigdeconv("model", "import", folder, tmp_path / "out.safetensors")
    assert result.exit_code == 3
    assert "checkpoint_1.pth" in result.stderr
    assert "will likely succeed" not in result.stderr  # torch's own advice: to run the code after all
    assert not marker.exists()


def test_model_import_names_what_a_folder_lacks(tmp_path):
    result = bigdeconv("model", "import", tmp_path, tmp_path / "out.safetensors")
    assert result.exit_code == 3
    assert "config.json and checkpoint_*.pth" in result.stderr
