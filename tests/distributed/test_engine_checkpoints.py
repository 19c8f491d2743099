"""A run goes on from its checkpoint on another number of ranks and under another engine."""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import latest_checkpoint, read_tensors
from tests.datasets import make_dataset
from tests.distributed.engine_runs import ENGINES, Run, train_all
from tests.integration import training

SAVED_AT, NUM_STEPS = 3, 6
GLOBAL_BATCH, LOCAL_BATCH, NUM_SAMPLES = 32, 8, 96
WORLD_SIZES = (1, 2, 3)


@dataclass(frozen=True)
class Move:
    """From which engine on how many ranks to which."""

    source: str
    before: int
    target: str
    after: int

    def __str__(self) -> str:
        return f"{self.source}-{self.before}-to-{self.target}-{self.after}"


SOME = (
    Move("zero1", 2, "zero1", 2),
    Move("zero2", 3, "zero2", 3),
    Move("zero1", 1, "zero1", 3),
    Move("ddp", 1, "zero2", 2),
    Move("ddp", 3, "zero1", 1),
    Move("zero1", 2, "ddp", 3),
    Move("zero2", 3, "ddp", 2),
)
PAIRS = (("zero1", "zero1"), ("ddp", "zero1"), ("zero1", "ddp"), ("ddp", "zero2"), ("zero2", "ddp"), ("zero2", "zero2"))
ALL = tuple(
    Move(source, before, target, after) for source, target in PAIRS for before in WORLD_SIZES for after in WORLD_SIZES
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AdamW, whose state has a count of updates beside two moments."""
    directory = tmp_path_factory.mktemp("moved")
    data = make_dataset(directory, num_samples=NUM_SAMPLES, num_identities=11, crop_px=training.CROP_PX)
    return training.write_recipe(
        directory / "recipe.yaml",
        data,
        directory / "run",
        {part: {"kind": "adamw", "lr": 1e-4} for part in ("backbone", "head")},
        epochs=NUM_STEPS * GLOBAL_BATCH / NUM_SAMPLES,
        global_batch=GLOBAL_BATCH,
        local_batch=LOCAL_BATCH,
    )


@functools.cache
def undisturbed(recipe: Path, moves: tuple[Move, ...]) -> dict[tuple[str, int], Path]:
    """Directories of the finished runs that moves begin from, by engine and ranks; each has a checkpoint midway."""
    every = f"checkpoint.every_epochs={SAVED_AT * GLOBAL_BATCH / NUM_SAMPLES}"
    wanted = sorted({(move.source, move.before) for move in moves})
    outputs = {(name, ranks): recipe.parent / f"{len(moves)}-{name}-{ranks}" for name, ranks in wanted}
    for world_size in WORLD_SIZES:
        runs = [Run(output, (every, *ENGINES[name])) for (name, n), output in outputs.items() if n == world_size]
        train_all(recipe, runs, world_size)
    return outputs


@functools.cache
def resumed(recipe: Path, moves: tuple[Move, ...]) -> dict[Move, Path]:
    """Directories of the runs that went on."""
    outputs = {move: recipe.parent / f"{len(moves)}-{move}" for move in moves}
    for move, output in outputs.items():
        shutil.copytree(undisturbed(recipe, moves)[move.source, move.before], output)
        (output / "checkpoints" / "latest").write_text(f"step-{SAVED_AT:08d}")
    for world_size in WORLD_SIZES:
        here = [move for move in moves if move.after == world_size]
        overrides = "checkpoint.every_epochs=100"
        train_all(recipe, [Run(outputs[move], (overrides, *ENGINES[move.target])) for move in here], world_size)
    return outputs


@pytest.mark.parametrize("move", SOME, ids=str)
def test_a_run_goes_on_under_another_engine_on_another_number_of_ranks(recipe: Path, move: Move) -> None:
    _assert_no_seam(move, undisturbed(recipe, SOME)[move.source, move.before], resumed(recipe, SOME)[move])


@pytest.mark.slow
@pytest.mark.parametrize("move", ALL, ids=str)
def test_a_run_goes_on_under_any_engine_on_any_number_of_ranks(recipe: Path, move: Move) -> None:
    _assert_no_seam(move, undisturbed(recipe, ALL)[move.source, move.before], resumed(recipe, ALL)[move])


def _assert_no_seam(move: Move, expected_in: Path, found_in: Path) -> None:
    expected, found = training.losses(expected_in), training.losses(found_in)
    assert sorted(found) == list(range(1, NUM_STEPS + 1))
    is_same = (move.source, move.before) == (move.target, move.after)
    for step in range(SAVED_AT + 1, NUM_STEPS + 1):
        assert found[step] == (expected[step] if is_same else pytest.approx(expected[step], rel=1e-5)), f"step {step}"
    ours, theirs = _last_tensors(found_in), _last_tensors(expected_in)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape
        if is_same or name.endswith("/step"):
            assert torch.equal(ours[name], value), name


def _last_tensors(output: Path) -> dict[str, torch.Tensor]:
    path = latest_checkpoint(output / "checkpoints")
    assert path is not None
    assert path.name == f"step-{NUM_STEPS:08d}"
    return read_tensors(path)
