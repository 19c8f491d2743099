"""Validation during training: sharded, without a trace in the training, the best checkpoint kept, an early end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.checkpoint import best_checkpoint, latest_checkpoint, read_info
from tests.integration import training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.make_people(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return training.make_strangers(tmp_path_factory.mktemp("other"))


def write_recipe(path: Path, data: Path, output: Path, validation: dict[str, Any] | None, epochs: float = 3) -> Path:
    recipe = training.write_recipe(path, data, output, epochs=epochs, global_batch=32, local_batch=8)
    tree = yaml.safe_load(recipe.read_text())
    tree["validation"] = validation
    tree["checkpoint"] = {"every_epochs": 1, "keep": 1}
    recipe.write_text(yaml.safe_dump(tree))
    return recipe


def settings(held_out: Path, **more: Any) -> dict[str, Any]:
    return {"sets": {"strangers": {"path": str(held_out), "split": "train"}}, "every_epochs": 0.5, **more}


def test_leaves_no_trace_in_training_and_is_the_same_on_any_ranks(tmp_path: Path, data: Path, held_out: Path) -> None:
    outputs = {}
    for name, ranks, validation in (
        ("without", 1, None),
        ("one", 1, settings(held_out)),
        ("two", 2, settings(held_out)),
    ):
        outputs[name] = tmp_path / name
        training.run(write_recipe(tmp_path / f"{name}.yaml", data, outputs[name], validation), ranks)
    assert training.losses(outputs["one"]) == training.losses(outputs["without"]), "bit for bit"
    one, two = (scores(outputs[name]) for name in ("one", "two"))
    assert list(one) == list(two) == [2, 4, 6, 8, 10, 11]
    assert len(set(one.values())) > 1
    assert all(0 < score <= 1 for score in one.values())
    # ranks add up in another order, and a pair at the threshold may fall to the other side
    assert one == pytest.approx(two, abs=0.02)


def test_scores_the_moving_average_and_leaves_the_weights(tmp_path: Path, data: Path, held_out: Path) -> None:
    ema = ["ema.decay=0.5", "ema.warmup=false", "optim.backbone.lr=0.1", "optim.head.lr=0.1"]
    outputs = {}
    for name, validation, overrides in (
        ("without", None, ema),
        ("average", settings(held_out), ema),
        ("raw", settings(held_out), ema[2:]),
    ):
        outputs[name] = tmp_path / name
        training.run(write_recipe(tmp_path / f"{name}.yaml", data, outputs[name], validation), 1, overrides)
    assert training.losses(outputs["average"]) == training.losses(outputs["without"]), "bit for bit"
    assert training.losses(outputs["average"]) == training.losses(outputs["raw"])
    assert scores(outputs["average"]) != scores(outputs["raw"])


def scores(output: Path) -> dict[int, float]:
    found = training.records(output, "val/strangers/accuracy")
    assert training.records(output, "val/score") == found
    return found


def test_keeps_the_best_and_goes_on_with_what_it_knew(tmp_path: Path, data: Path, held_out: Path) -> None:
    output = tmp_path / "run"
    recipe = write_recipe(tmp_path / "recipe.yaml", data, output, settings(held_out))
    training.run(recipe, 1, ["training.epochs=2"])
    training.run(recipe, 2)
    found = scores(output)
    best_step = max(found, key=lambda step: (found[step], -step))
    best = best_checkpoint(output / "checkpoints")
    assert best is not None
    assert read_info(best).step == best_step
    latest = latest_checkpoint(output / "checkpoints")
    assert latest is not None
    state = read_info(latest).validation
    assert state is not None
    assert (state.best_score, state.best_step) == (found[best_step], best_step)
    assert state.num_since_best == len([step for step in found if step > best_step])
    assert {path.name for path in (output / "checkpoints").glob("step-*")} == {best.name, latest.name}


def test_ends_when_nothing_gets_better(tmp_path: Path, data: Path, held_out: Path) -> None:
    output = tmp_path / "run"
    # at a learning rate of next to nothing all validations find the same
    recipe = write_recipe(tmp_path / "recipe.yaml", data, output, settings(held_out, patience=2), epochs=30)
    slow = ["optim.backbone.lr=1e-30", "optim.head.lr=1e-30", "training.epochs=30"]
    text = training.run(recipe, 2, slow)
    assert "no better validation" in text
    assert len(scores(output)) < 20
    last = max(training.losses(output))
    assert "no better validation" in training.run(recipe, 1, slow), "a finished run stays finished"
    assert max(training.losses(output)) == last


def test_mistakes_are_found_before_training(tmp_path: Path, data: Path, held_out: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run", settings(held_out))
    for override, said in {
        "validation.sets.strangers.split=val": "no split 'val'",
        "validation.best_by=nobody": "none of the sets",
        f"validation.sets.strangers.pairs={tmp_path / 'none.txt'}": "unreadable",
    }.items():
        process = training.start(recipe, 1, [override])
        assert said in training.finish(process)
        assert process.returncode == 2
    assert not (tmp_path / "run" / "checkpoints").exists()
