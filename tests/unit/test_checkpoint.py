"""Checkpoints on disk: what stays, what a damaged one says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline import checkpoint, checkpoint_writer
from pipeline.config.errors import UserError
from tests.checkpoints import make_info


def save(directory: Path, step: int, keep: int) -> Path:
    return checkpoint_writer.save(directory, {"value": torch.full((3,), float(step))}, make_info(step), keep)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_newest_stay_and_latest_names_the_last(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["latest", "step-00000010", "step-00000015"]
    newest = checkpoint.latest_checkpoint(tmp_path)
    assert newest is not None
    assert checkpoint.read_info(newest).step == 15
    assert checkpoint.read_tensors(newest)["value"].tolist() == [15.0] * 3


def test_a_run_that_goes_on_from_an_earlier_checkpoint_never_removes_what_it_just_wrote(tmp_path: Path) -> None:
    for step in (20, 30):
        save(tmp_path, step, keep=5)
    (tmp_path / "latest").write_text("step-00000020\n")
    save(tmp_path, 25, keep=1)
    assert names(tmp_path) == ["latest", "step-00000025"]
    assert checkpoint.latest_checkpoint(tmp_path) == tmp_path / "step-00000025"


def test_the_same_step_is_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 5, keep=2)
    checkpoint_writer.save(tmp_path, {"value": torch.zeros(3)}, make_info(5), keep=2)
    assert names(tmp_path) == ["latest", "step-00000005"]
    assert checkpoint.read_tensors(tmp_path / "step-00000005")["value"].tolist() == [0.0] * 3


def test_left_overs_of_a_killed_save_are_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 5, keep=2)
    (tmp_path / "step-00000010.tmp").mkdir()
    assert checkpoint.latest_checkpoint(tmp_path) == tmp_path / "step-00000005"
    save(tmp_path, 11, keep=2)
    assert names(tmp_path) == ["latest", "step-00000005", "step-00000011"]


@pytest.mark.parametrize("damage", ["truncate", "remove", "scribble"])
@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_damage_is_one_line(tmp_path: Path, damage: str, name: str) -> None:
    path = save(tmp_path, 5, keep=2)
    file = path / name
    content = file.read_bytes()
    if damage == "remove":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 3] if damage == "truncate" else b"scribble" * 20)
    with pytest.raises(UserError) as caught:
        checkpoint.read_tensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = save(tmp_path, 5, keep=2)
    with pytest.raises(UserError, match=r"'value' has shape \(3,\); expected \(4,\)"):
        checkpoint.load_into(path, {"value": torch.zeros(4)})
    with pytest.raises(UserError, match="holds no 'other'"):
        checkpoint.load_into(path, {"other": torch.zeros(3)})


def test_milestones_and_the_best_stay(tmp_path: Path) -> None:
    for step in range(1, 8):
        described = make_info(step).model_copy(update={"is_milestone": step in (1, 5)})
        checkpoint_writer.save(tmp_path, {"value": torch.zeros(3)}, described, keep=2, is_best=step in (2, 3))
    assert names(tmp_path) == ["best", "latest", *(f"step-{step:08d}" for step in (1, 3, 5, 6, 7))]
    assert checkpoint.best_checkpoint(tmp_path) == tmp_path / "step-00000003"
    assert checkpoint.find_checkpoint(tmp_path / "best") == tmp_path / "step-00000003"
    assert checkpoint.find_checkpoint(tmp_path) == tmp_path / "step-00000007"
