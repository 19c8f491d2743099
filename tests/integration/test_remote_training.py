"""A run whose photos come from a web server: the losses of a run on the same folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.datasets import make_dataset
from tests.http_store import serve
from tests.integration import training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=160, num_identities=5, crop_px=training.CROP_PX)


def test_the_same_losses_and_a_cache_that_fits(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "local", epochs=2)
    training.run(recipe, 1)
    with serve(data) as server:
        recipe = training.write_recipe(tmp_path / "remote.yaml", data, tmp_path / "remote", epochs=2)
        address = f"data.path={server.url}"
        for overrides, said in (
            ([address], "data.cache: missing, but"),
            ([address, f"data.cache={{path: {tmp_path / 'cache'}, max_bytes: 1048576}}"], "max_bytes 1,048,576, but"),
        ):
            if "1,048,576" in said and data_bytes(data) <= 1 << 20:
                continue
            process = training.start(recipe, 1, overrides)
            text = training.finish(process)
            assert process.returncode == 2
            assert said in text
            assert f"{data_bytes(data):,} bytes or more" in text
            assert "data.order.kind=streaming" in text
        cache = f"data.cache={{path: {tmp_path / 'cache'}, max_bytes: 100000000}}"
        server.faults = ["error", "", "drop", "short"]
        training.run(recipe, 2, [address, cache])
    assert training.losses(tmp_path / "remote").keys() == training.losses(tmp_path / "local").keys()
    for step, loss in training.losses(tmp_path / "remote").items():
        assert loss == pytest.approx(training.losses(tmp_path / "local")[step], rel=1e-4)


def data_bytes(data: Path) -> int:
    return sum(path.stat().st_size for path in (data / "train").glob("*.tar"))
