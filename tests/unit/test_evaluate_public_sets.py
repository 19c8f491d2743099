"""`launch/evaluate.py` on public test sets in their own layouts."""

from __future__ import annotations

import os
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.errors import UserError
from pipeline.data.manifest import Dataset, open_dataset
from pipeline.evaluate.evaluated import open_folder
from pipeline.evaluate.pairs import PairList, read_pairs, write_pairs
from pipeline.evaluate.result import Evaluation
from pipeline.inputs.listed_pairs import digest_files
from tests.datasets import make_dataset
from tests.evaluation_command import Command, load_command, make_run
from tests.html_pages import check_self_contained
from tests.public_sets import Named, cross_lfw_lines, write_cfp, write_ijb, write_photo

CROP_PX = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Ten people, three photos each."""
    root = tmp_path_factory.mktemp("data") / "set"
    return open_dataset(make_dataset(root, num_samples=30, num_identities=10, crop_px=CROP_PX))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), data)


@pytest.fixture
def evaluate(tmp_path: Path, run: Path) -> Command:
    """The command on photos that are aligned."""
    return load_command(model=run, output=tmp_path / "out", device="cpu", detector="none")


def read(out: Path) -> Evaluation:
    check_self_contained((out / "report.html").read_text())
    return Evaluation.model_validate_json((out / "evaluation.json").read_text())


def test_cfp(evaluate: Command, tmp_path: Path) -> None:
    root = write_cfp(tmp_path / "cfp", [("1,1\n3,2\n", "1,2\n5,1\n")] * 10)
    found = read(evaluate(data=root))
    assert (found.data.protocol, found.data.kind, found.data.num_photos, found.data.num_identities) == (
        "cfp-fp",
        "photos",
        5,
        3,
    )
    assert found.data.pairs == str(root / "Protocol" / "Split" / "FP")
    lists = [root / "Protocol" / f"Pair_list_{kind}.txt" for kind in "FP"]
    folds = [
        root / "Protocol" / "Split" / "FP" / f"{n:02d}" / name
        for n in range(1, 11)
        for name in ("same.txt", "diff.txt")
    ]
    assert found.data.pairs_sha256 == digest_files([*lists, *folds])
    assert found.notes == ["The photos were taken as aligned (--detector none) and scaled to 32 px."]
    accuracy = found.verification.accuracy
    assert accuracy is not None
    assert [fold.num_pairs for fold in accuracy.folds] == [4] * 10
    assert accuracy.std == 0.0  # all folds are alike

    (root / "Data" / "Images" / "003" / "frontal" / "01.jpg").unlink()
    found = read(evaluate(data=root, protocol="cfp-fp"))
    assert found.verification.num_pairs_dropped == 10
    assert [(one.photo, one.reason) for one in found.verification.missing] == [
        ("Data/Images/003/frontal/01.jpg", "no such file")
    ]
    for folder in (root / "Protocol" / "Split" / "FF").iterdir():
        (folder / "same.txt").write_text("1,2\n")
        (folder / "diff.txt").write_text("1,3\n")
    out = evaluate(data=root, protocol="cfp-ff")
    assert read(out).data.protocol == "cfp-ff"
    assert "<td>cfp-ff</td>" in (out / "report.html").read_text()


@pytest.mark.skipif("FACEMILL_TEST_DATA" not in os.environ, reason="FACEMILL_TEST_DATA is not set")
def test_real_photos_in_other_layouts_give_the_same_figures_to_the_last_digit(
    evaluate: Command, tmp_path: Path
) -> None:
    """Ten same and ten different pairs of each of LFW's folds, put into the layouts of CALFW and of CFP."""
    lfw = Path(os.environ["FACEMILL_TEST_DATA"]) / "lfw"
    pairs = some_pairs(lfw, 10)
    write_pairs(tmp_path / "pairs.txt", pairs)
    expected = read(evaluate(data=lfw, pairs=tmp_path / "pairs.txt"))
    assert expected.verification.num_pairs == 200
    write_as_calfw(tmp_path / "calfw", lfw, pairs)
    write_as_cfp(tmp_path / "cfp", lfw, pairs)
    for options in ({"data": tmp_path / "calfw"}, {"data": tmp_path / "cfp", "protocol": "cfp-ff"}):
        found = read(evaluate(**options))
        assert found.verification == expected.verification
        for name in ("num_photos", "num_identities"):
            assert getattr(found.data, name) == getattr(expected.data, name)


