"""The command with what it measures on request: JSON, report and console hold the same sections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.errors import UserError
from pipeline.data.manifest import Dataset, open_dataset
from pipeline.evaluate.result import Evaluation
from tests.datasets import make_dataset
from tests.evaluation_command import Command, load_command, make_run
from tests.html_pages import check_self_contained

CROP_PX = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Ten people, six photos each."""
    root = tmp_path_factory.mktemp("data") / "set"
    return open_dataset(make_dataset(root, num_samples=60, num_identities=10, crop_px=CROP_PX))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Path:
    """A run directory with an untrained checkpoint of a model with dropout."""
    root = make_run(tmp_path_factory.mktemp("run"), data, dropout=0.4)
    (root / "metrics.jsonl").unlink()  # charts are counted here, and curves would be some
    return root


@pytest.fixture
def evaluate(tmp_path: Path, run: Path, data: Dataset) -> Command:
    """Call `launch/evaluate.py` with options over defaults; gives the output directory."""
    return load_command(model=run, data=data.root, output=tmp_path / "out", device="cpu")


def read(out: Path) -> dict[str, Any]:
    content = json.loads((out / "evaluation.json").read_text())
    Evaluation.model_validate(content)
    assert isinstance(content, dict)
    return content


def test_nothing_is_measured_that_was_not_asked_for(evaluate: Command) -> None:
    out = evaluate("--split", "train")
    content = read(out)
    assert all(content[name] is None for name in ("robustness", "quality", "people_map", "clusters", "fairness"))
    page = (out / "report.html").read_text()
    assert "When photos get worse" not in page
    assert "A map of" not in page


def test_all_sections_at_once(evaluate: Command, capsys: pytest.CaptureFixture[str]) -> None:
    out = evaluate("--split", "train", "--robustness", "--quality", "--map", "4", "--cluster")
    content = read(out)
    robustness = content["robustness"]
    assert robustness["clean"]["accuracy"] == content["verification"]["accuracy"]["mean"]
    assert robustness["clean_threshold"] == content["verification"]["best_threshold"]["squared_distance"]
    assert [len(curve["points"]) for curve in robustness["curves"]] == [5, 4, 5, 5, 6]
    quality = content["quality"]
    assert (quality["num_same"], set(quality["measures"])) == (150, {"norm", "ser_fiq"})
    assert quality["least_area"] <= quality["measures"]["norm"]["area"]
    assert content["people_map"]["people"] == ["person000", "person001", "person002", "person003"]
    assert len(content["people_map"]["photo"]) == 24
    assert content["clusters"]["num_photos"] == content["clusters"]["num_photos_to_choose"] == 30
    assert content["fairness"] is None
    page = (out / "report.html").read_text()
    tags = check_self_contained(page)
    # ROC, histogram, five kinds of degradation, rejects, two maps, and four people in the legend.
    assert sum(tag == "svg" for tag, _ in tags.tags) == 2 + 5 + 1 + 2 + 4
    for text in ("When photos get worse", "Does it know a bad photo?", "A map of 4 people", "Sorting photos"):
        assert text in page
    assert page.count('class="dot"') == 2 * 24 + 4
    assert "<title>person003_0006</title>" in page
    printed = capsys.readouterr().out
    for text in (
        "Robustness, ",
        "Quality, 150 same pairs",
        "Map of 4 people, 24 photos",
        "Clusters of 30 photos of 5 people",
    ):
        assert text in printed
    assert "too few pairs" in printed


def test_groups_of_a_csv_file(evaluate: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = "left_identity,left_number,right_identity,right_number,left_hair,right_hair"
    hair = ["<b>red</b>", "dark"]
    lines = [f"person{n:03d},1,person{n:03d},{k},{hair[n % 2]},{hair[n % 2]}" for n in range(10) for k in (2, 3)]
    lines += [f"person{n:03d},4,person{m:03d},5,{hair[n % 2]},{hair[m % 2]}" for n in range(10) for m in range(n)]
    lines.append("nobody,1,nobody,2,grey,grey")
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join([header, *lines]))
    out = evaluate("--pairs", str(path))
    content = read(out)
    # No pair is left out to have as many of each kind.
    assert (content["verification"]["num_same"], content["verification"]["num_different"]) == (20, 45)
    assert len(content["verification"]["accuracy"]["folds"]) == 10
    assert content["verification"]["num_pairs_dropped"] == 1
    assert "pairs.csv names no folds: its pairs were dealt into ten, those of each kind in turn." in content["notes"]
    fairness = content["fairness"]
    (grouping,) = fairness["groupings"]
    trials = {
        tuple(one["groups"]): [one[rate] and one[rate]["trials"] for rate in ("fmr", "fnmr")]
        for one in grouping["rates"]
    }
    assert trials == {
        ("<b>red</b>", "<b>red</b>"): [10, 10],
        ("<b>red</b>", "dark"): [25, None],
        ("dark", "dark"): [10, 10],
    }
    errors = sum(one["fmr"]["errors"] for one in grouping["rates"])
    assert fairness["threshold"] == content["verification"]["best_threshold"]["squared_distance"]
    at_best = content["verification"]["best_threshold"]["accuracy"]
    missed = sum(one["fnmr"]["errors"] for one in grouping["rates"] if one["fnmr"])
    assert errors + missed == pytest.approx((1 - at_best) * 65)
    page = (out / "report.html").read_text()
    check_self_contained(page)
    assert "Group by group" in page
    assert "&lt;b&gt;red&lt;/b&gt; and dark" in page
    assert "Groups" in capsys.readouterr().out

    (out / "evaluation.json").rename(tmp_path / "first.json")
    again = read(evaluate("--pairs", str(path), "--threshold-from", str(tmp_path / "first.json")))["fairness"]
    assert (again["threshold"], again["groupings"]) == (fairness["threshold"], fairness["groupings"])
    assert "the best threshold of another set" in again["protocol"]


def test_mistakes_are_one_line_before_any_work(
    evaluate: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipeline.evaluate.embed.extract_embeddings", lambda *_, **__: pytest.fail("embedding had begun")
    )
    pairs = tmp_path / "list.txt"
    pairs.write_text("2\t1\n" + "\n".join(f"person00{n}\t1\t2\nperson00{n}\t1\tperson009\t1" for n in (1, 2)))
    bad = tmp_path / "bad.csv"
    bad.write_text("a,b\n1,2\n")
    for words, message in (
        (["--cluster", "--pairs", str(pairs)], "--cluster: given with --pairs; expected a data set"),
        (["--map", "2", "--pairs", str(pairs)], "4 photos of 2 people who have two or more: no map"),
        (["--pairs", str(bad)], "bad.csv: column 'left_identity' stands 0 times"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            evaluate(*words)
        assert "\n" not in str(caught.value)


def test_photos_of_a_pair_list_are_mapped(evaluate: Command, tmp_path: Path) -> None:
    pairs = tmp_path / "list.txt"
    people = [f"person00{n}" for n in range(3)]
    lines = [f"{name}\t1\t2\n{name}\t1\tperson009\t1" for name in people]
    pairs.write_text("\n".join(["3\t1", *lines]))
    found = read(evaluate("--map", "9", "--pairs", str(pairs)))["people_map"]
    assert (found["people"], found["photo"]) == (people, [f"{name}_000{n}" for name in people for n in (1, 2)])
