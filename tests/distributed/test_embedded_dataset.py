"""Embeddings of a whole data set: the same file from any number of ranks, in any number of attempts."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch
from torch import Tensor
from typer.testing import CliRunner

from launch.embed import app as embed_app
from pipeline import dist
from pipeline.config.errors import InUseError, TemporaryError, UserError
from pipeline.data.dataset_format import shard_paths
from pipeline.data.manifest import open_dataset
from pipeline.data.reader import Reader
from pipeline.inputs.embedded_dataset import embed_dataset, parts_folder
from pipeline.inputs.models import open_model
from pipeline.lock import exclusive_file, lock_beside
from preprocess.cli import app
from tests.datasets import make_dataset
from tests.distributed.processes import RankFailure, run_ranks

CROP_PX, PART_ROWS = 16, 7
MODEL = "tests.distributed.test_embedded_dataset:model"
CALLS_BEFORE_DEATH: list[int] = []
"""Calls of the model after which this process dies."""


def model(crops: Tensor) -> Tensor:
    if CALLS_BEFORE_DEATH:
        CALLS_BEFORE_DEATH[0] -= 1
        if CALLS_BEFORE_DEATH[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return crops[:, :, ::4, ::4].float().flatten(1) - 128.0


def zero(crops: Tensor) -> Tensor:
    return model(crops) * 0.0


def embed(data: Path, output: Path, dies: tuple[int, int] | None = None, name: str = MODEL) -> tuple[int, int, int]:
    """On a rank; `dies` is a rank and which of its parts it dies in. Gives photos made earlier, embedded, and all."""
    recogniser = open_model(name, torch.device("cpu"), declared=f"size={CROP_PX}")
    if dies is not None and dist.rank() == dies[0]:
        CALLS_BEFORE_DEATH[:] = [dies[1]]
    seen: list[int] = []

    def show(total: int, done: int) -> Callable[[int], None]:
        seen[:] = [done, total]
        return lambda count: seen.append(count)

    counts = embed_dataset(recogniser, open_dataset(data), output, show, PART_ROWS)
    assert seen[0] + sum(seen[2:]) == seen[1]  # a display ends where it should, on each rank
    return seen[0], *counts


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 photos, of which one is withdrawn and one damaged."""
    root = make_dataset(
        tmp_path_factory.mktemp("data") / "set",
        num_samples=40,
        num_identities=4,
        crop_px=CROP_PX,
        samples_per_shard=16,
    )
    assert CliRunner().invoke(app, ["withdraw", str(root), "--key", "000000003"]).exit_code == 0
    split = open_dataset(root).split("train")
    tar = shard_paths(root, "train", "train-000001")["tar"]
    content = bytearray(tar.read_bytes())
    content[int(split.jpg_offset[split.shard == 1][2]) + 30] ^= 1
    tar.write_bytes(content)
    return root


