"""Where the runs of a search leave checkpoints: in a folder that all see, or copied to a remote store."""

from __future__ import annotations

import shutil
from pathlib import Path

import fsspec
import pytest

from pipeline.config.errors import UserError
from pipeline.config.location import RemotePath
from pipeline.tuning.store import RunStore

FILES = ("metrics.jsonl", "config.yaml")


def checkpoint(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "weights").write_text(f"of step {step}")
    (folder / "checkpoint.json").write_text("{}")
    (folder.parent / "latest").write_text(f"{folder.name}\n")
    for name in FILES:
        (run / name).write_text(f"at step {step}")
    return folder


def latest(run: Path) -> str:
    return (run / "checkpoints/latest").read_text().strip()


def test_in_a_shared_folder_nothing_is_copied(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    made = checkpoint(store.folder, 3)
    assert store.name_of(made) == str(made)
    store.keep_newest(FILES)
    store.take_up(None)
    other = RunStore(tmp_path / "other")
    other.take_up(str(made))
    assert latest(other.folder) == made.name
    assert (other.folder / "checkpoints" / made.name / "weights").read_text() == "of step 3"
    # the other run has gone on and dropped what it was to give
    third = RunStore(tmp_path / "third")
    newer = checkpoint(store.folder, 7)
    made.rename(tmp_path / "dropped")
    third.take_up(str(made))
    assert latest(third.folder) == newer.name
    # a run that has saved something itself stays with it, whatever the other has come to
    own = checkpoint(other.folder, 5)
    other.take_up(str(newer))
    assert latest(other.folder) == own.name
    assert not (other.folder / "checkpoints" / newer.name).exists()


def test_a_donor_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no longer there"):
        RunStore(tmp_path / "run").take_up(str(tmp_path / "donor/checkpoints/step-00000003"))


def test_a_remote_store_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    memory = fsspec.filesystem("memory")
    store = RunStore(RemotePath("memory://bucket/search/runs/one"))
    assert tmp_path in store.folder.parents
    for step in range(1, 7):
        made = checkpoint(store.folder, step)
        store.keep_newest(FILES)
    assert store.name_of(made) == "memory://bucket/search/runs/one/checkpoints/step-00000006"
    left = sorted(Path(name).name for name in memory.ls("/bucket/search/runs/one/checkpoints", detail=False))
    assert left == [f"step-{step:08d}" for step in range(3, 7)]
    assert memory.cat_file("/bucket/search/runs/one/metrics.jsonl") == b"at step 6"

    other = RunStore(RemotePath("memory://bucket/search/runs/other"))
    other.take_up("memory://bucket/search/runs/one/checkpoints/step-00000001")  # dropped by now
    assert latest(other.folder) == "step-00000006"
    assert (other.folder / "checkpoints/step-00000006/weights").read_text() == "of step 6"

    # the node is gone, another goes on with what was kept, and not with what was cut off on its way there
    memory.pipe_file("/bucket/search/runs/one/checkpoints/step-00000009/weights", b"half")
    shutil.rmtree(store.folder)
    store.take_up("memory://bucket/search/runs/other/checkpoints/step-00000001")
    assert latest(store.folder) == "step-00000006"
    assert (store.folder / "metrics.jsonl").read_text() == "at step 6"


def test_a_copy_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "run", 3)
    other = RunStore(tmp_path / "other")
    partial = other.folder / "checkpoints" / (made.name + ".tmp")
    partial.mkdir(parents=True)
    (partial / "half").write_text("")
    other.take_up(str(made))
    names = sorted(path.name for path in (other.folder / "checkpoints" / made.name).iterdir())
    assert names == ["checkpoint.json", "weights"]
