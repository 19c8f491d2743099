"""The page of statistics: right figures, all pictures inside, every text escaped, nothing withdrawn shown."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from preprocess.cli import app
from preprocess.stats_page import histogram
from preprocess.withdraw import withdraw
from tests.datasets import make_dataset


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def data(tmp_path: Path) -> Path:
    names = ["<i>ann</i>", "bob & co", "cat"]
    return make_dataset(tmp_path, num_samples=30, num_identities=3, crop_px=32, samples_per_shard=16, names=names)


def test_page(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "pages" / "stats.html"
    assert f"page: {path}" in run("stats", data, "--html", path)
    page = path.read_text()
    assert "&lt;i&gt;ann&lt;/i&gt;" in page
    assert "<i>ann" not in page
    assert "bob &amp; co" in page
    assert not re.search(r'(src|href)="(?!data:)', page), "the page needs no other file"
    assert "not_an_image" in page
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 30 + 24, "all as samples, and the least sharp"
    assert all(base64.b64decode(picture).startswith(b"\xff\xd8") for picture in pictures)
    for title in ("photos an identity", "sharpness", "brightness of crops, mean grey", "crop, bytes"):
        assert f"<b>{title}</b>" in page
    assert page.count("<svg") == page.count("</svg>") >= 5
    again = tmp_path / "again.html"
    run("stats", data, "--html", again)
    assert again.read_bytes() == path.read_bytes()


def test_withdrawn_photos_are_not_shown(data: Path, tmp_path: Path) -> None:
    withdraw(data, {"identity": ["cat"]}, "")
    run("stats", data, "--html", tmp_path / "stats.html")
    page = (tmp_path / "stats.html").read_text()
    assert "cat/" not in page
    assert page.count("<img") == 20 + 20
    assert re.search(r"withdrawn</td><td class=\"number\">10<", page)


def test_histogram_counts_everything_once() -> None:
    rng = np.random.default_rng(0)
    values = np.append(rng.normal(size=5000), 1e9)
    counts, edges, is_whole = histogram(values)
    assert counts.sum() == 5001
    assert edges[-1] < 10, "one outlier does not squeeze the rest into a bar"
    assert not is_whole
    counts, edges, is_whole = histogram(np.array([1.0, 2, 2, 5]))
    assert is_whole
    assert dict(zip((edges[:-1] + 0.5).tolist(), counts.tolist(), strict=True)) == {1: 1, 2: 2, 3: 0, 4: 0, 5: 1}
    assert histogram(np.full(7, 3.25))[0].sum() == 7