@pytest.fixture(scope="module")
def expected(data: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What one process makes in one attempt."""
    output = tmp_path_factory.mktemp("one") / "e.parquet"
    assert embed(data, output) == (0, 38, 39)
    assert not parts_folder(output).exists()
    return output.read_bytes()


def test_rows_are_the_photos_that_can_be_read(data: Path, expected: bytes, tmp_path: Path) -> None:
    (tmp_path / "e.parquet").write_bytes(expected)
    rows = pq.read_table(tmp_path / "e.parquet").to_pylist()
    dataset = open_dataset(data)
    split = dataset.split("train")
    keys = split.manifest(["key"])["key"].to_pylist()
    bad = np.flatnonzero(split.shard == 1)[2]
    assert [row["key"] for row in rows] == [
        key for place, key in enumerate(keys) if place != bad and key != "000000003"
    ]
    with Reader(split) as reader:
        for row in rows:
            content = reader.read(keys.index(row["key"]))
            assert isinstance(content, bytes)
            crop = simplejpeg.decode_jpeg(content, "RGB").transpose(2, 0, 1)
            assert row["embedding"] == (crop[:, ::4, ::4].astype(float) - 128).ravel().tolist()


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_number_of_ranks_writes_the_same_bytes(data: Path, expected: bytes, tmp_path: Path, ranks: int) -> None:
    output = tmp_path / "e.parquet"
    assert run_ranks(embed, ranks, data, output) == [(0, 38, 39)] * ranks
    assert output.read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["e.parquet"]


@pytest.mark.parametrize("resumed_on", [1, 3])
def test_a_killed_rank_loses_at_most_its_part(data: Path, expected: bytes, tmp_path: Path, resumed_on: int) -> None:
    output = tmp_path / "e.parquet"
    with pytest.raises(RankFailure):
        run_ranks(embed, 2, data, output, (1, 2))  # six parts, three a rank: it dies in its second
    made = sorted(path.name for path in parts_folder(output).glob("*.parquet"))
    # both had finished their first; whether the other rank had its second is a matter of chance
    assert set(made) >= {"train-000000000000.parquet", "train-000000000007.parquet"}
    assert "train-000000000021.parquet" not in made
    assert not output.exists()
    (first,) = {found[0] for found in run_ranks(embed, resumed_on, data, output)}
    assert first >= 13  # 14 rows, of which one is withdrawn
    assert output.read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["e.parquet"]


def test_parts_of_another_model_or_other_data_are_not_joined(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "e.parquet"
    changed = shutil.copytree(data, tmp_path / "changed")
    with pytest.raises(RankFailure):
        run_ranks(embed, 2, data, output, (0, 2))
    with pytest.raises(UserError, match=r"e\.parquet\.parts: begun with another model; .*remove it to begin anew"):
        embed(data, output, name=MODEL.replace(":model", ":zero"))
    assert CliRunner().invoke(app, ["withdraw", str(changed), "--key", "000000004"]).exit_code == 0
    with pytest.raises(UserError, match="begun with another withdrawn and another num_photos"):
        embed(changed, output)
    (parts_folder(output) / "plan.json").write_text("{")
    with pytest.raises(UserError, match=r"plan\.json: damaged; remove"):
        embed(data, output)


def test_parts_without_a_plan_are_made_anew(data: Path, expected: bytes, tmp_path: Path) -> None:
    """Nobody can tell which model made them."""
    output = tmp_path / "e.parquet"
    with pytest.raises(RankFailure):
        run_ranks(embed, 2, data, output, (1, 2))
    (parts_folder(output) / "plan.json").unlink()
    assert embed(data, output) == (0, 38, 39)
    assert output.read_bytes() == expected


def test_the_plan_goes_after_the_parts(
    data: Path, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "e.parquet"
    unlink = Path.unlink

    def stopped(path: Path, missing_ok: bool = False) -> None:
        if path.parent == parts_folder(output) and path.suffix == ".parquet" and not path.name.endswith("00.parquet"):
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", stopped)
        with pytest.raises(KeyboardInterrupt):
            embed(data, output)
    with pytest.raises(UserError, match="begun with another model"):
        embed(data, output, name=MODEL.replace(":model", ":zero"))
    embed(data, output)
    assert output.read_bytes() == expected
    assert [path.name for path in tmp_path.iterdir()] == ["e.parquet"]


def test_files_that_a_server_keeps_do_not_spoil_the_end(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "e.parquet"
    parts_folder(output).mkdir()
    (parts_folder(output) / ".nfs0001").write_text("")
    assert embed(data, output) == (0, 38, 39)
    assert [path.name for path in parts_folder(output).iterdir()] == [".nfs0001"]


def test_photos_that_the_storage_does_not_give_are_not_passed_over(data: Path, expected: bytes, tmp_path: Path) -> None:
    moved = shutil.copytree(data, tmp_path / "set" / "data")
    output = tmp_path / "e.parquet"
    tar = shard_paths(moved, "train", "train-000001")["tar"]
    tar.rename(tar.with_suffix(".away"))
    with pytest.raises(TemporaryError, match=r"train-000001\.tar: cannot be read .*; repeat the same command"):
        embed(moved, output)
    tar.with_suffix(".away").rename(tar)
    assert not output.exists()
    assert embed(moved, output) == (7, 38, 39)  # the first part is of the first file alone
    assert output.read_bytes() == expected


def test_who_waited_for_another_does_not_do_its_work_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.lock.WAIT_AT_A_TERMINAL_S", 100.0)
    output = tmp_path / "e.parquet"
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with exclusive_file(output):
            inside.set()
            leave.wait()
            output.write_bytes(b"the other's")

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    monkeypatch.setattr("pipeline.lock.time.sleep", lambda seconds: leave.set())
    with pytest.raises(UserError, match=r"e\.parquet: another process has written it meanwhile; repeat the command"):
        embed(data, output)
    thread.join()
    assert output.read_bytes() == b"the other's"
    assert not lock_beside(output).exists()


def test_an_output_that_is_a_folder_is_refused_before_the_work(data: Path, tmp_path: Path) -> None:
    (tmp_path / "e.parquet").mkdir()
    with pytest.raises(UserError, match=r"e\.parquet: cannot be written \(a folder\)"):
        embed(data, tmp_path / "e.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["e.parquet"]


def test_embeddings_of_zero_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="7 of 7 embeddings are not finite or zero, first that of '0000000"):
        embed(data, tmp_path / "e.parquet", name=MODEL.replace(":model", ":zero"))


def test_the_command_refuses_what_does_not_fit(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("pipeline.lock.WAIT_S", 0.1)
    monkeypatch.setattr("pipeline.lock.WAIT_AT_A_TERMINAL_S", 0.1)
    output = tmp_path / "e.parquet"

    def call(*words: str) -> None:
        given = ["--data", str(data), "--output", str(output), "--device", "cpu", *words]
        embed_app(given, standalone_mode=False)

    with pytest.raises(UserError, match="crops of 16 px; expected 20 px, as the model takes; preprocess shard"):
        call("--model", MODEL, "--input", "size=20")
    np.savez(tmp_path / "e.npz", key=["a"], embedding=np.ones((1, 2)))
    with pytest.raises(UserError, match=r"e\.npz: embeddings already; expected a model"):
        call("--model", str(tmp_path / "e.npz"))
    assert list(output.parent.glob("e.parquet*")) == []
    with exclusive_file(output), pytest.raises(InUseError, match="another run writes here"):
        call("--model", MODEL, "--input", f"size={CROP_PX}")
    call("--model", MODEL, "--input", f"size={CROP_PX}")
    assert len(pq.read_table(output)) == 38
