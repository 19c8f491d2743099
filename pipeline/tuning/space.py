"""From a drawn setting to the configuration of a training run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from pipeline.config.errors import UserError
from pipeline.config.load import flatten, load_config
from pipeline.config.schema import Config
from pipeline.config.search import Choice, Integer, Plain, SearchConfig, Sets, Uniform

Setting = Mapping[str, Plain]
"""Values by the names of parameters of a space."""

Section = TypeVar("Section", bound=BaseModel)
_FIGURES = ("accuracy", "auc", "eer")


def active_part(search: SearchConfig, drawn: Setting) -> dict[str, Plain]:
    """The parameters that count: those whose conditions hold, for values of parameters that count themselves."""
    return {name: value for name, value in drawn.items() if _counts(search, name, drawn)}


def trial_config(search: SearchConfig, setting: Setting, **more: Plain) -> Config:
    """The configuration of a run with a setting.

    Args:
        search: whose recipe it is.
        setting: drawn values; empty for the recipe's own.
        more: top-level keys of the configuration, such as `seed`.

    Raises:
        UserError: a recipe that cannot be read, or values that do not go together.
    """
    overrides = [_override(key, value) for key, value in search.overrides.items()]
    for name, value in active_part(search, setting).items():
        overrides += [_override(key, one) for key, one in _keys_of(search, name, value).items()]
    return load_config(search.recipe, [*overrides, *(_override(key, value) for key, value in more.items())])


def recipe_setting(search: SearchConfig) -> dict[str, Plain]:
    """What the recipe itself has for the parameters that are single keys, where it has them."""
    values = dict(flatten(trial_config(search, {}).model_dump(mode="json")))
    found = {}
    for name, parameter in search.space.items():
        value = None if isinstance(parameter, Sets) else values.get(parameter.key or name)
        if isinstance(value, bool | int | float | str):
            found[name] = value
    return active_part(search, found)


def describe_value(value: object) -> str:
    """A parameter's value for people: numbers to four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def describe_setting(setting: Setting) -> str:
    """A setting in a line."""
    return " ".join(f"{name}={describe_value(value)}" for name, value in setting.items())


def check_search(search: SearchConfig) -> None:
    """Try every value that can be named, and the ends of intervals, on the recipe.

    Raises:
        UserError: a key that the recipe does not know, a value out of range, a measure that no validation gives, or a
            seed of the comparison that is the search's own.
    """
    config = trial_config(search, {})
    _check_metric(search, config)
    if config.seed in search.comparison_seeds:
        found = f"{config.seed} is the seed of the search's own trials, the best of which would come out the same"
        raise UserError("comparison_seeds", found, "others")
    if config.mining is not None and (search.scheduler.kind == "pbt" or not isinstance(search.output, Path)):
        raise UserError(
            "mining", "its lists are not carried to another run or node", "null", "or plain trials in a folder"
        )
    if search.scheduler.kind == "pbt":
        _check_changes(search)
    for name in search.space:
        for value in _corners(search, name):
            try:
                trial_config(search, _with_conditions(search, name, value))
            except UserError as error:
                raise UserError(f"space.{name}", f"{value!r}: {error}") from None


def with_absolute_paths(section: Section, folder: Path) -> Section:
    """The same configuration for a process that runs in another folder than `folder`, which its paths belong to."""
    fields = type(section).model_fields
    return section.model_copy(update={name: _absolute_value(getattr(section, name), folder) for name in fields})


def _absolute_value(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return folder / value
    if isinstance(value, BaseModel):
        return with_absolute_paths(value, folder)
    if isinstance(value, tuple):
        return tuple(_absolute_value(one, folder) for one in value)
    if isinstance(value, dict):
        return {key: _absolute_value(one, folder) for key, one in value.items()}
    return value


def _counts(search: SearchConfig, name: str, drawn: Setting) -> bool:
    return all(
        other in drawn and drawn[other] in values and _counts(search, other, drawn)
        for other, values in search.space[name].when.items()
    )


def _keys_of(search: SearchConfig, name: str, value: Plain) -> Mapping[str, Any]:
    """Dotted keys that a parameter's value sets."""
    parameter = search.space[name]
    return parameter.of[str(value)] if isinstance(parameter, Sets) else {parameter.key or name: value}


def _override(key: str, value: object) -> str:
    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _corners(search: SearchConfig, name: str) -> Iterator[Plain]:
    parameter = search.space[name]
    match parameter:
        case Choice() | Sets():
            yield from parameter.of
        case Uniform() | Integer():
            yield parameter.low
            yield parameter.high


def _with_conditions(search: SearchConfig, name: str, value: Plain) -> dict[str, Plain]:
    """A setting in which a parameter counts, and as little else as possible."""
    setting = {name: value}
    for other, values in search.space[name].when.items():
        setting = _with_conditions(search, other, values[0]) | setting
    return setting


def _check_changes(search: SearchConfig) -> None:
    """See that a run may change all parameters on its way.

    Raises:
        UserError: not this one.
    """
    from pipeline.engine.run import FIXED_KEYS, is_under  # takes seconds, and is needed here alone

    for name, parameter in search.space.items():
        if is_under(parameter.key or name, FIXED_KEYS):
            raise UserError(f"space.{name}", "cannot change during a run", "rates, decay, margins", "another scheduler")


def _check_metric(search: SearchConfig, config: Config) -> None:
    if config.validation is None:
        raise UserError(
            "validation",
            "the recipe has none",
            "sets to score trials on",
            "for example overrides: {validation.sets: …}",
        )
    known = ["val/score", *(f"val/{name}/{figure}" for name in config.validation.sets for figure in _FIGURES)]
    if search.metric not in known:
        raise UserError("metric", repr(search.metric), f"one of {', '.join(known)}")
