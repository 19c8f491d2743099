"""How much each searched key explains of the objective.

A random forest learns the objective from the settings, and is asked about each trial by those trees that have not seen
it. Then one key's values are shuffled among the trials (Breiman, "Random forests", 2001, section 10): half of what the
forest's squared error grows by is the part of the variance that goes with the key, alone or together with others
(Jansen, "Analysis of variance designs for model output", 1999). The growth is measured trial by trial, so that its mean
has a standard error that knows how few trials there are (Watson and Wright, "Testing conditional independence in
supervised learning algorithms", 2021, with plain shuffling in place of knock-offs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.ensemble import RandomForestRegressor

from pipeline.tuning.results import SearchResults, Value

MIN_TRIALS = 8
"""With fewer scored trials nothing is said."""

_TREES = 200
_SHUFFLES = 10


@dataclass(frozen=True)
class KeyImportance:
    """One key's part in the objective."""

    key: str
    mean: float
    """Share of the objective's variance that goes with the key, alone or together with others.

    So the shares of keys that act together add up to more than 1; that of a key of no use may be a little below 0.
    """
    error: float
    """Standard error of `mean` over trials."""

    @property
    def is_shown(self) -> bool:
        """Whether `mean` is above 0 by more than two standard errors."""
        return self.mean > 2 * self.error


@dataclass(frozen=True)
class Importances:
    """What could be said about the keys, and from how many trials."""

    keys: tuple[KeyImportance, ...]
    """Most important first; empty where `reason` stands."""
    explained: float | None
    """Share of the objective's variance that is foretold for trials not seen; None where not measured."""
    num_trials: int
    """Scored trials of the search."""
    num_left_out: int
    """Trials that failed or gave no figure."""
    reason: str
    """Why nothing is said of the keys, as a sentence; empty where something is."""


def key_importances(results: SearchResults) -> Importances:
    """Measure the importance of each searched key over the search's own trials, reruns left out.

    The same results give the same figures. A trial that was stopped early counts with its last report.
    """
    scored = results.scored()
    left_out = sum(trial.phase == "search" for trial in results.trials) - len(scored)
    objective = np.array([value for _, value in scored])

    def nothing(reason: str, explained: float | None = None) -> Importances:
        return Importances((), explained, len(scored), left_out, reason)

    if not scored:
        return nothing("No trial gave a figure: there is nothing to explain.")
    if len(scored) < MIN_TRIALS:
        trials = "1 trial" if len(scored) == 1 else f"{len(scored)} trials"
        return nothing(f"Only {trials} gave a figure; it takes {MIN_TRIALS} to say what a key explains.")
    variance = float(objective.var())
    if variance <= (1e-12 * float(np.abs(objective).max())) ** 2:
        return nothing("All trials gave the same figure: there is nothing to explain.")
    settings = [trial.setting for trial, _ in scored]
    columns = {key: [setting.get(key) for setting in settings] for key in results.summary.keys}
    features = {key: _encode(key, columns) for key in columns}
    forest = _Forest(np.concatenate([one.numbers for one in features.values()], axis=1), objective)
    error = (objective - forest.predict(forest.inputs)) ** 2
    # against the mean of the other trials, as the forest's trees have not seen this one either
    others = (objective.sum() - objective) / (len(objective) - 1)
    gain, gain_error = _mean_and_error(((objective - others) ** 2 - error) / variance)
    explained = 1.0 - float(error.mean()) / variance
    if gain <= gain_error:  # two errors would silence half of all good searches of a dozen trials
        reason = (
            "From the settings of the other trials, a trial's figure could be foretold no better than by their mean."
        )
        return nothing(reason, explained)
    random = np.random.default_rng(0)
    found, first = [], 0
    for key, one in features.items():
        width = one.numbers.shape[1]
        grown = np.zeros_like(objective)
        for _ in range(_SHUFFLES):
            inputs = forest.inputs.copy()
            inputs[one.rows, first : first + width] = one.numbers[random.permutation(one.rows)]
            grown += (objective - forest.predict(inputs)) ** 2 - error
        found.append(KeyImportance(key, *_mean_and_error(grown / _SHUFFLES / 2 / variance)))
        first += width
    found.sort(key=lambda one: one.mean, reverse=True)
    return Importances(tuple(found), explained, len(scored), left_out, "")


@dataclass(frozen=True)
class _Feature:
    """A key as numbers."""

    numbers: np.ndarray
    """[trials, columns] float32: a number's place among the key's values, or a column of 0 and 1 for each category."""
    rows: np.ndarray
    """[rows] int64: trials whose values are shuffled."""


def _encode(key: str, columns: dict[str, list[Value | None]]) -> _Feature:
    """A key that did not apply everywhere is handled by why it did not.

    Where another key decides, that key has the credit: the gaps get a middling value and stay where they are when
    values are shuffled. Elsewhere a gap is a value like any other.
    """
    values = columns[key]
    applies = np.array([value is not None for value in values])
    decided = any(_decides(other, applies) for name, other in columns.items() if name != key)
    rows = np.flatnonzero(applies) if decided else np.arange(len(values))
    present = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        # a tree splits between neighbours: places say as much as values and bear any range
        place = {value: float(number) for number, value in enumerate(sorted(set(present)))}
        middle = (len(place) - 1) / 2
        numbers = [[middle if value is None else place[value]] for value in values]
        if not decided and not applies.all():
            numbers = [[*row, float(missing)] for row, missing in zip(numbers, ~applies, strict=True)]
        return _Feature(np.array(numbers, dtype=np.float32), rows)
    names = [None if value is None else repr(value) for value in values]
    known = sorted({name for name in names if name is not None})
    commonest = max(known, key=names.count)
    names = [commonest if name is None and decided else name for name in names]
    # a gap is the category without a column
    return _Feature(np.array([[name == one for one in known] for name in names], dtype=np.float32), rows)


def _decides(values: Sequence[Value | None], applies: np.ndarray) -> bool:
    """Whether a key of few values tells for each trial whether another key applies."""
    if applies.all():
        return False
    groups: dict[Value | None, set[bool]] = {}
    for value, one in zip(values, applies.tolist(), strict=True):
        groups.setdefault(value, set()).add(one)
    return 2 * len(groups) <= len(values) and all(len(group) == 1 for group in groups.values())


class _Forest:
    """A fitted forest that predicts each of its training rows by the trees that were grown without it."""

    def __init__(self, inputs: np.ndarray, targets: np.ndarray) -> None:
        """Grow it from `inputs` [rows, columns] float32 and `targets` [rows]."""
        self.inputs = inputs
        self._forest = RandomForestRegressor(_TREES, random_state=0, n_jobs=1).fit(inputs, targets)
        self._unseen = np.ones((_TREES, len(inputs)))
        for tree, rows in enumerate(self._forest.estimators_samples_):
            self._unseen[tree, rows] = 0.0
        self._unseen /= self._unseen.sum(0)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """Targets [rows] float64 for training rows, some of whose columns may have been changed."""
        by_tree = np.stack([tree.predict(inputs, check_input=False) for tree in self._forest.estimators_])
        return np.asarray((by_tree * self._unseen).sum(0))


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values))
