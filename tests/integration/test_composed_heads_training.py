"""Real runs with sums of heads and with teachers: they train, resume bit for bit, and refuse what cannot work."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.checkpoint import find_checkpoint, load_backbone, read_info, read_tensors
from pipeline.config.errors import UserError
from pipeline.config.load import load_config
from pipeline.engine.run import plan_run
from tests.datasets import make_dataset
from tests.integration import training

pytestmark = pytest.mark.timeout(240)

SOFTMAX = {"kind": "margin_softmax", "margin": {"kind": "softmax"}}
JOINT = {
    "kind": "sum",
    "parts": {
        "softmax": {"head": SOFTMAX},
        # it works from the second epoch on
        "centre": {"weight": [[1, 0], [1, 0.5], [3, 1]], "head": {"kind": "centre", "strength": 0.1}},
    },
}
FAST_SGD: dict[str, object] = {"backbone": {"lr": 0.01}, "head": {"lr": 0.05}}
FAST_ADAMW: dict[str, object] = {part: {"kind": "adamw", "lr": 1e-2} for part in ("backbone", "head")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=200, num_identities=6, crop_px=training.CROP_PX)


def write_recipe(
    path: Path,
    data: Path,
    output: Path,
    head: Mapping[str, object],
    optim: dict[str, object] | None = None,
    **options: object,
) -> Path:
    training.write_recipe(path, data, output, optim, **options)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"head": head}))
    return path


def tensors(output: Path) -> dict[str, torch.Tensor]:
    return read_tensors(find_checkpoint(output))


def assert_equal_runs(one: Path, other: Path) -> None:
    assert training.losses(one) == training.losses(other)
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    recipe = write_recipe(directory / "recipe.yaml", data, directory / "run", JOINT, FAST_SGD, epochs=3)
    training.run(recipe, 2)
    return directory / "run"


@pytest.fixture(scope="module")
def teacher(undisturbed: Path) -> Path:
    """The run of a sum, so that the class centres have to be found in a part of it."""
    return undisturbed


@pytest.mark.parametrize("kill_at", [2, 6], ids=["before-the-centres-move", "after"])
def test_a_killed_run_of_a_sum_goes_on_bit_for_bit(tmp_path: Path, data: Path, undisturbed: Path, kill_at: int) -> None:
    recipe = write_recipe(tmp_path / "killed.yaml", data, tmp_path / "killed", JOINT, FAST_SGD, epochs=3)
    training.kill_at_step(recipe, 2, tmp_path / "killed", kill_at, signal.SIGKILL)
    assert max(training.losses(tmp_path / "killed")) < max(training.losses(undisturbed))
    assert "resumed at step" in training.run(recipe, 2)
    assert_equal_runs(tmp_path / "killed", undisturbed)
    centres = tensors(tmp_path / "killed")["head/part_centre.centres"]
    assert centres.shape == (6, 64)
    assert centres.norm(dim=1).min() > 0
    records = [json.loads(line) for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()]
    assert {"softmax/accuracy", "softmax/loss", "centre/weight"} <= records[0].keys()
    for record in records:
        weight = record["centre/weight"]
        assert ("centre/loss" in record) == (weight > 0)
        loss = record["softmax/loss"] + weight * record.get("centre/loss", 0)
        assert record["loss"] == pytest.approx(loss, rel=1e-5)
    assert [record["centre/weight"] > 0 for record in records[:5]] == [False, False, False, False, True]


def test_parts_keep_their_kinds(tmp_path: Path, data: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run", JOINT, FAST_SGD, epochs=5)
    said = refusal(recipe, "head.parts.centre.head.kind=contrastive")
    assert said.startswith("head.parts.centre.head.kind: 'contrastive', but ")
    plan = plan_run(load_config(recipe, ["head.parts.centre.weight=2"]))
    assert plan.resume is not None
    assert [change.partition(":")[0] for change in plan.resume.changes] == [
        "head.parts.centre.weight",
        "training.epochs",
    ]


def learn_from(teacher: Path) -> dict[str, object]:
    target = {"cosine": {"kind": "cosine"}, "opinion": {"kind": "logits", "temperature": 2}}
    parts = {
        name: {"head": {"kind": "distillation", "teacher": {"checkpoint": str(teacher)}, "target": section}}
        for name, section in target.items()
    }
    return {"kind": "sum", "parts": parts}


def test_a_student_of_another_size_learns_from_a_teacher(tmp_path: Path, data: Path, teacher: Path) -> None:
    output = tmp_path / "run"
    recipe = write_recipe(tmp_path / "recipe.yaml", data, output, learn_from(teacher), FAST_ADAMW, epochs=5)
    smaller = ["backbone.embedding_dim=32", "backbone.dropout=0"]
    training.run(recipe, 2, smaller)
    losses, cosines = training.losses(output), training.metric(output, "cosine/teacher_cosine")
    last = max(losses)
    assert losses[last] < 0.7 * losses[1]
    assert cosines[last] > 0.4 > 0.1 > cosines[1]
    opinions = training.metric(output, "opinion/loss")
    assert opinions[last] < 0.7 * opinions[1]

    # resumed on one rank, which then holds all class centres of the teacher
    middle = sorted((output / "checkpoints").glob("step-*"))[-5]
    (output / "checkpoints" / "latest").write_text(middle.name)
    assert "2 → 1 ranks" in training.run(recipe, 1, smaller)
    resumed_at = read_info(middle).step
    again = training.losses(output)
    assert sorted(again) == sorted(losses)
    # the step after is another one only by the order of sums; with such rates later ones soon are not
    assert again[resumed_at + 1] == pytest.approx(losses[resumed_at + 1], rel=1e-4)

    saved = tensors(output)
    heads = {name: tuple(value.shape) for name, value in saved.items() if name.startswith("head/")}
    assert heads == {"head/part_cosine.projection": (64, 32), "head/part_opinion.projection": (64, 32)}
    backbone = load_backbone(output, torch.device("cpu"))
    assert backbone.embedding_dim == 32
    named = read_info(find_checkpoint(output)).config["head"]["parts"]["cosine"]["head"]["teacher"]["checkpoint"]
    assert Path(named) == find_checkpoint(teacher)


def test_a_new_model_learns_to_answer_an_old_one(tmp_path: Path, data: Path, teacher: Path) -> None:
    head = {"kind": "harmonic", "teacher": {"checkpoint": str(teacher)}, "margin": 0.3}
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run", head, epochs=6)
    # two micro-batches a rank: the loss gets the whole batch by gradient caching, and the teacher's embeddings of it
    training.run(recipe, 2, ["optim.backbone.kind=adamw", "optim.backbone.lr=1e-2", "backbone.dropout=0"])
    losses, cosines = training.losses(tmp_path / "run"), training.metric(tmp_path / "run", "teacher_cosine")
    last = max(losses)
    assert losses[last] < 0.85 * losses[1]
    assert cosines[last] > cosines[1] + 0.04
    assert min(training.metric(tmp_path / "run", "num_triplets").values()) > 100
    assert not any(name.startswith("head") for name in tensors(tmp_path / "run"))


def refusal(recipe: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        plan_run(load_config(recipe, overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_teachers_that_do_not_fit_are_refused_before_the_start(tmp_path: Path, data: Path, teacher: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run", learn_from(teacher))
    plan = plan_run(load_config(recipe))
    assert plan.teacher is not None
    assert plan.teacher.needs_classes
    opinion = "head.parts.opinion.head"

    nowhere = [f"head.parts.{part}.head.teacher.checkpoint=nowhere" for part in ("cosine", "opinion")]
    assert "nowhere: no such directory" in refusal(recipe, *nowhere)
    larger = make_dataset(tmp_path / "larger", num_samples=100, num_identities=6, crop_px=48)
    assert "a teacher for crops of 32 px; expected 48 px" in refusal(recipe, f"data.path={larger}")
    strangers = make_dataset(tmp_path / "others", num_samples=100, num_identities=5, crop_px=training.CROP_PX)
    said = refusal(recipe, f"data.path={strangers}")
    assert f"{opinion}.teacher.checkpoint: " in said
    assert "was trained on other identities (6 of them)" in said
    # embeddings can be learnt on other people
    alone = write_recipe(
        tmp_path / "alone.yaml", strangers, tmp_path / "run", learn_from(teacher)["parts"]["cosine"]["head"]
    )  # type: ignore[index]
    assert plan_run(load_config(alone)).teacher is not None

    harmonic = [f"{opinion}.kind=harmonic", f"{opinion}.teacher.checkpoint={teacher}", "backbone.embedding_dim=32"]
    assert "backbone.embedding_dim: 32, but the teacher of head.parts.opinion.head" in refusal(recipe, *harmonic)

    shutil.copytree(teacher, tmp_path / "other")
    description = find_checkpoint(tmp_path / "other") / "checkpoint.json"
    info = json.loads(description.read_text())
    shifted = info["dataset"] | {"crop": {"size_px": 32, "template": [1.0] * 10}}
    description.write_text(json.dumps(info | {"dataset": shifted}))
    moved = [f"head.parts.{part}.head.teacher.checkpoint={tmp_path / 'other'}" for part in ("cosine", "opinion")]
    assert "a teacher for crops of another template" in refusal(recipe, *moved)
    description.write_text(json.dumps(info | {"config": info["config"] | {"head": {"kind": "centre"}}}))
    assert "its head has 0 margin softmaxes" in refusal(recipe, *moved)


def test_a_teacher_that_went_on_does_not_change_a_run_that_is_resumed(
    tmp_path: Path, data: Path, teacher: Path
) -> None:
    own = tmp_path / "teacher"
    shutil.copytree(teacher, own)
    checkpoints = sorted((own / "checkpoints").glob("step-*"))
    (own / "checkpoints" / "latest").write_text(checkpoints[0].name)
    head = {"kind": "distillation", "teacher": {"checkpoint": str(own)}}
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run", head, epochs=1)
    training.run(recipe, 1)
    longer = ["training.epochs=2"]
    assert plan_run(load_config(recipe, longer)).resume is not None
    (own / "checkpoints" / "latest").write_text(checkpoints[-1].name)
    said = refusal(recipe, *longer)
    assert said.startswith(f"head.teacher.checkpoint: '{checkpoints[-1]}', but ")
    assert str(checkpoints[0]) in said
    assert plan_run(load_config(recipe, [*longer, f"head.teacher.checkpoint={checkpoints[0]}"])).resume is not None
    # the same step at another place
    shutil.move(own, tmp_path / "moved")
    plan = plan_run(
        load_config(
            recipe, [*longer, f"head.teacher.checkpoint={tmp_path / 'moved/checkpoints' / checkpoints[0].name}"]
        )
    )
    assert plan.resume is not None
    assert any("head.teacher.checkpoint" in change for change in plan.resume.changes)
