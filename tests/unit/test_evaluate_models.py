"""The command with models that are no runs: ONNX files and files of embeddings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from onnx import helper

from launch.embed import app as embed_app
from pipeline.config.errors import UserError
from pipeline.data.manifest import Dataset, open_dataset
from tests.datasets import make_dataset
from tests.evaluation_command import Command, load_command, make_run
from tests.html_pages import check_self_contained
from tests.onnx_graphs import write_model

CROP_PX = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Ten people, six photos each: 60 crops of which every two of a person are alike."""
    root = tmp_path_factory.mktemp("data") / "set"
    return open_dataset(make_dataset(root, num_samples=60, num_identities=10, crop_px=CROP_PX))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Path:
    """A run directory with an untrained checkpoint and a metrics file."""
    return make_run(tmp_path_factory.mktemp("run"), data)


@pytest.fixture
def evaluate(tmp_path: Path, run: Path, data: Dataset) -> Command:
    """Call `launch/evaluate.py` with options over defaults; gives the output directory."""
    return load_command(model=run, data=data.root, output=tmp_path / "out", device="cpu")


def figures_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "evaluation.json").read_text())["verification"]


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_a_file_of_embeddings_gives_the_figures_of_the_run(
    evaluate: Command, run: Path, data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    expected = figures_of(evaluate("--no-flip", split="train"))
    path = tmp_path / "e.parquet"
    embed_app(
        ["--model", str(run), "--data", str(data.root), "--output", str(path), "--device", "cpu"], standalone_mode=False
    )
    table = pq.read_table(path)
    if suffix == ".npz":
        path = tmp_path / "e.npz"
        np.savez(path, key=table["key"].to_pylist(), embedding=np.array(table["embedding"].to_pylist(), np.float32))
    capsys.readouterr()
    out = evaluate(model=path, split="train")
    assert figures_of(out) == expected
    content = json.loads((out / "evaluation.json").read_text())
    assert content["notes"] == [
        f"No model ran: the embeddings are those of e{suffix}, mirror images added or not as they are there."
    ]
    model = content["model"]
    assert (model["kind"], model["checkpoint"], model["embedding_dim"]) == ("embeddings", str(path), 16)
    assert (model["sha256"], content["speed"]) == (hashlib.sha256(path.read_bytes()).hexdigest(), None)
    assert [name for name, value in model.items() if value is None] == [
        "input",
        "output",
        "step",
        "num_samples",
        "crop_px",
        "num_parameters",
        "multiply_adds",
        "config",
        "dataset",
        "weights",
    ]
    page = (out / "report.html").read_text()
    assert sum(tag == "img" for tag, _ in check_self_contained(page).tags) == 48
    assert "Training loss" not in page
    assert f"e{suffix}" in capsys.readouterr().out
    with pytest.raises(UserError, match="expected a run"):
        evaluate("--model-weights", "raw", model=path, split="train")
    for words in (["--robustness"], ["--identify", "--distractors", str(tmp_path)]):
        with pytest.raises(
            UserError, match=r"--(robustness|distractors): given with .*; expected a model that embeds other photos"
        ):
            evaluate(*words, model=path, split="train")


def test_photos_without_an_embedding_are_counted(evaluate: Command, data: Dataset, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(
        "2\t2\n"
        + "".join(
            f"person00{n}\t1\t2\nperson00{n}\t1\t7\nperson00{n}\t1\tperson00{n + 1}\t1\n"
            f"person00{n}\t2\tperson00{n + 1}\t2\n"
            for n in (0, 2)
        )
    )
    names = [f"person00{n}/person00{n}_{k:04d}.jpg" for n in range(4) for k in (1, 2, 7)]
    vectors = np.random.default_rng(0).standard_normal((12, 8))
    np.savez(tmp_path / "e.npz", key=names[:-3] + names[-2:], embedding=np.delete(vectors, 9, axis=0))
    out = evaluate(
        model=tmp_path / "e.npz", data=data.folder.parent / "photos", pairs=tmp_path / "list.txt", detector="none"
    )
    figures = figures_of(out)
    assert figures["missing"] == [{"photo": "person003_0001", "reason": "no embedding in the file"}]
    assert (figures["num_pairs"], figures["num_pairs_dropped"]) == (7, 1)
    # the seventh photo of the first person is a text file, and others have none: a grey square stands for them
    page = (out / "report.html").read_text()
    assert page.count('alt="person000_0007"') == page.count('alt="person002_0007"') == 1


def test_an_onnx_file_is_scored_by_one_command(
    evaluate: Command, data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another layout and size: the centre of crops as seen by a network of 32 x 24 px."""
    path = write_model(tmp_path / "m.onnx", ("N", 32, 24, 3), num_values=32 * 24 * 3)
    out = evaluate("--input", "mean=0 std=255", model=path, split="train")
    content = json.loads((out / "evaluation.json").read_text())
    assert content["notes"] == ["m.onnx does not say what it takes; assumed: RGB. --input says otherwise."]
    spec = content["model"]["input"]
    assert (spec["height_px"], spec["width_px"], spec["layout"], spec["std"]) == (32, 24, "NHWC", [255.0] * 3)
    assert content["verification"]["accuracy"]["mean"] > 0.6
    assert content["speed"]["num_photos"] == 60
    printed = capsys.readouterr().out
    assert "m.onnx,13,824parameters" in "".join(printed.split())  # a long path is broken anywhere
    page = (out / "report.html").read_text()
    assert "24×32 px" in page
    assert "RGB, float32 NHWC, less 0.0, divided by 255.0" in page
    check_self_contained(page)


def test_foreign_models_that_do_not_fit_are_named(evaluate: Command, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other.onnx", ("N", 3, 20, 20), num_values=1200)
    with pytest.raises(UserError, match="crops of 32 px; expected 20 px, as the model takes; preprocess shard"):
        evaluate(model=other, split="train")
    nan = write_model(
        tmp_path / "nan.onnx",
        ("N", 3, 32, 32),
        num_values=3072,
        nodes=[helper.make_node("Log", ["input"], ["log"])],
        begins_at="log",
    )
    with pytest.raises(UserError, match=r"nan\.onnx: \d+ of \d+ embeddings are not finite or zero, first that of"):
        evaluate("--input", "mean=300 std=1", model=nan, split="train")
