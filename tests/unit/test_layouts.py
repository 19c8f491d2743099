"""Published data sets by their layout, and lists as plain text."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.errors import UserError
from preprocess.sources import read_source
from tests.unit.test_sources import touch

EYES = [69.0, 109.0, 106.0, 113.0, 77.0, 142.0, 73.0, 152.0, 108.0, 154.0]
TEN = "69 109 106 113 77 142 73 152 108 154"


def write_celeba(root: Path, *, aligned: bool = False, inside: str = "") -> Path:
    folder = "img_align_celeba" if aligned else "img_celeba"
    touch(root, f"{inside}{folder}/000001.jpg", f"{inside}{folder}/000002.jpg", f"{inside}{folder}/000009.jpg")
    notes = root / ("Anno" if inside else "")
    notes.mkdir(exist_ok=True)
    (notes / "identity_CelebA.txt").write_text("000001.jpg 2880\n000002.jpg 12\n")
    name = "list_landmarks_align_celeba.txt" if aligned else "list_landmarks_celeba.txt"
    (notes / name).write_text(f"2\nlefteye_x lefteye_y\n000001.jpg {TEN}\n000002.jpg {TEN}\n")
    (notes / "list_bbox_celeba.txt").write_text(
        "2\nimage_id x_1 y_1 width height\n000001.jpg 95 71 226 313\n000002.jpg 0 0 0 0\n"
    )
    return root


@pytest.mark.parametrize("inside", ["", "Img/"])
def test_celeba(tmp_path: Path, inside: str) -> None:
    _, table, notes = read_source(write_celeba(tmp_path, inside=inside), "celeba")
    assert table["source"].to_pylist() == [f"{inside}img_celeba/000001.jpg", f"{inside}img_celeba/000002.jpg"]
    assert table["identity"].to_pylist() == ["2880", "12"]
    assert table["landmarks"].to_pylist() == [EYES, EYES]
    assert table["bbox"].to_pylist() == [[95, 71, 321, 384], None]  # a box without an area says nothing
    assert notes == ["passed over 1 files: not in identity_CelebA.txt"]


def test_aligned_celeba_has_landmarks_of_its_own(tmp_path: Path) -> None:
    """The boxes belong to the other photos."""
    _, table, _ = read_source(write_celeba(tmp_path, aligned=True), "celeba")
    assert table["landmarks"].to_pylist() == [EYES, EYES]
    assert table["bbox"].null_count == 2


def test_celeba_without_landmarks(tmp_path: Path) -> None:
    (write_celeba(tmp_path) / "list_landmarks_celeba.txt").unlink()
    _, table, notes = read_source(tmp_path, "celeba")
    assert table["landmarks"].null_count == 2
    assert "list_landmarks_celeba.txt is missing: faces will be detected" in notes


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("identity_CelebA.txt", None, "no file identity_CelebA.txt or Anno/identity_CelebA.txt"),
        ("identity_CelebA.txt", "000001.jpg\n", "line 1: 1 fields; expected 2"),
        ("identity_CelebA.txt", "a.jpg 1\na.jpg 2\n", "line 2: the photo 'a.jpg'; expected each photo once"),
        ("identity_CelebA.txt", "../../a.jpg 1\n", "line 1: the photo '../../a.jpg'"),
        ("list_landmarks_celeba.txt", "1\nx\n000001.jpg 1 2\n", "line 3: '1 2'; expected 10 numbers"),
        ("list_landmarks_celeba.txt", f"1\nx\n000001.jpg {TEN[:-3]}abc\n", "line 3: "),
    ],
)
def test_celeba_with_a_wrong_file(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    path = write_celeba(tmp_path) / name
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_source(tmp_path, "celeba")
    assert said in str(caught.value)


def test_vggface2(tmp_path: Path) -> None:
    touch(tmp_path, "train/n000002/0001_01.jpg", "train/n000002/0002_01.jpg", "train/odd/1.jpg", "test/n000001/1_1.jpg")
    (tmp_path / "bb_landmark").mkdir()
    head = "NAME_ID,P1X,P1Y,P2X,P2Y,P3X,P3Y,P4X,P4Y,P5X,P5Y\n"
    row = '"n000002/0001_01",' + TEN.replace(" ", ",") + "\n"
    (tmp_path / "bb_landmark" / "loose_landmark_train.csv").write_text(head + row)
    (tmp_path / "bb_landmark" / "loose_bb_train.csv").write_text("NAME_ID,X,Y,W,H\nn000002/0002_01,1,2,30,40\n")
    _, table, notes = read_source(tmp_path, "vggface2")
    assert table["source"].to_pylist() == ["train/n000002/0001_01.jpg", "train/n000002/0002_01.jpg"]
    assert table["identity"].to_pylist() == ["n000002"] * 2
    assert table["landmarks"].to_pylist() == [EYES, None]
    assert table["bbox"].to_pylist() == [None, [1, 2, 31, 42]]
    assert notes == [
        "passed over 1 files: not named as n000001/0001_01",
        "passed over the folder test: other people, for tests",
    ]


def test_vggface2_without_its_outer_folder(tmp_path: Path) -> None:
    touch(tmp_path, "n000002/0001_01.jpg")
    assert read_source(tmp_path, "vggface2")[1]["identity"].to_pylist() == ["n000002"]


@pytest.mark.parametrize("inside", ["", "lfw/", "lfw-deepfunneled/"])
def test_lfw(tmp_path: Path, inside: str) -> None:
    touch(tmp_path, f"{inside}Ann_B/Ann_B_0001.jpg", f"{inside}Ann_B/Ann_B_0002.jpg", f"{inside}Ann_B/Copy_0001.jpg")
    _, table, notes = read_source(tmp_path, "lfw")
    assert table["source"].to_pylist() == [f"{inside}Ann_B/Ann_B_0001.jpg", f"{inside}Ann_B/Ann_B_0002.jpg"]
    assert table["identity"].to_pylist() == ["Ann_B"] * 2
    assert notes == ["passed over 1 files: not named as NAME/NAME_0001"]


@pytest.mark.parametrize("inside", ["", "CASIA-WebFace/"])
def test_casia(tmp_path: Path, inside: str) -> None:
    touch(tmp_path, f"{inside}0000045/001.jpg", f"{inside}0000099/001.jpg", f"{inside}notes/x.jpg")
    _, table, notes = read_source(tmp_path, "casia")
    assert table["identity"].to_pylist() == ["0000045", "0000099"]
    assert notes == ["passed over 1 files: not named as 0000045/001"]


@pytest.mark.parametrize("layout", ["lfw", "casia", "vggface2"])
def test_a_folder_in_another_layout(tmp_path: Path, layout: str) -> None:
    touch(tmp_path, "Ann/1.jpg")
    with pytest.raises(UserError, match=r"none of 1 photos is named as in this layout, such as Ann/1\.jpg"):
        read_source(tmp_path, layout)


def test_published_sets_are_not_taken_for_people(tmp_path: Path) -> None:
    """CelebA would be one person called Img, VGGFace2 two called train and test."""
    write_celeba(tmp_path / "c", inside="Img/")
    with pytest.raises(UserError, match="say --layout celeba, or --layout folders to take it as it is"):
        read_source(tmp_path / "c")
    touch(tmp_path / "v", "train/n000002/0001_01.jpg")
    with pytest.raises(UserError, match="say --layout vggface2"):
        read_source(tmp_path / "v")
    assert read_source(tmp_path / "v", "folders")[1]["identity"].to_pylist() == ["train"]


@pytest.mark.parametrize(
    ("source", "layout", "said"),
    [
        ("a", "imagenet", "--layout: unknown layout 'imagenet'; expected one of auto, folders, lfw, celeba"),
        ("list.csv", "lfw", "list.csv: --layout lfw and not a folder"),
        ("gone", "auto", "gone: no such file or folder; expected a folder of identity folders, a .csv"),
    ],
)
def test_layouts_that_do_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, layout: str, said: str
) -> None:
    touch(tmp_path, "a/a_0001.jpg", "list.csv")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        read_source(Path(source), layout)
    assert said in str(caught.value)


def test_text_list(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("b/x y.jpg Ann\n\na.jpg\tBob B\n/abs/c.jpg 007\n")
    _, table, _ = read_source(tmp_path / "list.txt")
    assert list(zip(table["source"].to_pylist(), table["identity"].to_pylist(), strict=True)) == [
        ("/abs/c.jpg", "007"),
        ("a.jpg", "Bob B"),
        ("b/x y.jpg", "Ann"),
    ]


def test_list_of_insightface(tmp_path: Path) -> None:
    numbers = "\t".join(["10", "20", "110", "140", *"12345", *"67890"])
    (tmp_path / "train.lst").write_text(f"1\ta/1.jpg\t5\n0\tb/2.jpg\t6\t{numbers}\n0\tc/3.jpg\t7\t1\t2\t3\t4\n")
    _, table, _ = read_source(tmp_path / "train.lst")
    assert table["identity"].to_pylist() == ["5", "6", "7"]
    assert table["bbox"].to_pylist() == [None, [10, 20, 110, 140], [1, 2, 3, 4]]
    assert table["landmarks"].to_pylist() == [None, [1, 6, 2, 7, 3, 8, 4, 9, 5, 0], None]


def test_list_of_im2rec(tmp_path: Path) -> None:
    (tmp_path / "x.lst").write_text("0\t3.000000\tb/1.jpg\n1\t4\ta b.jpg\n")
    _, table, _ = read_source(tmp_path / "x.lst")
    assert table["source"].to_pylist() == ["a b.jpg", "b/1.jpg"]
    assert table["identity"].to_pylist() == ["4", "3"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.txt", "a.jpg Ann\nb.jpg\n", "x.txt, line 2: 'b.jpg'; expected PATH LABEL"),
        ("x.txt", "a.jpg\t\n", "expected PATH LABEL"),
        ("x.txt", b"\xff\xfe\n", "text that is not UTF-8"),
        ("x.txt", "", "no photos"),
        ("x.lst", "a.jpg 1\n", "line 1: 'a.jpg 1'; expected ALIGNED<TAB>PATH<TAB>LABEL or INDEX<TAB>LABEL<TAB>PATH"),
        ("x.lst", "1\ta.jpg\t1\t5\n", "0, 4 or 14 numbers"),
        ("x.lst", "1\ta.jpg\tAnn\n", "expected ALIGNED"),
        ("x.lst", "1\ta.jpg\t1.5\n", "label 1.5; expected a whole number"),
        ("x.lst", "1\ta.jpg\tinf\n", "label inf; expected a whole number"),
        ("x.lst", "1\ta.jpg\tnan\n", "label nan; expected a whole number"),
    ],
)
def test_text_lists_with_mistakes(tmp_path: Path, name: str, text: str | bytes, said: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        read_source(tmp_path / name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
