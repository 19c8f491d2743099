"""Checkpoints written beside training, on 1 to 3 ranks: what they hold, and what a failed one leaves."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from pipeline import checkpoint, dist
from pipeline.checkpoint_writer import CheckpointWriter, SaveError, save
from pipeline.config.errors import UserError
from tests.checkpoints import make_info
from tests.distributed.processes import run_ranks

NUM_ROWS = 7


class State:
    """A replicated tensor and this rank's rows of another, both a function of a number."""

    def __init__(self) -> None:
        first, stop = dist.partition(NUM_ROWS, dist.rank(), dist.world_size())
        self.same, self.rows = torch.empty(5), torch.empty(stop - first, 300, 300)
        self._numbers = torch.arange(first, stop, dtype=torch.float32)[:, None, None]
        self.mesh = checkpoint.rank_mesh(torch.device("cpu"))

    def set(self, number: float) -> None:
        self.same.fill_(number)
        self.rows.copy_((self._numbers + 100 * number).expand_as(self.rows))

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"same": self.same, "rows": checkpoint.shard_rows(self.rows, NUM_ROWS, self.mesh)}


def assert_holds(path: Path, number: float) -> None:
    found = checkpoint.read_tensors(path)
    assert found["same"].tolist() == [number] * 5
    assert found["rows"][:, 0, 0].tolist() == [row + 100 * number for row in range(NUM_ROWS)]
    assert found["rows"].shape == (NUM_ROWS, 300, 300)


def write_and_go_on(directory: Path) -> list[str]:
    said: list[str] = []
    state, saved = State(), []
    with CheckpointWriter(directory, 2, 3, said.append, lambda: saved.append(1)) as writer:
        for step in (1, 2, 3):
            state.set(step)
            writer.save(state.tensors(), make_info(step))
            state.set(-1)  # at once, while it is being written
        writer.finish()
    assert len(saved) == 3
    return said


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_holds_what_was_when_it_was_asked_for(tmp_path: Path, world_size: int) -> None:
    assert run_ranks(write_and_go_on, world_size, tmp_path) == [[]] * world_size
    assert [path.name for path in checkpoint.all_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    assert_holds(tmp_path / "step-00000002", 2)
    assert_holds(tmp_path / "step-00000003", 3)


def limit_file_size(num_bytes: int) -> None:
    """Let writes of this process beyond a size fail, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, resource.RLIM_INFINITY))


def fail_on_last_rank(directory: Path) -> tuple[list[str], int]:
    said: list[str] = []
    state, num_saved = State(), []
    is_last = dist.rank() == dist.world_size() - 1
    with CheckpointWriter(directory, 5, 2, said.append, lambda: num_saved.append(1)) as writer:
        for step, is_full in ((1, False), (2, True), (3, False), (4, True)):
            state.set(step)
            writer.wait()
            limit_file_size(100_000 if is_full and is_last else -1)
            writer.save(state.tensors(), make_info(step))
        with pytest.raises(UserError, match=r"step-00000004: could not be saved .*, 1 in a row, [\d,]+ MiB free"):
            writer.finish()
    return said, len(num_saved)


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_rank_that_cannot_write_leaves_the_one_before(tmp_path: Path, world_size: int) -> None:
    for said, num_saved in run_ranks(fail_on_last_rank, world_size, tmp_path):
        assert num_saved == 2
        assert len(said) == 1
        assert "step-00000002 could not be saved" in said[0]
        assert (world_size == 1) == ("rank 2: " not in said[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001", "step-00000003"]
    latest = checkpoint.latest_checkpoint(tmp_path)
    assert latest is not None
    assert_holds(latest, 3)


def fail_again_and_again(directory: Path) -> str:
    state = State()
    state.set(1)
    with CheckpointWriter(directory, 5, 2, lambda line: None, lambda: None) as writer:
        for step in (1, 2):
            writer.save(state.tensors(), make_info(step))
        with pytest.raises(UserError, match="2 in a row") as caught:
            writer.save(state.tensors(), make_info(3))
    return str(caught.value)


def test_stops_after_some_failures_in_a_row(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()  # what rank 0 alone meets, at the very end
    one, other = run_ranks(fail_again_and_again, 2, tmp_path)
    assert one == other
    assert "Is a directory" in one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001", "step-00000002"]


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SaveError, match=r"exists|Not a directory"):
        save(tmp_path / "file", {"value": torch.zeros(3)}, make_info(1), keep=1)
