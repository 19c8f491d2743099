"""Every command of docs/curation.md runs, in its order, on fewer photos."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from launch.embed import app as embed_app
from pipeline.data.manifest import open_dataset
from pipeline.data.tombstones import read_tombstones
from preprocess.cli import app
from tests.datasets import make_dataset

DOC = (Path(__file__).parents[2] / "docs" / "curation.md").read_text()
FEWER = {"12": "4", "15": "5", "8": "3"}


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```bash\n(.*?)^```$", DOC, re.DOTALL | re.MULTILINE)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


def test_every_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in commands():
        assert words[0] == "preprocess"
        arguments = [FEWER.get(word, word) for word in words[1:]]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, f"{shlex.join(arguments)}\n{result.output}"
    first, second = (open_dataset(Path("build") / name).split("train") for name in ("first", "second"))
    assert second.identities()[: first.num_labels] == first.identities()
    assert len(second.withdrawn) == len(first.withdrawn) == len(read_tombstones(Path("build/first"))) > 0
    assert "person-00003" not in open_dataset("build/compact").split("train").identities()
    assert "person-00003" not in open_dataset("build/third").split("train").identities()
    reasons = pq.read_table("build/report/verdicts.parquet")["reason"].to_pylist()
    assert set(reasons) <= set(re.findall(r"^\| `(\w+)`", DOC, re.MULTILINE)) | {"far_from_person"}
    assert "<svg" in Path("build/stats.html").read_text()


def test_embeddings_of_a_checkpoint_are_what_clean_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_dataset(tmp_path, num_samples=24, num_identities=4, crop_px=24)
    result = CliRunner().invoke(app, ["withdraw", str(data), "--key", "000000003"], catch_exceptions=False)
    assert result.exit_code == 0

    (tmp_path / "some_pixels.py").write_text("def embed(x):\n    return x[:, :, ::6, ::6].float().flatten(1) - 128\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    written = tmp_path / "embeddings.parquet"
    arguments = ["--model", "some_pixels:embed", "--input", "size=24", "--data", str(data), "--output", str(written)]
    result = CliRunner().invoke(embed_app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    table = pq.read_table(written)
    split = open_dataset(data).split("train")
    keys = split.manifest(["key"])["key"].to_pylist()
    assert sorted(table["key"].to_pylist()) == sorted(set(keys) - {"000000003"})
    assert {len(vector) for vector in table["embedding"]} == {48}
    result = CliRunner().invoke(app, ["clean", str(data), str(tmp_path / "report"), "--embeddings", str(written)])
    assert result.exit_code == 0, result.output
    assert "have no embedding" not in result.output
