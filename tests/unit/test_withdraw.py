"""Withdrawn samples: masked for our readers at once, gone after compaction; the rest as it was."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from pipeline.config.errors import UserError
from pipeline.data.loader import StepBatch
from pipeline.data.manifest import SplitIndex, open_dataset
from pipeline.data.tombstones import read_tombstones
from pipeline.evaluate.pairs import Photo
from pipeline.evaluate.photos import DatasetPhotos, Rejected
from preprocess import compact as compacting
from preprocess.cli import app
from preprocess.drivers.local import exclusive
from preprocess.verify import find_faults
from preprocess.withdraw import withdraw
from tests.datasets import make_dataset
from tests.loading import make_loader

CROP_PX = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(
        tmp_path_factory.mktemp("data"), num_samples=90, num_identities=6, crop_px=CROP_PX, samples_per_shard=30
    )


@pytest.fixture
def data(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def load(data: Path) -> tuple[SplitIndex, list[StepBatch]]:
    split = open_dataset(data).split("train")
    with make_loader(split, global_batch=30, local_batch=10, stop=90, crop_px=CROP_PX) as loader:
        return split, list(loader)


def column(split: SplitIndex, name: str) -> list[str]:
    values: list[str] = split.manifest([name])[name].to_pylist()
    return values


def test_slots_are_masked_and_nothing_else_changes(data: Path) -> None:
    before, expected = load(data)
    text = run("withdraw", data, "--identity", "person002", "--key", "000000003", "--reason", "asked")
    names = zip(before.sample_id.tolist(), column(before, "identity"), strict=True)
    gone = {3, *(sample for sample, name in names if name == "person002")}
    assert f"{len(gone)} samples withdrawn" in text
    after, batches = load(data)
    assert after.digest == before.digest
    assert {int(after.sample_id[row]) for row in after.withdrawn} == gone
    assert {bad.sample_id for batch in batches for bad in batch.bad_samples} == gone
    assert {bad.reason for batch in batches for bad in batch.bad_samples} == {"withdrawn"}
    for batch, other in zip(batches, expected, strict=True):
        for micro, same in zip(batch.micro_batches, other.micro_batches, strict=True):
            assert torch.equal(micro.sample_ids, same.sample_ids)
            is_gone = torch.tensor([int(sample) in gone for sample in micro.sample_ids])
            assert torch.equal(micro.valid, ~is_gone)
            assert torch.equal(micro.images[~is_gone], same.images[~is_gone])
            assert not micro.images[is_gone].any()
            assert (micro.labels[is_gone] == -1).all()
    assert find_faults(data, lambda count: None) == []
    assert "each exactly once" in run("verify", data, "--coverage")


def test_repeating_adds_nothing_and_lists_are_read(data: Path, tmp_path: Path) -> None:
    listed = tmp_path / "withdrawn.txt"
    listed.write_text("000000005\n\nidentity:person001\nkey:000000007\n")
    assert "samples withdrawn" in run("withdraw", data, "--list", listed)
    before, count = (data / "tombstones.parquet").read_bytes(), len(read_tombstones(data))
    assert f"0 samples withdrawn, {count} were before" in run("withdraw", data, "--list", listed)
    assert (data / "tombstones.parquet").read_bytes() == before
    run("withdraw", data, "--key", "000000009")
    assert len(read_tombstones(data)) == count + 1
    assert not (data / ".work").exists()


def test_a_name_that_is_not_there_changes_nothing(data: Path) -> None:
    with pytest.raises(UserError, match=r"--identity: person999; expected one that"):
        withdraw(data, {"identity": ["person001", "person999"]}, "")
    assert not (data / "tombstones.parquet").exists()
    with pytest.raises(UserError, match="nothing to withdraw"):
        withdraw(data, {"key": []}, "")
    with exclusive(data), pytest.raises(UserError, match="another run is working on it"):
        withdraw(data, {"key": ["000000001"]}, "")


def test_a_spoilt_list_is_an_error_not_an_empty_one(data: Path) -> None:
    (data / "tombstones.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="without it they would be read"):
        open_dataset(data).split("train")


def test_a_reject_leaves_the_ledger(data: Path) -> None:
    (page,) = [page for page in (data / "rejects").glob("*.html") if "notes.jpg" in page.read_text()]
    rows = pq.read_table(data / "manifest" / f"{page.stem}.parquet").to_pylist()
    key = next(row["key"] for row in rows if row["status"] == "rejected")
    assert "1 left the ledger of rejects" in run("withdraw", data, "--key", key)
    assert "notes.jpg" not in page.read_text()
    assert "<h1>0 rejects of" in page.read_text()


def contents(data: Path) -> list[bytes]:
    split = open_dataset(data).split("train")
    places = zip(split.shard, split.jpg_offset, split.jpg_size, strict=True)
    return [split.shards[shard].read_bytes()[offset : offset + size] for shard, offset, size in places]


def test_compaction_leaves_no_trace(data: Path, tmp_path: Path) -> None:
    split = open_dataset(data).split("train")
    old = dict(zip(column(split, "key"), contents(data), strict=True))
    labels = dict(zip(column(split, "key"), split.plan_label.tolist(), strict=True))
    run("withdraw", data, "--identity", "person003")
    out = tmp_path / "compact"
    assert "75 photos, without 15 withdrawn samples" in run("compact", data, out)
    new = open_dataset(out).split("train")
    assert new.digest != split.digest
    assert len(new.withdrawn) == 0
    keys = column(new, "key")
    assert keys == [key for key in old if key in keys], "the order within shards stays"
    assert contents(out) == [old[key] for key in keys]
    assert new.plan_label.tolist() == [labels[key] for key in keys]
    assert find_faults(out, lambda count: None) == []
    assert "person003" not in new.identities()
    for path in out.rglob("*.parquet"):
        assert "person003" not in pq.read_table(path)["identity"].to_pylist()
    with tarfile.open(out / "train" / "train-000000.tar") as archive:
        assert all(member.mtime == 0 for member in archive)
    # the same again is the same, and without withdrawals a copy is the original
    run("compact", data, tmp_path / "again")
    run("compact", out, tmp_path / "copy")
    for other in ("again", "copy"):
        assert open_dataset(tmp_path / other).info == open_dataset(out).info


def test_an_interrupted_compaction_shows_nothing_and_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("withdraw", data, "--key", "000000020")
    run("compact", data, tmp_path / "expected")
    finish_shard, calls = compacting.finish_shard, []

    def die_at_the_second(context: object, shard: object) -> object:
        calls.append(shard)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return finish_shard(context, shard)  # type: ignore[arg-type]

    monkeypatch.setattr(compacting, "finish_shard", die_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        compacting.compact(data, tmp_path / "out", [20], lambda count: None)
    assert not (tmp_path / "out").exists()
    run("compact", data, tmp_path / "out")
    num_shards = len(open_dataset(data).info.splits["train"].shards)
    assert len(calls) == num_shards + 1, "the first is not made again"
    for path in (tmp_path / "expected").rglob("*"):
        if path.is_file():
            same = tmp_path / "out" / path.relative_to(tmp_path / "expected")
            assert same.read_bytes() == path.read_bytes()


def test_everything_withdrawn(data: Path, tmp_path: Path) -> None:
    names = sorted(set(column(open_dataset(data).split("train"), "identity")))
    withdraw(data, {"identity": names}, "")
    with pytest.raises(UserError, match="all its photos are withdrawn"):
        compacting.compact(data, tmp_path / "out", read_tombstones(data)["sample_id"].to_pylist(), lambda count: None)
    split, batches = load(data)
    assert not any(bool(micro.valid.any()) for batch in batches for micro in batch.micro_batches)
    assert np.array_equal(split.withdrawn, np.arange(90))


def test_verify_and_stats_know_withdrawals(data: Path) -> None:
    run("withdraw", data, "--identity", "person002")
    assert "15 samples withdrawn" in run("verify", data)
    text = run("stats", data)
    assert "│ photos │ 75 │" in text
    assert "│ withdrawn │ 15 │" in text
    assert "│ identities │ 5 │" in text
    tombstones = read_tombstones(data)
    strange = tombstones.set_column(0, "sample_id", [[9000 + row for row in range(15)]])
    pq.write_table(strange, data / "tombstones.parquet")
    assert [fault.what for fault in find_faults(data, lambda count: None)][:1] == ["is not the key of sample 9000"]
    (data / "tombstones.parquet").write_bytes(b"no list")
    (fault,) = find_faults(data, lambda count: None)
    assert fault.shard == "tombstones.parquet"


def test_an_unknown_name_leaves_the_ledger_as_it_is(data: Path) -> None:
    pages = {page: page.read_bytes() for page in (data / "rejects").glob("*.html")}
    with pytest.raises(UserError, match="nobody"):
        withdraw(data, {"identity": ["person000", "nobody"]}, "")
    assert {page: page.read_bytes() for page in (data / "rejects").glob("*.html")} == pages


def test_evaluation_sees_no_withdrawn_photo(data: Path) -> None:
    before = DatasetPhotos(open_dataset(data), ["train"]).numbers()
    run("withdraw", data, "--identity", "person004")
    photos = DatasetPhotos(open_dataset(data), ["train"])
    assert set(before) - set(photos.numbers()) == {"person004"}
    assert photos.load(Photo("person004", before["person004"][0])) == Rejected("withdrawn")
    assert {name: numbers for name, numbers in before.items() if name != "person004"} == photos.numbers()


def test_a_killed_compaction_leaves_nothing_half_made(data: Path, tmp_path: Path) -> None:
    run("withdraw", data, "--key", "000000020")
    run("compact", data, tmp_path / "expected")
    code = f"""
import os, signal
from pathlib import Path
from preprocess import compact
finish, calls = compact.finish_shard, []
def kill_at_the_second(context, shard):
    calls.append(shard)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return finish(context, shard)
compact.finish_shard = kill_at_the_second
compact.compact(Path({str(data)!r}), Path({str(tmp_path / "out")!r}), [20], lambda count: None)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    run("compact", data, tmp_path / "out")
    assert open_dataset(tmp_path / "out").info == open_dataset(tmp_path / "expected").info
    assert find_faults(tmp_path / "out", lambda count: None) == []


def test_withdrawals_at_one_time_do_not_lose_each_other(data: Path) -> None:
    """Who comes while another writes is told so, and what was written stays."""
    code = f"""
import sys
from pathlib import Path
from pipeline.config.errors import UserError
from preprocess.withdraw import withdraw
for key in range(int(sys.argv[1]), 60, 4):
    while True:
        try:
            withdraw(Path({str(data)!r}), {{"key": [f"{{key:09d}}"]}}, "")
            break
        except UserError as error:
            assert "another run" in str(error), error
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, str(first)]) for first in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert read_tombstones(data)["sample_id"].to_pylist() == list(range(60))
