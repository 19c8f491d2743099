"""A search from its configuration to its results, on a cluster that is connected."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import ceil, prod
from pathlib import Path
from typing import Any, cast

from pipeline.config.schema import Config
from pipeline.config.search import Choice, GridSearcher, SearchConfig, Sets
from pipeline.tuning.reasons import is_death
from pipeline.tuning.results import Phase, Trial
from pipeline.tuning.space import active_part, trial_config, with_absolute_paths
from pipeline.tuning.translate import domain_of, has_waiting_trials, scheduler_of, searcher_of, storage_of, trial_of
from pipeline.tuning.trial import TrialTask, run_trial

PHASES = ("default", "best")
SEARCH, COMPARISON = "search", "comparison"
MOST_WAITING_AT_A_TIME = 30
"""How many trials that wait for each other can run at a time; see `_driver_needs`."""

_HEAD = "node:__internal_head__"
"""A resource of which the head node has 1."""


def run_search(search: SearchConfig, max_concurrent: int, is_resumed: bool) -> list[Trial]:
    """Try settings; gives all trials, those of an interrupted part of the search included.

    Raises:
        UserError: a searcher whose package is missing, or a state that cannot be gone on from.
    """
    from ray import tune

    own = trial_config(search, {})
    every = own.training.epochs if own.validation is None else own.validation.every_epochs
    num_validations = ceil(own.training.epochs / every)
    tune_config = tune.TuneConfig(
        metric=search.metric,
        mode=search.direction,
        search_alg=searcher_of(search, None if has_waiting_trials(search) else max_concurrent),
        scheduler=scheduler_of(search, own.training.epochs, num_validations),
        num_samples=search.num_samples,
        trial_dirname_creator=_id_of,
    )
    is_grid = isinstance(search.searcher, GridSearcher)
    domains = {name: domain_of(parameter, is_grid) for name, parameter in search.space.items()}
    num_trials = search.num_samples
    if is_grid:
        num_trials *= prod(len(one.of) for one in search.space.values() if isinstance(one, Choice | Sets))
    driver = _driver_needs(max_concurrent if has_waiting_trials(search) else None)
    trials = _run(search, SEARCH, domains, trial_config, tune_config, driver, num_trials, is_resumed)
    return [replace(trial, setting=active_part(search, trial.setting), seed=own.seed) for trial in trials]


def run_comparison(search: SearchConfig, best: Trial, max_concurrent: int, is_resumed: bool) -> list[Trial]:
    """Train the best setting and the recipe's own with other seeds, each to its end.

    Raises:
        UserError: a state that cannot be gone on from.
    """
    from ray import tune
    from ray.tune.search.basic_variant import BasicVariantGenerator

    def configure(there: SearchConfig, drawn: Mapping[str, Any]) -> Config:
        return trial_config(there, best.setting if drawn["phase"] == "best" else {}, seed=drawn["seed"])

    tune_config = tune.TuneConfig(
        metric=search.metric,
        mode=search.direction,
        search_alg=BasicVariantGenerator(max_concurrent=max_concurrent),
        trial_dirname_creator=_id_of,
    )
    domains = {"phase": tune.grid_search(list(PHASES)), "seed": tune.grid_search(list(search.comparison_seeds))}
    found = []
    num_trials = len(PHASES) * len(search.comparison_seeds)
    # another best setting, or other seeds, are another comparison
    place = "-".join([COMPARISON, best.id, *map(str, search.comparison_seeds)])
    for trial in _run(search, place, domains, configure, tune_config, _driver_needs(None), num_trials, is_resumed):
        phase, seed = cast("Phase", trial.setting["phase"]), int(trial.setting["seed"])
        setting = active_part(search, best.setting) if phase == "best" else {}
        found.append(replace(trial, phase=phase, seed=seed, setting=setting))
    return found


def _run(
    search: SearchConfig,
    phase: str,
    domains: Mapping[str, Any],
    configure: Callable[[SearchConfig, Mapping[str, Any]], Config],
    tune_config: Any,
    driver: Mapping[str, float],
    num_trials: int,
    is_resumed: bool,
) -> list[Trial]:
    """Run or go on with one of the two parts of a search; a trial's setting is as drawn.

    `configure` makes a run's configuration of the search, its own paths absolute, and what was drawn. `driver` says
    what the process needs that a trial's workers are started from.
    """
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # why a trial failed is said in a line of our own
    from pipeline.tuning.table import LiveTable  # imports Ray, which reads its environment when it is imported

    folder = Path.cwd()  # trials run elsewhere
    there = with_absolute_paths(search, folder)

    def make_config(drawn: Mapping[str, Any]) -> dict[str, Any]:
        return with_absolute_paths(configure(there, drawn), folder).model_dump(mode="json")

    task = TrialTask(make_config, str(there.output / "runs" / phase), search.workers)
    trainable = tune.with_resources(tune.with_parameters(run_trial, task=task), dict(driver))
    path, filesystem = storage_of(there.output)
    place = f"{path}/{phase}"

    def restore(**which: bool) -> Any:
        return tune.Tuner.restore(place, trainable, param_space=dict(domains), storage_filesystem=filesystem, **which)

    if is_resumed and tune.Tuner.can_restore(place, storage_filesystem=filesystem):
        tuner = restore()
    else:
        run_config = tune.RunConfig(
            name=phase,
            storage_path=path,
            storage_filesystem=filesystem,
            callbacks=[LiveTable(search, phase, list(domains), num_trials)],
            verbose=0,
        )
        tuner = tune.Tuner(trainable, param_space=dict(domains), tune_config=tune_config, run_config=run_config)
    grid = tuner.fit()
    for _ in range(search.workers.max_failures):
        if not any(is_death(result.error) for result in grid):
            break
        grid = restore(resume_errored=True).fit()  # those that failed by themselves do so again, at once
    return [trial_of(result, search, domains) for result in grid]


def _driver_needs(max_concurrent: int | None) -> dict[str, float]:
    """What a trial's driver asks of the cluster; with a limit, so much that no more of them find room at a time.

    No CPU, or the workers of a trial could starve for what its driver holds. On the head node, whose death ends the
    search anyway: so the death of any other is a matter of workers alone. A searcher's limit counts the trials that
    wait, which would never meet those that they wait for; what they need they give back.
    """
    if max_concurrent is None:
        return {"CPU": 0, _HEAD: 0.001}
    # In the units of 1e-4 in which Ray counts: Ray Train has an actor of 10 there, and one more for each trial, without
    # which its workers would not begin. These come later than the driver: beyond 30, a driver too many would find room.
    assert max_concurrent <= MOST_WAITING_AT_A_TIME
    return {"CPU": 0, _HEAD: (9990 // max_concurrent - 10) / 1e4}


def _id_of(trial: Any) -> str:
    """A trial's folder; its setting, which Tune would put into the name, may be long."""
    return str(trial.trial_id)
