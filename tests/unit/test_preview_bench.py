"""The commands that show what training sees of a data set, and how fast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from pipeline.config.errors import UserError
from preprocess.cli import app
from tests.datasets import make_dataset

CROP_PX = 56


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=60, num_identities=5, crop_px=CROP_PX)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    tree = {
        "output": "run",
        "data": {"path": "elsewhere", "augment": [{"kind": "flip", "probability": 1.0}]},
        "training": {"epochs": 1, "global_batch": 16, "local_batch": 8},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def test_a_sheet_of_every_operation(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    assert "sheet.png: 360 × " in run("preview", str(data), "--out", str(out), "--columns", "2")
    sheet = np.asarray(Image.open(out))
    # twelve operations; small crops are enlarged
    assert sheet.shape[0] == 12 * (112 + 3 * 13 + 6) + 6


def test_a_sheet_of_a_recipe_shows_what_the_run_will_see(data: Path, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    run("preview", str(data), "--config", str(recipe), "--out", str(out), "--rows", "1", "--columns", "1")
    sheet = np.asarray(Image.open(out)).astype(int)
    stored, flipped = sheet[6:118, 6:118], sheet[6:118, 124:236]
    assert np.array_equal(stored[:, ::-1], flipped)
    assert stored.std() > 5


def test_the_bottleneck_is_named(data: Path, recipe: Path) -> None:
    text = run("bench", str(data), "--steps", "3", "--batch", "20")
    assert "photos/s on 2 threads (60 photos in " in text
    assert "most time goes to" in text
    for stage in ("decode", "store", "crc", "plan", "assemble", "augment"):
        assert stage in text
    balanced = "data.order={kind: identity_balanced, num_identities: 4, photos_per_identity: 5}"
    text = run("bench", str(data), "--config", str(recipe), "--set", balanced, "--steps", "2", "--batch", "20")
    assert "(40 photos in" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["preview", "DATA", "--out", "sheet.gif"], "sheet.gif"),
        (["preview", "DATA", "--set", "seed=1"], "add --config FILE"),
        (["bench", "DATA", "--set", "seed=1"], "add --config FILE"),
        (["bench", "DATA", "--decoder", "gpu"], "cpu or dali"),
        (["bench", "DATA", "--split", "val"], "no split 'val'"),
    ],
)
def test_mistakes(data: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        CliRunner().invoke(app, [str(data) if word == "DATA" else word for word in arguments], catch_exceptions=False)
