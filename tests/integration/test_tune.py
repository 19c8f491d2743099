"""Searches as a user runs them, with what goes wrong on the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from pipeline.config.load import load_config
from pipeline.tuning.results import read_results
from tests.datasets import make_dataset
from tests.integration import searching, training

LR = {"kind": "choice", "of": [1e-4, 1e30]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=120, num_identities=8, crop_px=training.CROP_PX)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(
        tmp_path_factory.mktemp("other"), num_samples=60, num_identities=6, crop_px=training.CROP_PX, seed=9
    )


def test_a_search_survives_a_bad_trial_a_killed_worker_and_its_own_death(
    tmp_path: Path, data: Path, held_out: Path
) -> None:
    """The second of three settings fails by itself; a worker of the first dies, then the search itself."""
    sets = {"good": {}, "bad": {"optim.backbone.lr": 1e30, "divergence.on_non_finite": "stop"}, "long": {"seed": 5}}
    path = searching.write_search(
        tmp_path, data, held_out, {"what": {"kind": "sets", "of": sets}}, searcher={"kind": "grid"}, num_samples=1
    )
    output = tmp_path / "search"
    process = searching.start(path)
    searching.wait_for(process, "runs/search/*/run/checkpoints/latest", output)
    victim = searching.workers(process)[-1]
    victim.kill()
    victim.wait(30)
    searching.wait_for(process, "runs/search/*/run/failed.txt", output)
    first = searching.wait_for(process, "runs/search/*_00002/run/checkpoints/latest", output)
    ray = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(ray, 60)
    assert not alive, "nothing of a killed search goes on"
    before = training.losses(first.parents[1])

    assert "a search stands there" in training.finish(searching.start(path))
    text = searching.run(path, "--resume")
    results = read_results(output / "results.parquet")
    trials = {str(trial.setting["what"]): trial for trial in results.trials}
    assert {name: trial.state for name, trial in trials.items()} == {
        "good": "finished",
        "bad": "failed",
        "long": "finished",
    }
    assert "expected finite numbers" in trials["bad"].reason
    assert [round(report.epoch) for report in trials["good"].reports] == [1, 2, 3]
    assert results.summary.best_trial in (trials["good"].id, trials["long"].id)
    assert "nan" not in text.lower()

    # neither death has left a seam in a curve
    for name in ("good", "long"):
        run = output / "runs/search" / trials[name].id / "run"
        assert list(training.losses(run)) == list(range(1, 12))
        alone = tmp_path / name
        training.run(tmp_path / "recipe.yaml", 2, [f"output={alone}", *[f"{k}={v}" for k, v in sets[name].items()]])
        assert training.losses(run) == training.losses(alone), "bit for bit"
    assert before.items() <= training.losses(output / "runs/search" / trials["long"].id / "run").items()

    # the best setting is a recipe as it is
    config = load_config(output / "best.yaml")
    assert config.seed == (5 if results.summary.best_trial == trials["long"].id else 0)
    assert (output / "report.html").stat().st_size > 10_000
