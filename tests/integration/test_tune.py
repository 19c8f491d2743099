"""Searches as a user runs them, with what goes wrong on the way."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pipeline.config.load import load_config
from pipeline.data.remote import open_filesystem
from pipeline.tuning.results import read_results
from tests.integration import searching, training
from tests.s3_store import serve_s3

BAD: dict[str, object] = {"optim.backbone.lr": 1e30, "divergence.on_non_finite": "stop"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.make_people(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.make_strangers(tmp_path_factory.mktemp("other"))


@pytest.fixture
def after_a_dead_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine on which `ray start` has left the address of a cluster that is no more."""
    with searching.ray_folder(monkeypatch) as folder:
        (folder / "ray").mkdir()
        (folder / "ray/ray_current_cluster").write_text("127.0.0.1:1")
        yield


@pytest.mark.usefixtures("after_a_dead_cluster")
def test_a_search_with_a_bad_setting(tmp_path: Path, data: Path, held_out: Path) -> None:
    """The bad one is drawn first."""
    sets = {"bad": BAD, "good": {}}
    space = {"what": {"kind": "sets", "of": sets}}
    path = searching.write_search(tmp_path, data, held_out, space, searcher={"kind": "grid"}, num_samples=1)
    text = searching.run(path)
    bad, good = read_results(tmp_path / "search/results.parquet").trials
    assert (bad.state, good.state) == ("failed", "finished")
    assert "expected finite numbers" in bad.reason
    assert bad.reason in text
    assert [round(report.epoch) for report in good.reports] == [1, 2, 3]
    assert list(training.losses(tmp_path / "search/runs/search" / good.id / "run")) == list(range(1, 12))
    assert load_config(tmp_path / "search/best.yaml").optim.backbone.lr == training.SGD["backbone"]["lr"]
    assert (tmp_path / "search/report.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.usefixtures("after_a_dead_cluster")
def test_a_search_survives_a_bad_trial_a_killed_worker_and_its_own_death(
    tmp_path: Path, data: Path, held_out: Path
) -> None:
    """One of three settings fails by itself; a worker of another dies, then the search itself."""
    sets = {"good": {}, "bad": BAD, "long": {"seed": 5}}
    path = searching.write_search(
        tmp_path, data, held_out, {"what": {"kind": "sets", "of": sets}}, searcher={"kind": "grid"}, num_samples=1
    )
    output = tmp_path / "search"
    began = time.monotonic()
    process = searching.start(path)
    searching.wait_for(process, "runs/search/*/run/checkpoints/latest", output)
    victim = searching.workers(process)[-1]
    victim.kill()
    victim.wait(30)
    searching.wait_for(process, "runs/search/*/run/failed.txt", output)
    first = searching.wait_for(process, "runs/search/*_00002/run/checkpoints/latest", output)
    searching.kill(process)
    until_death = time.monotonic() - began
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
    for name in ("good", "long"):
        assert [round(report.epoch) for report in trials[name].reports] == [1, 2, 3], "each once"
    assert results.summary.best_trial in (trials["good"].id, trials["long"].id)
    assert results.summary.seconds > until_death, "from the first start on, not from the resume"
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


@pytest.mark.slow
def test_a_node_of_a_cluster_dies_during_a_search(
    tmp_path: Path, data: Path, held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head without CPUs and two nodes with a trial each, of which one is killed: the other does the work of both."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    address = f"127.0.0.1:{searching.free_port()}"
    space = {"what": {"kind": "sets", "of": {"one": {}, "other": {"seed": 5}}}}
    path = searching.write_search(tmp_path, data, held_out, space, searcher={"kind": "grid"}, num_samples=1)
    head = ["--head", "--port", address.partition(":")[2], "--num-cpus", "0", "--include-dashboard", "false"]
    member = ["--address", address, "--num-cpus", "2"]
    with ExitStack() as nodes:
        nodes.enter_context(searching.node(*head))
        searching.wait_for_cluster(address, num_cpus=0)
        first = nodes.enter_context(searching.node(*member))
        searching.wait_for_cluster(address, num_cpus=2)  # two that begin at once on one machine take the same ports
        second = nodes.enter_context(searching.node(*member))
        searching.wait_for_cluster(address, num_cpus=4)
        search = searching.start(path, "--address", address)
        for number in (0, 1):
            searching.wait_for(search, f"runs/search/*_0000{number}/run/checkpoints/latest", tmp_path / "search")
        assert searching.workers(first), "each node has a trial"
        assert searching.workers(second)
        training.kill_tree(first.pid)
        text = training.finish(search, 400)
        assert search.returncode == 0, text
    results = read_results(tmp_path / "search/results.parquet")
    assert [trial.state for trial in results.trials] == ["finished", "finished"]
    for trial in results.trials:
        assert list(training.losses(tmp_path / "search/runs/search" / trial.id / "run")) == list(range(1, 12))


@pytest.mark.slow
@pytest.mark.timeout(600)  # each wait ends the trial's processes
def test_a_population_goes_on_from_the_checkpoints_of_the_best(tmp_path: Path, data: Path, held_out: Path) -> None:
    """Of two trials one alone finds room at a time, and yet each waits for the other."""
    path = searching.write_search(
        tmp_path,
        data,
        held_out,
        {"optim.backbone.lr": {"kind": "loguniform", "low": 1e-5, "high": 1.0}},
        scheduler={"kind": "pbt", "quantile": 0.5},
        num_samples=2,
        max_concurrent=1,
    )
    searching.run(path, timeout_s=500)
    results = read_results(tmp_path / "search/results.parquet")
    assert [trial.state for trial in results.trials] == ["finished", "finished"]
    runs = sorted((tmp_path / "search/runs/search").glob("*/run-*"))
    assert runs, "one has taken over the other's weights"
    for run in runs:
        assert min(training.losses(run)) in (5, 9), "from its checkpoint on, not from the start"
    assert max(max(training.losses(run)) for run in runs) == 11


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("searcher", ["random", "bohb"])
def test_hyperband_halves_brackets_and_the_rest_go_on(
    tmp_path: Path, data: Path, held_out: Path, searcher: str
) -> None:
    """Trials wait for each other at the first report; who comes through goes on from its checkpoint to the end."""
    if searcher == "bohb":
        pytest.importorskip("hpbandster")
    path = searching.write_search(
        tmp_path,
        data,
        held_out,
        {
            "optim.backbone.lr": {"kind": "loguniform", "low": 1e-5, "high": 1.0},
            "seed": {"kind": "choice", "of": [1, 2, 3]},
        },
        searcher={"kind": searcher},
        scheduler={"kind": "hyperband", "reduction": 3},
        num_samples=5,
        max_concurrent=1,
        workers={"count": 1},
    )
    searching.run(path, timeout_s=500)
    results = read_results(tmp_path / "search/results.parquet")
    states = [trial.state for trial in results.trials]
    assert set(states) == {"finished", "stopped"}
    for trial in results.trials:
        reported = [round(report.epoch) for report in trial.reports]
        assert reported == [1, 2, 3][: len(reported)], "each once"
        assert (len(reported) == 3) == (trial.state == "finished")
        steps = list(training.losses(tmp_path / "search/runs/search" / trial.id / "run"))
        assert steps == list(range(1, len(steps) + 1)), "a wait leaves no seam"


@pytest.mark.slow
def test_a_search_in_a_store_goes_on_from_there(
    tmp_path: Path, data: Path, held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of the node that trained is gone, as on another head node."""
    with (
        tempfile.TemporaryDirectory(prefix="node") as short,  # Ray's sockets must have short paths
        serve_s3(data / "train", monkeypatch) as url,
    ):
        node = Path(short)
        monkeypatch.setenv("TMPDIR", short)
        path = searching.write_search(
            tmp_path, data, held_out, {"seed": {"kind": "choice", "of": [5]}}, num_samples=1, output=f"{url}/one"
        )
        search = searching.start(path)
        searching.wait_for(search, "facemill-tune/s3/**/run/checkpoints/step-00000008", node)
        searching.kill(search)
        shutil.rmtree(node / "facemill-tune")
        searching.run(path, "--resume")
        open_filesystem("s3").get(f"{url}/one", str(tmp_path / "one"), recursive=True)
    results = read_results(tmp_path / "one/results.parquet")
    assert [trial.state for trial in results.trials] == ["finished"]
    assert [round(report.epoch) for report in results.trials[0].reports] == [1, 2, 3]
    run = next((tmp_path / "one/runs/search").glob("*/run"))
    assert list(training.losses(run)) == list(range(1, 12)), "the curve of the node that is gone, and the rest"
    assert load_config(tmp_path / "one/best.yaml").seed == 5