@pytest.mark.skipif("FACEMILL_TEST_DATA" not in os.environ, reason="FACEMILL_TEST_DATA is not set")
def test_photos_go_through_the_detector_and_those_without_a_face_are_counted(evaluate: Command, tmp_path: Path) -> None:
    lfw = Path(os.environ["FACEMILL_TEST_DATA"]) / "lfw"
    pairs = some_pairs(lfw, 1)
    root = tmp_path / "calfw"
    write_as_calfw(root, lfw, pairs)
    first = root / "images" / f"{pairs.pairs[0].left}.jpg"
    first.unlink()
    write_photo(first, 0, 250)
    found = read(evaluate(data=root, detector="mtcnn"))
    assert (found.data.detector["name"], found.data.protocol) == ("mtcnn", "calfw")
    assert [(one.photo, one.reason) for one in found.verification.missing] == [(first.name, "no_face")]
    assert found.verification.num_pairs == 19
    assert "1 of 20 pairs were dropped because 1 photos are missing (no_face: 1)." in found.notes[0]
    assert "Faces were found by mtcnn; the model was trained on those of none." in found.notes


def some_pairs(lfw: Path, per_kind: int) -> PairList:
    """The first same and different pairs of each fold."""
    chosen, taken = [], Counter[tuple[int, bool]]()
    for pair in read_pairs(lfw / "pairs.txt").pairs:
        taken[pair.fold, pair.same] += 1
        if taken[pair.fold, pair.same] <= per_kind:
            chosen.append(pair)
    return PairList(chosen, 10)


def write_as_calfw(root: Path, lfw: Path, pairs: PairList) -> None:
    folds: dict[int, list[tuple[Named, Named]]] = defaultdict(list)
    for pair in pairs.pairs:
        folds[pair.fold].append((pair.left[:2], pair.right[:2]))
    (root / "images").mkdir(parents=True)
    for photo in pairs.photos():
        os.symlink(lfw / photo.identity / f"{photo}.jpg", root / "images" / f"{photo}.jpg")
    (root / "pairs_CALFW.txt").write_text(cross_lfw_lines([folds[n] for n in range(10)], fold_labels=True))


def write_as_cfp(root: Path, lfw: Path, pairs: PairList) -> None:
    protocol = root / "Protocol"
    protocol.mkdir(parents=True)
    numbers = {photo: number for number, photo in enumerate(pairs.photos(), start=1)}
    lines = []
    for photo, number in numbers.items():
        link = root / "Data" / "Images" / photo.identity / "frontal" / f"{photo.number:02d}.jpg"
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(lfw / photo.identity / f"{photo}.jpg", link)
        lines.append(f"{number} ../{link.relative_to(root)}\n")
    (protocol / "Pair_list_F.txt").write_text("".join(lines))
    for fold in range(10):
        folder = protocol / "Split" / "FF" / f"{fold + 1:02d}"
        folder.mkdir(parents=True)
        for name, same in (("same.txt", True), ("diff.txt", False)):
            chosen = [pair for pair in pairs.pairs if pair.fold == fold and pair.same is same]
            (folder / name).write_text("".join(f"{numbers[pair.left]},{numbers[pair.right]}\n" for pair in chosen))


