"""What a trial that cannot succeed leaves behind for the next."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config.load import load_config
from pipeline.config.search import WorkersConfig
from pipeline.tuning.cluster import cluster
from pipeline.tuning.trial import TrialError, _reports
from tests.integration import searching, training


@pytest.fixture
def own_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster of this machine alone."""
    with searching.ray_folder(monkeypatch), cluster(None, "127.0.0.1", 0):
        yield


@pytest.mark.usefixtures("own_cluster")
def test_processors_are_free_when_the_driver_has_ended(tmp_path: Path) -> None:
    """Ray does not take back what a controller has asked for just before it dies with its driver."""
    import ray
    from ray.util.placement_group import placement_group, placement_group_table

    data = training.make_people(tmp_path / "data")
    recipe = training.write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run", global_batch=32, local_batch=8)
    config = load_config(recipe, ["optim.backbone.lr=1e30", "divergence.on_non_finite=stop"])

    @ray.remote
    class Driver:
        def drive(self) -> str:
            workers = WorkersConfig(count=2)
            try:
                list(_reports(config.model_dump(mode="json"), tmp_path / "run", None, -1, workers))
            except TrialError as error:
                return str(error)
            return ""

    # so that the controller sees at once what the driver is told
    at_once = {"env_vars": {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.01"}}
    driver = Driver.options(num_cpus=0, runtime_env=at_once).remote()
    assert "expected finite numbers" in ray.get(driver.drive.remote())
    time.sleep(2)  # Tune does not kill it at once either; new workers would be about to start
    ray.kill(driver)
    assert len(placement_group_table()) == 1, "no other attempt"
    everything = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    assert everything.wait(20), placement_group_table()
