"""A search's parts as Ray Tune's: what is drawn lies in the space, and the same seed draws the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.errors import UserError
from pipeline.config.load import validate_tree
from pipeline.config.search import SearchConfig
from pipeline.tuning.translate import domain_of, scheduler_of, searcher_of, storage_of

SPACE = {
    "kind": {"kind": "choice", "of": ["sgd", "adamw"], "key": "optim.backbone.kind"},
    "lr": {"kind": "loguniform", "low": 1e-3, "high": 1.0, "key": "optim.backbone.lr"},
    "margin": {"kind": "uniform", "low": 0.1, "high": 0.5, "key": "head.margin.margin"},
    "depth": {"kind": "int", "low": 2, "high": 3, "key": "seed"},
    "set": {"kind": "sets", "of": {"a": {}, "b": {}}},
}


def search(**more: Any) -> SearchConfig:
    return validate_tree(SearchConfig, {"recipe": "r", "output": "o", "space": SPACE, **more}, "search")


def draw(kind: str, seed: int, num: int) -> list[dict[str, Any]]:
    one = search(searcher={"kind": kind}, seed=seed)
    searcher = searcher_of(one, 1)
    domains = {name: domain_of(parameter, is_grid=False) for name, parameter in one.space.items()}
    searcher.set_search_properties("val/score", "max", domains)
    drawn = []
    for number in range(num):
        setting = searcher.suggest(str(number))
        drawn.append(setting)
        searcher.on_trial_complete(str(number), {"val/score": -abs(setting["margin"] - 0.3)})
    return drawn


@pytest.mark.parametrize("kind", ["optuna", "hyperopt"])
def test_searchers_draw_from_the_space(kind: str) -> None:
    if importlib.util.find_spec(kind) is None:
        with pytest.raises(UserError, match=f"searcher.kind: {kind}: .*pip install {kind}"):
            searcher_of(search(searcher={"kind": kind}), 1)
        return
    drawn = draw(kind, 3, 12)
    for setting in drawn:
        assert setting.keys() == SPACE.keys()
        assert setting["kind"] in ("sgd", "adamw")
        assert setting["set"] in ("a", "b")
        assert 1e-3 <= setting["lr"] <= 1
        assert 0.1 <= setting["margin"] <= 0.5
        assert setting["depth"] in (2, 3)
    assert {setting["depth"] for setting in drawn} == {2, 3}, "both ends"
    assert drawn == draw(kind, 3, 12)
    assert drawn != draw(kind, 4, 12)


def test_a_missing_package_is_named() -> None:
    with pytest.raises(UserError, match=r"searcher.kind: bohb: .*pip install hpbandster"):
        searcher_of(search(searcher={"kind": "bohb"}, scheduler={"kind": "hyperband"}), 1)


@pytest.mark.parametrize("kind", ["none", "asha", "hyperband"])
def test_schedulers(kind: str) -> None:
    scheduler_of(search(scheduler={"kind": kind}), epochs=9, num_validations=9)


def test_a_trial_needs_time_to_be_stopped_in() -> None:
    one = search(scheduler={"kind": "asha", "grace_epochs": 4})
    with pytest.raises(UserError, match=r"scheduler.grace_epochs: 4, but trials end after 3"):
        scheduler_of(one, epochs=3, num_validations=3)


def test_a_population_stays_in_the_space() -> None:
    space = {name: SPACE[name] for name in ("kind", "lr", "margin", "depth")}
    one = validate_tree(
        SearchConfig, {"recipe": "r", "output": "o", "space": space, "scheduler": {"kind": "pbt"}}, "search"
    )
    explore = scheduler_of(one, epochs=9, num_validations=9)._custom_explore_fn
    clipped = explore({"kind": "sgd", "lr": 1.2, "margin": 0.08, "depth": 2.4})
    assert clipped == {"kind": "sgd", "lr": 1.0, "margin": 0.1, "depth": 2}
    assert isinstance(clipped["depth"], int)


def test_where_tune_keeps_its_state(tmp_path: Path) -> None:
    assert storage_of(tmp_path / "x") == (str(tmp_path / "x"), None)
    one = search(output="memory://bucket/one")
    path, filesystem = storage_of(one.output)
    assert path == "bucket/one"
    filesystem.create_dir("bucket/one")
    assert filesystem.get_file_info("bucket/one").type.name == "Directory"
