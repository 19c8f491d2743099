"""From a search's configuration to Ray Tune's objects, and from Tune's results to ours."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pipeline.config.errors import UserError
from pipeline.config.location import Location
from pipeline.config.search import (
    ASHAScheduler,
    BOHBSearcher,
    Choice,
    GridSearcher,
    HyperBandScheduler,
    HyperOptSearcher,
    Integer,
    LogUniform,
    NoScheduler,
    OptunaSearcher,
    PBTScheduler,
    RandomSearcher,
    SearchConfig,
    Sets,
    SpaceParameter,
    Uniform,
)
from pipeline.data.remote import open_filesystem
from pipeline.tuning.reasons import reason_of
from pipeline.tuning.results import Report, State, Trial

_PACKAGES = {"optuna": ("optuna",), "hyperopt": ("hyperopt",), "bohb": ("hpbandster", "ConfigSpace")}
_TIME = "epoch"
# where trials wait for each other their times must be the same numbers, which those of epochs are not
_REPORTS = "training_iteration"


def domain_of(parameter: SpaceParameter, is_grid: bool) -> Any:
    """What Tune draws a parameter from; conditions are looked at later, so that every searcher can do with them."""
    from ray import tune

    match parameter:
        case Choice() | Sets():
            return tune.grid_search(list(parameter.of)) if is_grid else tune.choice(list(parameter.of))
        case LogUniform():
            return tune.loguniform(parameter.low, parameter.high)
        case Uniform():
            return tune.uniform(parameter.low, parameter.high)
        case Integer():
            return tune.randint(parameter.low, parameter.high + 1)


def has_waiting_trials(search: SearchConfig) -> bool:
    """Whether trials wait for each other, and so must all be there, whatever the number that can run."""
    return isinstance(search.scheduler, HyperBandScheduler | PBTScheduler)


def searcher_of(search: SearchConfig, max_concurrent: int | None) -> Any:
    """Who chooses settings.

    Args:
        search: what is searched.
        max_concurrent: how many trials may be there at a time, those that wait included (by BOHB: not included); None:
            any number.

    Raises:
        UserError: its package is missing.
    """
    kind = search.searcher.kind
    for package in _PACKAGES.get(kind, ()):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError("searcher.kind", f"{kind}: {error}", remedy=f"pip install {package}") from None
    searcher: Any
    match search.searcher:
        case RandomSearcher() | GridSearcher():
            from ray.tune.search.basic_variant import BasicVariantGenerator

            return BasicVariantGenerator(random_state=search.seed, max_concurrent=max_concurrent or 0)
        case OptunaSearcher():
            from ray.tune.search.optuna import OptunaSearch

            searcher = OptunaSearch(seed=search.seed)
        case HyperOptSearcher():
            from ray.tune.search.hyperopt import HyperOptSearch

            searcher = HyperOptSearch(random_state_seed=search.seed)
        case BOHBSearcher():
            from ray.tune.search.bohb import TuneBOHB

            searcher = TuneBOHB(seed=search.seed)
    from ray.tune.search import ConcurrencyLimiter

    return searcher if max_concurrent is None else ConcurrencyLimiter(searcher, max_concurrent)


def scheduler_of(search: SearchConfig, epochs: float, num_validations: int) -> Any:
    """Who ends trials early. A trial that is not stopped ends by itself.

    Args:
        search: what is searched.
        epochs: length of a trial.
        num_validations: the same, in reports.

    Raises:
        UserError: a trial has no time to be stopped in.
    """
    from ray.tune import schedulers

    match search.scheduler:
        case NoScheduler():
            return schedulers.FIFOScheduler()
        case ASHAScheduler(grace_epochs=grace, reduction=reduction):
            if grace >= epochs:
                raise UserError(
                    "scheduler.grace_epochs", f"{grace:g}, but trials end after {epochs:g}", "less than training.epochs"
                )
            return schedulers.ASHAScheduler(
                _TIME, max_t=epochs, grace_period=grace, reduction_factor=reduction, stop_last_trials=False
            )
        case HyperBandScheduler(reduction=reduction):
            kind = schedulers.HyperBandForBOHB if search.searcher.kind == "bohb" else schedulers.HyperBandScheduler
            return kind(_REPORTS, max_t=num_validations, reduction_factor=reduction, stop_last_trials=False)
        case PBTScheduler(every_validations=every, quantile=quantile):
            return schedulers.PopulationBasedTraining(
                _REPORTS,
                perturbation_interval=every,
                hyperparam_mutations={name: domain_of(one, is_grid=False) for name, one in search.space.items()},
                quantile_fraction=quantile,
                custom_explore_fn=_Clip(search),
                synch=True,  # who is compared with whom must not depend on who happens to be faster
            )


def storage_of(output: Location) -> tuple[str, Any]:
    """An absolute place as Ray takes it: a path, and the file system that it is of, None for the node's own."""
    if isinstance(output, Path):
        return str(output), None
    import pyarrow.fs

    filesystem = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(open_filesystem(output.scheme)))
    return output.url.partition("://")[2], filesystem


def trial_of(result: Any, search: SearchConfig, names: Mapping[str, Any]) -> Trial:
    """What Tune knows of a trial; its setting is as drawn, its phase and seed are the caller's to say."""
    table = result.metrics_dataframe
    rows = [] if table is None else cast("list[dict[str, Any]]", table.to_dict("records"))
    reports = tuple(_report(row) for row in rows if search.metric in row)
    last = result.metrics or {}
    state: State = "stopped"
    reason = ""
    if result.error is not None:
        reason, state = reason_of(result.error), "failed"
    elif not reports:
        state = "unfinished"
    elif last.get("share", 0) >= 1:
        state = "finished"
    # Tune's results know the settings of those alone that have reported
    with result.filesystem.open_input_stream(f"{result.path}/params.json") as file:
        drawn = json.loads(file.readall())
    setting = {name: drawn[name] for name in names}
    return Trial(str(Path(result.path).name), "search", state, reason, setting, 0, reports)


def _report(row: Mapping[str, Any]) -> Report:
    figures = {name: float(value) for name, value in row.items() if name.startswith("val/")}
    return Report(int(row["step"]), int(row["samples"]), float(row["epoch"]), float(row["time_total_s"]), figures)


class _Clip:
    """Population-based training multiplies values: keep them in their intervals, and whole numbers whole."""

    def __init__(self, search: SearchConfig) -> None:
        self._search = search

    def __call__(self, setting: dict[str, Any]) -> dict[str, Any]:
        for name, parameter in self._search.space.items():
            if isinstance(parameter, Uniform | Integer):
                value = min(max(setting[name], parameter.low), parameter.high)
                setting[name] = round(value) if isinstance(parameter, Integer) else value
        return setting
