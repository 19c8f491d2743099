"""A search's place: one search, one at a time; and how many of its trials find room there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import lock
from pipeline.config.errors import InUseError, UserError
from pipeline.config.search import SearchConfig
from pipeline.tuning.run import _take_place, run
from pipeline.tuning.search import MOST_WAITING_AT_A_TIME, _driver_needs
from pipeline.tuning.space import check_search

REPOSITORY = Path(__file__).parents[2]


def make(output: Path, **more: Any) -> SearchConfig:
    tree = {
        "recipe": str(REPOSITORY / "configs/demo_cpu.yaml"),
        "output": str(output),
        "overrides": {"validation.sets": {"val": {"path": "nowhere"}}},
        "space": {"optim.backbone.lr": {"kind": "loguniform", "low": 0.01, "high": 0.1}},
        "num_samples": 2,
    }
    return SearchConfig.model_validate(tree | more)


def test_a_place_is_gone_on_with_by_the_same_search_alone(tmp_path: Path) -> None:
    started = _take_place(make(tmp_path / "s"), is_resumed=False)
    assert _take_place(make(tmp_path / "s"), is_resumed=True) == started, "when it began, not when it was gone on with"
    assert _take_place(make(tmp_path / "s", comparison_seeds=[7, 8]), is_resumed=True) == started
    with pytest.raises(UserError, match="a search stands there"):
        _take_place(make(tmp_path / "s"), is_resumed=False)
    # trials that were drawn keep what they ask of the cluster, so another limit would hold for a part of them
    with pytest.raises(UserError, match=r"max_concurrent: 7, but the search in .* has None"):
        _take_place(make(tmp_path / "s", max_concurrent=7), is_resumed=True)


def test_a_trial_of_the_search_is_not_counted_in_the_comparison(tmp_path: Path) -> None:
    """The recipe's seed is 0: the best trial, trained with it again, would come out the same to the bit."""
    with pytest.raises(UserError, match="comparison_seeds: 0 is the seed of the search's own trials"):
        check_search(make(tmp_path / "s", comparison_seeds=[1, 0]))
    check_search(make(tmp_path / "s"))


def test_two_searches_in_one_folder_are_not_run_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "WAIT_S", 0.1)
    monkeypatch.setattr(lock, "WAIT_AT_A_TERMINAL_S", 0.1)
    search = make(tmp_path / "s")
    with lock.exclusive(tmp_path / "s"), pytest.raises(InUseError, match="another run writes here"):
        run(search, None, is_resumed=True, dashboard_host="127.0.0.1", dashboard_port=0)
    assert not (tmp_path / "s" / "search.yaml").exists()


@pytest.mark.parametrize("limit", range(1, MOST_WAITING_AT_A_TIME + 1))
def test_just_so_many_drivers_of_waiting_trials_find_room_on_the_head(limit: int) -> None:
    """In units of 1e-4: Ray Train's actor takes 10 of it, and 10 more for each trial once its workers begin."""
    needs = _driver_needs(limit)
    assert needs["CPU"] == 0
    driver = round(needs["node:__internal_head__"] * 1e4)
    room = 10_000 - 10
    assert limit * (driver + 10) <= room, "all of them, with what their workers begin with"
    assert (limit + 1) * driver > room, "and no further one, even before the workers of any have begun"
