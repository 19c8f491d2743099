"""Where the runs of a search leave checkpoints: in a folder that all see, or copied to a remote store."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from pipeline.config.location import RemotePath
from pipeline.tuning.store import RunStore


def checkpoint(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "weights").write_text(f"of step {step}")
    (folder / "checkpoint.json").write_text("{}")
    (folder.parent / "latest").write_text(f"{folder.name}\n")
    for name in ("metrics.jsonl", "config.yaml"):
        (run / name).write_text(f"at step {step}")
    return folder


def latest(run: Path) -> str:
    return (run / "checkpoints/latest").read_text().strip()


def test_in_a_shared_folder_nothing_is_copied(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "run")
    made = checkpoint(store.folder, 3)
    assert store.keep(made) == str(made)
    other = RunStore(tmp_path / "other")
    other.begin_from(str(made))
    assert latest(other.folder) == made.name
    assert (other.folder / "checkpoints" / made.name / "weights").read_text() == "of step 3"
    # the other run has gone on and dropped what it was to give
    third = RunStore(tmp_path / "third")
    newer = checkpoint(store.folder, 7)
    made.rename(tmp_path / "dropped")
    third.begin_from(str(made))
    assert latest(third.folder) == newer.name
    (tmp_path / "dropped").rename(made)
    # a run that has gone on since is not set back
    checkpoint(other.folder, 5)
    other.begin_from(str(made))
    assert latest(other.folder) == "step-00000005"


def test_a_remote_store_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    memory = fsspec.filesystem("memory")
    store = RunStore(RemotePath("memory://bucket/search/runs/one"))
    assert tmp_path in store.folder.parents
    kept = [store.keep(checkpoint(store.folder, step)) for step in range(1, 7)]
    assert kept[-1] == "memory://bucket/search/runs/one/checkpoints/step-00000006"
    left = sorted(Path(name).name for name in memory.ls("/bucket/search/runs/one/checkpoints", detail=False))
    assert left == [f"step-{step:08d}" for step in range(3, 7)]
    assert memory.cat_file("/bucket/search/runs/one/metrics.jsonl") == b"at step 6"
    assert store.keep(store.folder / "checkpoints/step-00000006") == kept[-1], "once"

    other = RunStore(RemotePath("memory://bucket/search/runs/other"))
    other.begin_from(kept[0])  # dropped by now
    assert latest(other.folder) == "step-00000006"
    assert (other.folder / "checkpoints/step-00000006/weights").read_text() == "of step 6"


def test_a_copy_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    made = checkpoint(tmp_path / "run", 3)
    other = RunStore(tmp_path / "other")
    partial = other.folder / "checkpoints" / (made.name + ".tmp")
    partial.mkdir(parents=True)
    (partial / "half").write_text("")
    other.begin_from(str(made))
    assert sorted(path.name for path in (other.folder / "checkpoints" / made.name).iterdir()) == [
        "checkpoint.json",
        "weights",
    ]