def test_rfw_has_figures_of_each_race(evaluate: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "rfw"
    for place, race in enumerate(("African", "Indian")):
        lines = []
        for n in range(10):
            one, other = f"m.{place}{n}", f"m.{place}{(n + 1) % 10}"
            lines.append(f"{one}\t1\t2\n{one}\t1\t{other}\t2\n")
            for number in (1, 2):
                write_photo(root / "data" / race / one / f"{one}_{number:04d}.jpg", 100 * place + 10 * n + number)
        path = root / "txts" / race / f"{race}_pairs.txt"
        path.parent.mkdir(parents=True)
        path.write_text("".join(lines))
    out = evaluate(data=root)
    found = read(out)
    assert (found.data.protocol, found.verification.num_pairs) == ("rfw", 40)
    assert found.verification.by_group is not None
    races = found.verification.by_group["race"]
    assert [(one.group, one.num_same, one.num_different) for one in races] == [("African", 10, 10), ("Indian", 10, 10)]
    assert "Within each race" in (out / "report.html").read_text()
    assert "Within each race" in capsys.readouterr().out

    # A race's own figures are those of its list alone.
    alone = tmp_path / "alone"
    shutil.copytree(root / "data" / "African", alone)
    text = (root / "txts" / "African" / "African_pairs.txt").read_text()
    (tmp_path / "list.txt").write_text("10\t1\n" + text)
    plain = read(evaluate(data=alone, pairs=tmp_path / "list.txt")).verification
    assert plain.accuracy is not None
    assert (races[0].accuracy, races[0].accuracy_std) == (plain.accuracy.mean, plain.accuracy.std)
    assert (races[0].auc, races[0].eer) == pytest.approx((plain.auc, plain.eer))
    assert plain.by_group is None


def test_pairs_by_path_with_groups(evaluate: Command, data: Dataset, tmp_path: Path) -> None:
    lines = ["left_path,right_path,same,left_site,right_site"]
    for n in range(20):
        write_photo(tmp_path / "photos" / f"é {n}.jpg", n)
        lines.append(f"é {n}.jpg,é {(n + 1) % 20}.jpg,{n % 2},{'x' if n < 10 else 'y'},{'x' if n < 9 else 'y'}")
    lines.append("gone.jpg,é 0.jpg,1,x,x")
    lines.append("é 3.jpg,é 7.jpg,1,,x")
    path = tmp_path / "pairs.csv"
    path.write_text("\r\n".join(lines), encoding="utf-8")
    found = read(evaluate(data=tmp_path / "photos", pairs=path))
    assert (found.data.num_photos, found.data.num_identities, found.data.protocol) == (20, None, None)
    assert found.notes[-2:] == [
        "pairs.csv names no folds: its pairs were dealt into ten, those of each kind in turn.",
        "Without a group in column 'site' there are 1 of 22 pairs: they count among all pairs only.",
    ]
    assert (found.verification.num_pairs, found.verification.num_pairs_dropped) == (21, 1)
    assert found.verification.intervals is not None
    assert found.verification.intervals.unit == "pair"
    assert found.verification.by_group is not None
    # Nine pairs of x alone, ten of y alone, one of both, one of x and nobody knows what.
    assert [(one.group, one.num_pairs) for one in found.verification.by_group["site"]] == [("x", 9), ("y", 10)]
    with pytest.raises(UserError, match="names photos by path; expected people and numbers"):
        evaluate(data=data.root, pairs=path, detector=None)


def test_ijb(evaluate: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    faces = [(n // 3, n % 3 // 2, 0.5 + n / 100) for n in range(36)]
    pairs = [(a, b, int(rng.random() < 0.3)) for a in range(12) for b in range(a)]
    root = write_ijb(tmp_path / "ijbc", faces, pairs)
    (root / "loose_crop" / "5.jpg").unlink()
    (root / "loose_crop" / "6.jpg").write_bytes(b"none")
    earlier = tmp_path / "out" / "scores.parquet"
    earlier.parent.mkdir()
    earlier.touch()
    out = evaluate(data=root, detector=None)
    assert out == earlier.parent
    assert not earlier.exists()
    with pytest.raises(UserError, match="pairs of templates; expected pairs of photos"):
        open_folder(out)
    found = read(out)
    figures = found.verification
    assert (found.data.protocol, found.data.kind, found.data.num_photos) == ("ijb-c", "templates", 34)
    assert (figures.unit, figures.accuracy, figures.intervals, figures.num_pairs) == ("template", None, None, 66)
    assert found.data.detector == {"name": "given landmarks"}
    assert found.notes == ["2 photos are missing from their templates (no such file: 1, not_an_image: 1)."]
    assert figures.num_different == sum(1 - same for *_, same in pairs)
    assert figures.tar_at_far["1e-1"].tar is not None
    page = (out / "report.html").read_text()
    assert "TAR at FAR 1e-1" in page
    assert "pairs of templates of 34 photos" in page
    assert "Part by part" not in page
    assert "66 pairs of templates" in capsys.readouterr().out
    other = read(evaluate("--template-weights", "N0D0", data=root, detector=None)).verification
    assert other.auc != figures.auc
    for option, value in (("pairs", tmp_path / "x"), ("split", "val"), ("detector", "none")):
        with pytest.raises(UserError, match=f"--{option}: given with ijb-c, which has its pairs, and landmarks"):
            evaluate(data=root, protocol="ijb-c", **{"detector": None, option: value})


def test_distractors(evaluate: Command, data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(14):
        write_photo(tmp_path / "flickr" / f"{n % 3}" / f"{n}.jpg", 1000 + n)
    write_photo(tmp_path / "flickr" / "person003" / "x.jpg", 1)
    (tmp_path / "flickr" / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "flickr" / "0" / "bad.jpg").write_bytes(b"none")
    out = evaluate("--identify", data=data.root, split="train", distractors=tmp_path / "flickr")
    among = read(out).identification.distractors
    assert (among.num_distractors, among.num_missing, among.num_own) == (14, 1, 1)
    assert list(among.rank1) == ["10", "14"]
    assert among.rank1["14"] <= among.rank1["10"] <= 1.0
    assert "Finding a person among strangers" in (out / "report.html").read_text()
    assert "rank 1 among 14 distractors" in capsys.readouterr().out

    strangers = make_dataset(
        tmp_path / "more", num_samples=12, num_identities=2, crop_px=CROP_PX, names=["person001", "nobody"], seed=9
    )
    found = read(evaluate("--identify", data=data.root, split="train", distractors=strangers, detector=None))
    assert (found.identification.distractors.num_distractors, found.identification.distractors.num_own) == (6, 6)
    small = make_dataset(tmp_path / "small", num_samples=2, num_identities=1, crop_px=48)
    for distractors, message in (
        (small, "crops of 48 px; expected 32 px"),
        (data.root, "30 photos, of strangers none; expected photos of people who are not in --data"),
        (tmp_path / "none", "none: no such folder; expected a data set, or a folder"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate("--identify", data=data.root, split="train", distractors=distractors, detector=None)
    with pytest.raises(UserError, match="--distractors: given without --identify"):
        evaluate(data=data.root, split="train", distractors=small)


def test_options_that_would_do_nothing_are_refused(evaluate: Command, tmp_path: Path) -> None:
    root = write_cfp(tmp_path / "cfp", [("1,2\n", "1,3\n")] * 10)
    with pytest.raises(UserError, match="--split: given with cfp-ff, which has its pairs; leave --split out"):
        evaluate(data=root, protocol="cfp-ff", split="val")
    with pytest.raises(UserError, match="--weights: given with --detector none"):
        evaluate(data=root, protocol="cfp-ff", weights=tmp_path / "w.npz", detector="none")


def test_a_set_that_is_not_there_is_looked_for_by_name(evaluate: Command, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(UserError, match=r"photos: not the files of calfw; expected pairs_CALFW.txt"):
        evaluate(data=tmp_path / "photos", protocol="calfw")
    with pytest.raises(UserError, match="not a data set, and no --pairs; expected a pair list, or a public test set"):
        evaluate(data=tmp_path / "photos")
    with pytest.raises(UserError, match="--protocol: unknown test set 'x'"):
        evaluate(data=tmp_path / "photos", protocol="x", pairs=tmp_path / "y")
    (tmp_path / "y").write_text("A_1.jpg 1\n")
    with pytest.raises(UserError, match="y: 1 lines; expected two a pair"):
        evaluate(data=tmp_path / "photos", protocol="calfw", pairs=tmp_path / "y")
