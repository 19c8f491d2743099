"""A search's configuration: what is refused, which parameters count, and what a run with a setting looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config.errors import UserError
from pipeline.config.load import load_config, read_yaml, validate_tree
from pipeline.config.search import SearchConfig
from pipeline.tuning.space import active_part, check_search, recipe_setting, trial_config, with_absolute_paths

REPOSITORY = Path(__file__).parents[2]
VALIDATION = {"validation.sets": {"val": {"path": "data"}}}
LR = {"kind": "loguniform", "low": 0.01, "high": 1.0}


def search(tmp_path: Path, space: dict[str, Any], **more: Any) -> SearchConfig:
    recipe = {"output": "build/run", "data": {"path": "build/data"}}
    recipe |= {"training": {"epochs": 4, "global_batch": 64, "local_batch": 32}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    tree = {"recipe": str(tmp_path / "recipe.yaml"), "output": "build/search", "overrides": VALIDATION, "space": space}
    return validate_tree(SearchConfig, {**tree, **more}, "search.yaml")


@pytest.mark.parametrize(
    ("space", "more", "message"),
    [
        ({}, {}, "space: .*at least 1"),
        ({"lr": {"kind": "uniform", "low": 2, "high": 1}}, {}, "space.lr: low 2 is not below high 1"),
        ({"lr": {"kind": "loguniform", "low": 0, "high": 1}}, {}, "space.lr.low: .*greater than 0"),
        ({"n": {"kind": "int", "low": 2, "high": 2}}, {}, "low 2 is not below high 2"),
        ({"n": {"kind": "loguniforn", "low": 2, "high": 2}}, {}, "did you mean 'loguniform'"),
        ({"n": {"kind": "int", "lo": 2, "high": 3}}, {}, "space.n.lo"),
        ({"a b": LR}, {}, "'a b' is no dotted key"),
        ({"a": {"kind": "sets", "of": {"x": {}}, "key": "b"}}, {}, "sets name their keys themselves"),
        ({"a": {**LR, "when": {"b": [1]}}}, {}, "'b' is no other parameter"),
        ({"a": {**LR, "when": {"b": [1]}}, "b": LR}, {}, "'b' is neither choice nor sets"),
        ({"a": {**LR, "when": {"b": [3]}}, "b": {"kind": "choice", "of": [1, 2]}}, {}, "3 is no value of 'b'"),
        (
            {
                "a": {"kind": "choice", "of": [1], "when": {"b": [1]}},
                "b": {"kind": "choice", "of": [1], "when": {"a": [1]}},
            },
            {},
            "depends on itself",
        ),
        ({"a": LR}, {"searcher": {"kind": "bohb"}}, "bohb needs scheduler hyperband"),
        ({"a": LR}, {"searcher": {"kind": "grid"}, "scheduler": {"kind": "pbt"}}, "leave searcher at random"),
        ({"a": {"kind": "sets", "of": {"x": {}}}}, {"scheduler": {"kind": "pbt"}}, "space.a is none"),
        ({"a": LR}, {"workers": {"count": 2, "gpus": 0.5}}, "one each, or one rank with a share"),
        ({"a": LR}, {"num_sample": 3}, "did you mean 'num_samples'"),
    ],
)
def test_what_is_refused(tmp_path: Path, space: dict[str, Any], more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        search(tmp_path, space, **more)


@pytest.mark.parametrize(
    ("space", "more", "message"),
    [
        ({"optim.backbone.rate": LR}, {}, "space.optim.backbone.rate: 0.01: .*unknown key"),
        ({"training.epochs": {"kind": "uniform", "low": -1, "high": 1}}, {}, "space.training.epochs: -1.0: .*greater"),
        ({"seed": {"kind": "int", "low": -1, "high": 3}}, {}, "space.seed: -1"),
        (
            {"augment": {"kind": "sets", "of": {"a": {}, "b": {"data.augmnt": []}}}},
            {},
            "space.augment: 'b': data.augmnt",
        ),
        ({"optim.backbone.lr": LR}, {"overrides": {}}, "validation: the recipe has none"),
        ({"optim.backbone.lr": LR}, {"metric": "loss"}, "metric: 'loss'; expected one of val/score, val/val/accuracy"),
        (
            {"backbone.dropout": {"kind": "uniform", "low": 0, "high": 0.5}},
            {"scheduler": {"kind": "pbt"}},
            "space.backbone.dropout: cannot change during a run",
        ),
        # a value that only goes wrong where another has the value that makes it count
        (
            {
                "optim.backbone.kind": {"kind": "choice", "of": ["sgd", "adamw"]},
                "optim.backbone.momentum": {"kind": "choice", "of": [0.9], "when": {"optim.backbone.kind": ["adamw"]}},
            },
            {},
            "space.optim.backbone.momentum: 0.9",
        ),
    ],
)
def test_values_are_tried_on_the_recipe(
    tmp_path: Path, space: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_search(search(tmp_path, space, **more))


CONDITIONAL = {
    "optim.backbone.kind": {"kind": "choice", "of": ["sgd", "adamw"]},
    "lr_sgd": {**LR, "key": "optim.backbone.lr", "when": {"optim.backbone.kind": ["sgd"]}},
    "lr_adamw": {
        "kind": "loguniform",
        "low": 1e-4,
        "high": 1e-2,
        "key": "optim.backbone.lr",
        "when": {"optim.backbone.kind": ["adamw"]},
    },
    "nesting": {"kind": "choice", "of": [1, 2], "key": "seed", "when": {"other": ["on"]}},
    "other": {"kind": "sets", "of": {"on": {}, "off": {}}, "when": {"optim.backbone.kind": ["adamw"]}},
}


def test_only_parameters_whose_conditions_hold_count(tmp_path: Path) -> None:
    one = search(tmp_path, CONDITIONAL)
    check_search(one)
    drawn = {"lr_sgd": 0.5, "lr_adamw": 0.002, "nesting": 2, "other": "on"}
    assert active_part(one, {"optim.backbone.kind": "sgd", **drawn}) == {"optim.backbone.kind": "sgd", "lr_sgd": 0.5}
    adamw = {"optim.backbone.kind": "adamw", **drawn}
    assert active_part(one, adamw) == {key: value for key, value in adamw.items() if key != "lr_sgd"}
    assert "nesting" not in active_part(one, {**adamw, "other": "off"})
    config = trial_config(one, adamw)
    assert (config.optim.backbone.kind, config.optim.backbone.lr, config.seed) == ("adamw", 0.002, 2)


def test_a_trial_is_the_recipe_with_its_setting(tmp_path: Path) -> None:
    sets = {"kind": "sets", "of": {"none": {"data.augment": []}, "as_it_is": {}}}
    one = search(
        tmp_path,
        {"optim.backbone.lr": LR, "augmentation": sets},
        overrides={**VALIDATION, "seed": 5, "optim.backbone.lr": 0.5},
    )
    plain = trial_config(one, {})
    recipe = load_config(tmp_path / "recipe.yaml", ["seed=5", "optim.backbone.lr=0.5"])
    assert plain.model_copy(update={"validation": None}) == recipe
    tried = trial_config(one, {"optim.backbone.lr": 0.03, "augmentation": "none"}, seed=7)
    assert (tried.optim.backbone.lr, tried.data.augment, tried.seed) == (0.03, (), 7)
    assert trial_config(one, {"augmentation": "as_it_is"}) == plain


def test_the_recipes_own_setting(tmp_path: Path) -> None:
    one = search(tmp_path, {**CONDITIONAL, "head.margin.scale": LR, "head.sample_rate": LR})
    setting = recipe_setting(one)
    assert setting == {
        "optim.backbone.kind": "sgd",
        "lr_sgd": 0.1,
        "head.margin.scale": trial_config(one, {}).model_dump()["head"]["margin"]["scale"],
        "head.sample_rate": 1.0,
    }


def test_paths_hold_in_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = search(tmp_path, {"seed": {"kind": "int", "low": 0, "high": 1}})
    config = with_absolute_paths(trial_config(one, {}), tmp_path)
    assert config.data.path == tmp_path / "build/data"
    assert config.validation is not None
    assert config.validation.sets["val"].path == tmp_path / "data"
    remote = trial_config(one, {}, data={"path": "s3://bucket/faces"})  # type: ignore[arg-type]
    assert str(with_absolute_paths(remote, tmp_path).data.path) == "s3://bucket/faces"


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs/tune").glob("*.yaml")), ids=lambda path: path.stem)
def test_ready_searches(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    one = validate_tree(SearchConfig, read_yaml(path), str(path))
    check_search(one)
    assert (
        path.read_text().splitlines()[1].endswith(f"--config configs/tune/{path.name}")
        or "--config" in path.read_text()
    )
    assert f"--config configs/tune/{path.name}" in path.read_text()
    assert one.output.name == path.stem
