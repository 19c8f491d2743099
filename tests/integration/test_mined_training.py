"""A run with a triplet head and mined slots: killed in the middle of a segment, it goes on bit for bit."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

from pipeline.checkpoint import all_checkpoints, latest_checkpoint, read_info, read_tensors
from pipeline.config.errors import UserError
from pipeline.config.load import load_config
from pipeline.engine.mining import Miner
from pipeline.engine.run import plan_run
from pipeline.engine.trainer import Trainer
from tests.datasets import make_dataset
from tests.integration import training

# 320 photos in batches of 64; from step 2 on, 16 slots of each are mined: 2 plain steps, then 11 of 48 plain slots
NUM_STEPS = 13
MINING = {"every_steps": 4, "start_step": 2, "subset": 120, "photos_per_person": 8, "negatives": 2, "margin": 0.5}

COSTS = re.compile(
    r"samples_per_s|data_wait|step_s|time/|rank_own_s|slowest_rank|resident_bytes|save_wait_s|dead_centres"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), num_samples=320, num_identities=20, crop_px=training.CROP_PX)


def write_recipe(path: Path, data: Path, output: Path) -> Path:
    # with this optimizer the weights move enough for each round to find other examples
    recipe = training.write_recipe(path, data, output, training.ADAMW, epochs=2.05)
    tree = yaml.safe_load(recipe.read_text())
    tree |= {"head": {"kind": "triplet", "margin": 0.5, "mining": "hard"}, "mining": MINING}
    tree["checkpoint"]["every_epochs"] = 0.4  # at each even step; segments begin at steps 2, 6 and 10
    recipe.write_text(yaml.safe_dump(tree))
    return recipe


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    text = training.run(write_recipe(directory / "recipe.yaml", data, directory / "run"), 2)
    assert text.count("mined round") == 3
    output = directory / "run"
    assert sorted(training.losses(output)) == list(range(1, NUM_STEPS + 1))
    return output


def test_rounds_lists_and_checkpoints(undisturbed: Path) -> None:
    lists = {}
    for path in all_checkpoints(undisturbed / "checkpoints"):
        info = read_info(path)
        lists[info.step] = None if info.mined_list is None else int(Path(info.mined_list.file).stem[-6:])
    assert lists == {2: None, 4: 1, 6: None, 8: 2, 10: None, 12: 3, 13: 3}
    assert sorted(path.name for path in (undisturbed / "mined").iterdir()) == [
        f"round-{number:06d}.arrow" for number in (1, 2, 3)
    ]
    found = records(undisturbed)
    rounds = {step: record.get("mined_round") for step, record in found.items()}
    assert rounds == {1: None, 2: None, **{step: (step - 3) // 4 + 1 for step in range(3, NUM_STEPS + 1)}}
    assert found[NUM_STEPS]["epoch"] == (2 * 64 + 11 * 48) / 320
    assert len({found[step]["mined_positive_distance"] for step in (3, 7, 11)}) == 3


def test_killed_in_a_segment_it_goes_on_bit_for_bit(tmp_path: Path, data: Path, undisturbed: Path) -> None:
    output = tmp_path / "run"
    recipe = write_recipe(tmp_path / "recipe.yaml", data, output)
    training.kill_at_step(recipe, 2, output, 9, signal.SIGKILL, saved="step-00000008/checkpoint.json")
    assert 9 <= max(training.losses(output)) < NUM_STEPS
    (output / "checkpoints" / "latest").write_text("step-00000008")  # in case it came as far as the next one
    text = training.run(recipe, 2)
    assert "resumed at step 8 " in text
    assert text.count("mined round") == 1, "the second list is read, the third is made"
    assert_equal_runs(output, undisturbed)


def test_resumed_at_a_border_it_does_the_round_again(tmp_path: Path, data: Path, undisturbed: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    (output / "checkpoints" / "latest").write_text("step-00000006")
    text = training.run(write_recipe(tmp_path / "recipe.yaml", data, output), 2)
    assert "resumed at step 6 " in text
    assert "mined round 2: " in text
    assert_equal_runs(output, undisturbed)


def test_another_number_of_ranks_and_fewer_checkpoints_kept(tmp_path: Path, data: Path, undisturbed: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    (output / "checkpoints" / "latest").write_text("step-00000008")
    recipe = write_recipe(tmp_path / "recipe.yaml", data, output)
    assert "2 → 1 ranks" in training.run(recipe, 1, ["checkpoint.keep=1"])
    ours, theirs = training.losses(output), training.losses(undisturbed)
    assert ours.keys() == theirs.keys()
    assert ours[9] == pytest.approx(theirs[9], rel=1e-4)
    assert [path.name for path in (output / "mined").iterdir()] == ["round-000003.arrow"]


def test_mistakes_are_one_line(tmp_path: Path, data: Path, undisturbed: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(undisturbed, output)
    recipe = write_recipe(tmp_path / "recipe.yaml", data, output)
    for override in ("mining.share=0.5", "mining.subset=100", "mining=null", "training.global_batch=32"):
        assert "was trained with" in refusal(recipe, override)
    mined = output / "mined" / "round-000003.arrow"
    content = mined.read_bytes()
    mined.write_bytes(content[:-1])
    assert "changed since the checkpoint" in refusal(recipe)
    mined.unlink()
    assert "No such file" in refusal(recipe)
    process = training.start(recipe, 1)
    text = training.finish(process)
    assert process.returncode == 2
    assert f"error: {mined}: No such file or directory; expected the mined list of the checkpoint; restore it" in text
    assert "Traceback" not in text
    fresh = write_recipe(tmp_path / "fresh.yaml", data, tmp_path / "fresh")
    assert "the run has 7 steps" in refusal(fresh, "mining.start_step=7", "training.epochs=1.4")


def test_asked_to_stop_in_a_round_it_saves_first(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Miner, "mine", lambda self, number, **_: None)
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    plan = plan_run(load_config(recipe, ["checkpoint.every_epochs=1000"]))
    plan.config.output.mkdir()
    result = Trainer(plan, torch.device("cpu")).run()
    assert (result.step, result.is_finished) == (2, False)
    newest = latest_checkpoint(plan.checkpoints)
    assert newest is not None
    assert (read_info(newest).step, read_info(newest).mined_list) == (2, None)


def test_a_margin_softmax_takes_mined_slots_too(tmp_path: Path, data: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", data, tmp_path / "run")
    plan = plan_run(load_config(recipe, ["head.kind=margin_softmax", "training.epochs=1"]))
    plan.config.output.mkdir()
    assert Trainer(plan, torch.device("cpu")).run().is_finished
    assert [record.get("mined_round") for record in records(plan.config.output).values()] == [None] * 2 + [1.0] * 4


def refusal(recipe: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        plan_run(load_config(recipe, overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def records(output: Path) -> dict[int, dict[str, float]]:
    """What the metrics say of each step, but for what a step costs and when an epoch was begun to be counted."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: {name: value for name, value in line.items() if not COSTS.match(name)} for line in lines}


def assert_equal_runs(one: Path, other: Path) -> None:
    assert records(one) == records(other)
    infos, tensors = [], []
    for output in (one, other):
        path = latest_checkpoint(output / "checkpoints")
        assert path is not None
        infos.append(read_info(path))
        tensors.append(read_tensors(path))
    assert infos[0].mined_list == infos[1].mined_list
    assert [name for name, value in tensors[0].items() if not torch.equal(value, tensors[1][name])] == []
