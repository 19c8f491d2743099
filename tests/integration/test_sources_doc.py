"""Every `preprocess` command of docs/sources.md runs, on small sets of the kind that it is about."""

from __future__ import annotations

import pickle
import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.data.manifest import open_dataset
from tests.datasets import encode_jpeg, random_image
from tests.integration.test_preprocess_mistakes import call
from tests.unit.test_containers import write_parquet, write_tars
from tests.unit.test_layouts import write_celeba
from tests.unit.test_recordio import write_set

DOC = (Path(__file__).parents[2] / "docs" / "sources.md").read_text()
ROWS = re.findall(r"^\| .* \| `(preprocess shard [^`]+)` \| (.*) \|$", DOC, re.MULTILINE)
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
RNG = np.random.default_rng(9)


def crops(count: int, side_px: int = 112) -> list[bytes]:
    return [encode_jpeg(random_image(RNG, side_px)) for _ in range(count)]


def write_people(root: Path, faces: list[bytes], *names: str) -> None:
    for name, face in zip(names, faces, strict=False):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(face)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Rendered ones, which a detector finds."""
    from preprocess.synthetic.write import write_photos

    folder = tmp_path_factory.mktemp("synthetic")
    write_photos(folder, 2, 2, 0, 168, 92, 1, progress=lambda done, rendered: None)
    return [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))]


@pytest.fixture
def sources(tmp_path: Path, faces: list[bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page's commands name, in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_people(tmp_path / "photos", faces, "Ann/1.jpg", "Bob/1.jpg")
    write_people(tmp_path / "lfw", faces, "Ann_B/Ann_B_0001.jpg", "Bob/Bob_0001.jpg")
    write_people(tmp_path / "CASIA-WebFace", faces, "0000045/001.jpg", "0000099/001.jpg")
    write_people(tmp_path / "VGGFace2", faces, "train/n000002/0001_01.jpg", "train/n000003/0001_01.jpg")
    write_celeba(tmp_path / "CelebA", inside="Img/")
    whole = cv2.imencode(".jpg", random_image(RNG, 260))[1].tobytes()
    for name in ("000001", "000002"):
        (tmp_path / "CelebA" / "Img" / "img_celeba" / f"{name}.jpg").write_bytes(whole)
    write_set(tmp_path / "faces_emore", [crops(2), crops(1)])
    pairs = (crops(40), [True, False] * 10)
    (tmp_path / "faces_emore" / "lfw.bin").write_bytes(pickle.dumps(pairs, 2))
    write_tars(tmp_path / "tars")
    write_parquet(tmp_path / "parquet")
    write_people(tmp_path / "lists", crops(2), "1.jpg", "2.jpg")
    (tmp_path / "lists" / "crops.csv").write_text("path,identity\n1.jpg,a\n2.jpg,b\n")
    (tmp_path / "lists" / "crops.txt").write_text("1.jpg a\n2.jpg b\n")
    (tmp_path / "lists" / "train.lst").write_text("1\t1.jpg\t0\n1\t2.jpg\t1\n")
    return tmp_path


def test_the_page_has_a_row_for_every_source() -> None:
    assert len(ROWS) == 11
    assert [line.split()[1] for line in COMMANDS] == ["import-bin", "shard", "export", "export"]


@pytest.mark.parametrize(("command", "address"), ROWS, ids=[command for command, _ in ROWS])
def test_rows(
    sources: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    address: str,
) -> None:
    code, _, errors = call(monkeypatch, capsys, *shlex.split(command)[1:], "--workers", "1")
    assert (code, errors) == (0, "")
    info = open_dataset(sources / "data").info
    assert info.reject_counts == {}
    rows = pq.read_table(next((sources / "data" / "manifest").iterdir())).to_pylist()
    assert len(rows) >= 2
    example = re.match(r"`([^`]+)`", address)
    if example:  # addresses have the form that the page shows, with other names
        shape = re.sub(r"[A-Za-z]+", "A", re.sub(r"[0-9]+", "0", example[1]))
        shapes = {re.sub(r"[A-Za-z]+", "A", re.sub(r"[0-9]+", "0", row["source"])) for row in rows}
        assert shape.split("!")[0] in {each.split("!")[0] for each in shapes}
    assert call(monkeypatch, capsys, "verify", "data")[0] == 0
    again = call(monkeypatch, capsys, *shlex.split(command)[1:], "--workers", "1")
    assert (again[0], again[2]) == (0, "")
    assert "data is finished already" in again[1]


def test_blocks(sources: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """From a record file to shards and back, and a verification set."""
    first = shlex.split(next(command for command, _ in ROWS if "faces_emore" in command))[1:]
    first[first.index("data")] = "faces"
    for words in [first, *(shlex.split(line)[1:] for line in COMMANDS)]:
        more = ("--workers", "1") if words[0] == "shard" else ()
        code, _, errors = call(monkeypatch, capsys, *words, *more)
        assert (code, errors) == (0, ""), words
    assert len(list((sources / "out-folders").rglob("*.jpg"))) == 3
    assert open_dataset(sources / "lfw-data").info.splits["train"].num_samples == 40
    shutil.rmtree(sources / "faces_emore")
    shutil.copytree(sources / "out-rec", sources / "faces_emore")
    first[first.index("faces")] = "again"
    assert call(monkeypatch, capsys, *first, "--workers", "1")[0] == 0
    assert open_dataset(sources / "again").info.digest == open_dataset(sources / "faces").info.digest
