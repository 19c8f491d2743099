"""Public test sets read in their own files: pairs, folds and groups against ones written down by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.config.errors import UserError
from pipeline.evaluate.grouped_pairs import read_grouped_pairs
from pipeline.evaluate.pairs import Pair, Photo
from pipeline.evaluate.photos import Rejected
from pipeline.inputs.agedb import LISTS, read_agedb
from pipeline.inputs.cfp import read_cfp
from pipeline.inputs.cross_lfw import read_cross_lfw
from pipeline.inputs.ijb import IjbPhotos, read_ijb
from pipeline.inputs.listed_pairs import digest_files
from pipeline.inputs.public_sets import find_protocol, read_listed
from pipeline.inputs.rfw import read_rfw
from preprocess.photo import read_photo
from tests.public_sets import cross_lfw_lines, write_cfp, write_ijb, write_photo


def shown(pairs: list[Pair]) -> list[tuple[str, str, int, bool]]:
    return [(str(pair.left), str(pair.right), pair.fold, pair.same) for pair in pairs]


def test_cfp_pairs_are_those_of_the_ten_folds(tmp_path: Path) -> None:
    # Frontal photos 1 and 2 are person 001's, 3 and 4 person 002's; profile 2 is person 002's.
    folds = [("3,2\r\n", "1,2\r\n\r\n"), *[("1,1\n", "1,2\n")] * 9]
    root = write_cfp(tmp_path / "cfp", folds)
    listed = read_cfp(root, "FP")
    images = "Data/Images"
    assert listed.pairs.num_folds == 10
    assert shown(listed.pairs.pairs)[:4] == [
        (f"{images}/002/frontal/01.jpg", f"{images}/002/profile/01.jpg", 0, True),
        (f"{images}/001/frontal/01.jpg", f"{images}/002/profile/01.jpg", 0, False),
        (f"{images}/001/frontal/01.jpg", f"{images}/001/profile/01.jpg", 1, True),
        (f"{images}/001/frontal/01.jpg", f"{images}/002/profile/01.jpg", 1, False),
    ]
    assert [pair.fold for pair in listed.pairs.pairs] == np.repeat(np.arange(10), 2).tolist()
    assert listed.pairs.pairs[0].left.identity == "002"
    assert len(listed.lists) == 22
    assert listed.where == root / "Protocol" / "Split" / "FP"
    assert all((root / photo.path).is_file() for photo in listed.pairs.photos())
    # Of FF the numbers mean frontal photos on both sides: 3,2 is then not of one person.
    with pytest.raises(UserError, match=r"same.txt:1: Data/Images/002/frontal/01.jpg and .* in a list of same pairs"):
        read_cfp(root, "FF")
    for split in (root / "Protocol" / "Split" / "FF").iterdir():
        (split / "same.txt").write_text("1,2\n")
        (split / "diff.txt").write_text("1,3\n")
    assert shown(read_cfp(root, "FF").pairs.pairs)[:2] == [
        (f"{images}/001/frontal/01.jpg", f"{images}/001/frontal/02.jpg", 0, True),
        (f"{images}/001/frontal/01.jpg", f"{images}/002/frontal/01.jpg", 0, False),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("Protocol/Split/FP/07/same.txt", None, r"07/same.txt: unreadable \(No such file"),
        ("Protocol/Split/FP/07/same.txt", "1;1\n", r"07/same.txt:1: '1;1'; expected `NUMBER,NUMBER`"),
        ("Protocol/Split/FP/07/same.txt", "\n1,1,1\n", r"07/same.txt:2: '1,1,1'"),
        ("Protocol/Split/FP/07/same.txt", "1,9\n", r"07/same.txt:1: photo 9; expected 1 to 3"),
        ("Protocol/Split/FP/07/same.txt", "1,2\n", r"in a list of same pairs; expected a pair of that kind"),
        ("Protocol/Split/FP/07/diff.txt", "1,1\n", r"in a list of different pairs"),
        (
            "Protocol/Pair_list_P.txt",
            "1 ../Data/Images/001/profile/01.jpg\n1 x/y/z.jpg\n",
            r"P.txt:2: number 1 once more",
        ),
        ("Protocol/Pair_list_P.txt", "one ../a/b/c.jpg\n", r"P.txt:1: 'one ../a/b/c.jpg'; expected `NUMBER PATH`"),
        ("Protocol/Pair_list_P.txt", "1 ../../a/b/c.jpg\n", r"P.txt:1: path .* expected one within the folder"),
        (
            "Protocol/Pair_list_P.txt",
            "1 ../c.jpg\n",
            r"P.txt:1: path '../c.jpg'; expected one that ends in PERSON/KIND",
        ),
        ("Protocol/Pair_list_P.txt", b"\xff", r"P.txt: unreadable \(not UTF-8 text\)"),
    ],
)
def test_bad_cfp_files_are_named(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    root = write_cfp(tmp_path / "cfp", [("1,1\n", "1,2\n")] * 10)
    if content is None:
        (root / name).unlink()
    else:
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message) as caught:
        read_cfp(root, "FP")
    assert "\n" not in str(caught.value)


def calfw_folds() -> list[list[tuple[tuple[str, int], tuple[str, int]]]]:
    """Two folds; one has two same pairs and one different, the other one of each."""
    return [
        [(("Ann", 1), ("Ann", 2)), (("Bo", 1), ("Bo", 2)), (("Ann", 1), ("Bo", 2))],
        [(("Cé_X", 1), ("Cé_X", 3)), (("Cé_X", 1), ("Bo", 1))],
    ]


def test_calfw_labels_say_the_fold_of_same_pairs(tmp_path: Path) -> None:
    root = tmp_path / "calfw"
    write_photo(root / "images&landmarks" / "images&landmarks" / "images" / "Ann_0001.jpg", 0)
    write_photo(root / "aligned images" / "Bo_0001.jpg", 0)
    (root / "pairs_CALFW.txt").write_text(cross_lfw_lines(calfw_folds(), fold_labels=True), encoding="utf-8")
    listed = read_cross_lfw(root, root / "pairs_CALFW.txt", are_aligned=False)
    # The two different pairs are cut into ten consecutive parts: the first two have one each.
    assert shown(listed.pairs.pairs) == [
        ("Ann_0001.jpg", "Ann_0002.jpg", 0, True),
        ("Bo_0001.jpg", "Bo_0002.jpg", 0, True),
        ("Ann_0001.jpg", "Bo_0002.jpg", 0, False),
        ("Cé_X_0001.jpg", "Cé_X_0003.jpg", 1, True),
        ("Cé_X_0001.jpg", "Bo_0001.jpg", 1, False),
    ]
    assert [photo.identity for photo in listed.pairs.photos()] == ["Ann", "Ann", "Bo", "Bo", "Cé_X", "Cé_X"]
    assert listed.root == root / "images&landmarks" / "images&landmarks" / "images"
    assert listed.notes == []
    assert read_cross_lfw(root, root / "pairs_CALFW.txt", are_aligned=True).root == root / "aligned images"


def test_cplfw_pairs_are_cut_into_ten_parts_of_each_kind(tmp_path: Path) -> None:
    root = tmp_path / "cplfw"
    people = [f"P{n}" for n in range(20)]
    lines = [f"{name}_{n}.jpg 1\r\n" for name in people for n in (1, 2)]
    lines += [f"{name}_1.jpg 0\r\n" for pair in zip(people[::2], people[1::2], strict=True) for name in pair]
    (root / "images").mkdir(parents=True)
    write_photo(root / "images" / "P3_1.jpg", 0)
    (root / "pairs_CPLFW.txt").write_text("".join(lines))
    listed = read_listed(root, "cplfw", None, None)
    same = [(pair.left.identity, pair.fold) for pair in listed.pairs.pairs if pair.same]
    different = [(pair.left.identity, pair.fold) for pair in listed.pairs.pairs if not pair.same]
    assert same == [(name, n // 2) for n, name in enumerate(people)]
    assert different == [(name, n) for n, name in enumerate(people[::2])]
    assert listed.root == root / "images"


def test_labels_count_where_names_contradict_them(tmp_path: Path) -> None:
    write_photo(tmp_path / "Ann_0001.jpg", 0)
    (tmp_path / "pairs_CPLFW.txt").write_text("Ann_0001.jpg 1\nBo_0001.jpg 1\nAnn_0001.jpg 0\nBo_0002.jpg 0\n")
    listed = read_cross_lfw(tmp_path, tmp_path / "pairs_CPLFW.txt", are_aligned=False)
    assert [pair.same for pair in listed.pairs.pairs] == [True, False]
    assert listed.notes == ["The labels of 1 pairs contradict the names of their photos; labels count."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "0 lines; expected two a pair"),
        ("A_1.jpg 1\nA_2.jpg 1\nB_1.jpg 1\n", "3 lines; expected two a pair"),
        ("A_1.jpg 1\nA_2.jpg 2\n", r"x.txt:2: label 2; expected 1, as of the line before"),
        ("A_1.jpg 1\n\nA_1.jpg 1\n", r"x.txt:3: A_1.jpg is paired with itself"),
        ("A_1.jpg\nA_2.jpg\n", r"x.txt:1: 'A_1.jpg'; expected `PHOTO LABEL`"),
        ("A_1.jpg 11\nA_2.jpg 11\n", r"x.txt:1: 'A_1.jpg 11'; expected `PHOTO LABEL`, the label 0 to 10"),
        ("A.jpg 1\nA_2.jpg 1\n", r"x.txt:1: photo 'A.jpg'; expected NAME_NUMBER.jpg"),
        ("../A_1.jpg 1\nA_2.jpg 1\n", r"x.txt:1: path '../A_1.jpg'; expected one within the folder of photos"),
        ("A_1.jpg 1\nA_2.jpg 1\n", r"none of the 2 photos of the list; expected A_1.jpg in one of 'images', "),
    ],
)
def test_bad_lists_of_calfw_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.txt").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_cross_lfw(tmp_path, tmp_path / "x.txt", are_aligned=False)
    assert "\n" not in str(caught.value)


def test_aligned_photos_alone_are_not_searched_for_faces(tmp_path: Path) -> None:
    write_photo(tmp_path / "aligned images" / "A_1.jpg", 0)
    (tmp_path / "x.txt").write_text("A_1.jpg 1\nA_2.jpg 1\n")
    with pytest.raises(UserError, match="'aligned images' alone; expected unaligned photos; --detector none"):
        read_cross_lfw(tmp_path, tmp_path / "x.txt", are_aligned=False)


def test_unaligned_photos_never_stand_in_for_aligned_ones(tmp_path: Path) -> None:
    for folder, names in (("aligned images", ["A_1.jpg"]), ("images", ["A_1.jpg", "A_2.jpg"])):
        for name in names:
            write_photo(tmp_path / folder / name, 0)
    path = tmp_path / "x.txt"
    path.write_text("A_1.jpg 1\nA_2.jpg 1\n")
    # One aligned photo is missing: it is, and no unaligned one takes its place.
    assert read_cross_lfw(tmp_path, path, are_aligned=True).root == tmp_path / "aligned images"
    assert read_cross_lfw(tmp_path, path, are_aligned=False).root == tmp_path / "images"
    (tmp_path / "aligned images" / "A_1.jpg").unlink()
    with pytest.raises(
        UserError, match=r"none of the 2 photos of the list; expected A_1.jpg in one of 'aligned images'"
    ):
        read_cross_lfw(tmp_path, path, are_aligned=True)
    (tmp_path / "aligned images").rmdir()
    # A copy of the aligned photos alone, in a folder of another name.
    assert read_cross_lfw(tmp_path, path, are_aligned=True).root == tmp_path / "images"


def save_agedb(path: Path, folds: list[list[tuple[str, str, int]]]) -> None:
    """The protocol's nested structs, as MATLAB saves them."""
    splits = np.empty((len(folds), 1), object)
    for number, pairs in enumerate(folds):
        cells = np.empty((2, len(pairs)), object)
        for place, pair in enumerate(pairs):
            for side in (0, 1):
                cells[side, place] = {"name": pair[side], "age": 35}
        labels = np.array([[label for _, _, label in pairs]], np.int16)
        splits[number, 0] = {"pairs": cells, "labels": labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"splits": splits})


def test_agedb_protocol_of_thirty_years(tmp_path: Path) -> None:
    same = ("1_MariaCallas_35_f", "2_MariaCallas_5_f", 1)
    different = ("1_MariaCallas_35_f", "7_Ann_Lee_70_f", -1)
    path = tmp_path / LISTS[0]
    save_agedb(path, [[different, same], *[[same, different]] * 9])
    write_photo(tmp_path / "03_Protocol_Images" / "1_MariaCallas_35_f.jpg", 0)
    listed = read_listed(tmp_path, "agedb-30", None, None)
    assert shown(listed.pairs.pairs)[:3] == [
        ("1_MariaCallas_35_f.jpg", "7_Ann_Lee_70_f.jpg", 0, False),
        ("1_MariaCallas_35_f.jpg", "2_MariaCallas_5_f.jpg", 0, True),
        ("1_MariaCallas_35_f.jpg", "2_MariaCallas_5_f.jpg", 1, True),
    ]
    assert [pair.fold for pair in listed.pairs.pairs] == np.repeat(np.arange(10), 2).tolist()
    assert listed.pairs.pairs[0].right.identity == "Ann_Lee"
    assert listed.root == tmp_path / "03_Protocol_Images"
    assert listed.knows_people

    save_agedb(path, [[same]] * 9)
    with pytest.raises(UserError, match=r"years.mat: 9 folds; expected AgeDB's protocol"):
        read_agedb(tmp_path, path)
    save_agedb(path, [[same]] * 3 + [[(*different[:2], 1)]] * 7)
    with pytest.raises(UserError, match=r"years.mat, fold 4: label 1 of 1_MariaCallas_35_f.jpg and 7_Ann_Lee_70_f.jpg"):
        read_agedb(tmp_path, path)
    save_agedb(path, [[("x", "y", 1)]] * 10)
    with pytest.raises(UserError, match=r"fold 1: photo 'x'; expected NUMBER_NAME_AGE_SEX"):
        read_agedb(tmp_path, path)
    for content in (b"", b"no matlab" * 40):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"years.mat: another content \(\w+\); expected AgeDB's protocol"):
            read_agedb(tmp_path, path)
    savemat(path, {"other": 1})
    with pytest.raises(UserError, match=r"another content \(KeyError\)"):
        read_agedb(tmp_path, path)
    with pytest.raises(UserError, match=r"none.mat: unreadable"):
        read_agedb(tmp_path, tmp_path / "none.mat")


def test_agedb_text_list_does_not_say_who_is_on_the_photos(tmp_path: Path) -> None:
    lines = [f"{2 * n}.jpg {2 * n + 1}.jpg {1 if n % 2 else -1}" for n in range(20)]
    (tmp_path / "agedb_30_pair.txt").write_text("\n".join(lines))
    write_photo(tmp_path / "agedb30_align_112" / "3.jpg", 0)
    listed = read_listed(tmp_path, "agedb-30", None, None)
    assert shown(listed.pairs.pairs)[:3] == [
        ("0.jpg", "1.jpg", 0, False),
        ("2.jpg", "3.jpg", 0, True),
        ("4.jpg", "5.jpg", 1, False),
    ]
    assert not listed.knows_people
    for content, message in (
        ("", "no pairs"),
        ("a.jpg b.jpg\n", r"pair.txt:1: 'a.jpg b.jpg'; expected `LEFT RIGHT LABEL`"),
        ("a.jpg b.jpg 2\n", r"pair.txt:1: 'a.jpg b.jpg 2'"),
        ("a.jpg a.jpg 1\n", r"pair.txt:1: a.jpg is paired with itself"),
    ):
        (tmp_path / "agedb_30_pair.txt").write_text(content)
        with pytest.raises(UserError, match=message):
            read_agedb(tmp_path, tmp_path / "agedb_30_pair.txt")


def test_rfw_is_one_set_in_groups(tmp_path: Path) -> None:
    for race, header in (("Asian", "10 300\n"), ("African", "")):
        lines = [f"m.{race[0]}{n}\t1\t2\nm.{race[0]}{n}\t1\tm.{race[0]}x\t3\n" for n in range(10)]
        path = tmp_path / "txts" / race / f"{race}_pairs.txt"
        path.parent.mkdir(parents=True)
        path.write_text(header + "".join(lines))
    listed = read_rfw(tmp_path)
    # Fold by fold a tenth of each race's pairs, in the order of the lists.
    assert shown(listed.pairs.pairs)[:6] == [
        ("data/African/m.A0/m.A0_0001.jpg", "data/African/m.A0/m.A0_0002.jpg", 0, True),
        ("data/African/m.A0/m.A0_0001.jpg", "data/African/m.Ax/m.Ax_0003.jpg", 0, False),
        ("data/Asian/m.A0/m.A0_0001.jpg", "data/Asian/m.A0/m.A0_0002.jpg", 0, True),
        ("data/Asian/m.A0/m.A0_0001.jpg", "data/Asian/m.Ax/m.Ax_0003.jpg", 0, False),
        ("data/African/m.A1/m.A1_0001.jpg", "data/African/m.A1/m.A1_0002.jpg", 1, True),
        ("data/African/m.A1/m.A1_0001.jpg", "data/African/m.Ax/m.Ax_0003.jpg", 1, False),
    ]
    races = ["African", "African", "Asian", "Asian"] * 10
    assert {name: (one.left, one.right) for name, one in listed.groups.items()} == {"race": (races, races)}
    assert listed.lists == [tmp_path / "txts" / race / f"{race}_pairs.txt" for race in ("African", "Asian")]
    digest = digest_files(listed.lists)
    (tmp_path / "txts" / "Asian" / "Asian_pairs.txt").write_text("m.1\t1\t2\t3\t4\n")
    assert digest_files(listed.lists) != digest
    with pytest.raises(UserError, match=r"Asian_pairs.txt:1: 5 fields; expected a different pair"):
        read_rfw(tmp_path)
    (tmp_path / "txts" / "Asian" / "Asian_pairs.txt").write_text("10\t300\n")
    with pytest.raises(UserError, match=r"Asian_pairs.txt: no pairs"):
        read_rfw(tmp_path)


def test_a_set_is_known_by_its_files(tmp_path: Path) -> None:
    assert find_protocol(tmp_path, None) is None
    with pytest.raises(UserError, match=r"not the files of rfw; expected txts/\*/\*_pairs.txt"):
        find_protocol(tmp_path, "rfw")
    with pytest.raises(
        UserError, match=r"not the files of agedb-30; expected AgeDB_FINAL_protocol/.* or agedb_30_pair"
    ):
        find_protocol(tmp_path, "agedb-30")
    with pytest.raises(UserError, match="--protocol: unknown test set 'lfw'; expected cfp-fp, cfp-ff, agedb-30"):
        find_protocol(tmp_path, "lfw")
    with pytest.raises(UserError, match="none: no such directory; expected the folder of cfp-ff"):
        find_protocol(tmp_path / "none", "cfp-ff")
    for name, marker in (
        ("cfp-fp", "Protocol/Pair_list_F.txt"),
        ("agedb-30", "agedb_30_pair.txt"),
        ("calfw", "pairs_CALFW.txt"),
        ("cplfw", "pairs_CPLFW.txt"),
        ("rfw", "txts/Asian/Asian_pairs.txt"),
        ("ijb-b", "meta/ijbb_face_tid_mid.txt"),
        ("ijb-c", "meta/ijbc_face_tid_mid.txt"),
    ):
        path = tmp_path / name / marker
        path.parent.mkdir(parents=True)
        path.write_text("")
        assert find_protocol(tmp_path / name, None) == find_protocol(tmp_path / name, name) == name
    assert find_protocol(tmp_path / "cfp-fp", "cfp-ff") == "cfp-ff"
    with pytest.raises(UserError, match="--pairs: given with cfp-ff, whose pairs are in several files"):
        read_listed(tmp_path / "cfp-fp", "cfp-ff", tmp_path / "x", None)


def test_ijb_files(tmp_path: Path) -> None:
    faces = [(10, 1, 0.9), (10, 1, 0.8), (11, 2, 1.0)]
    root = write_ijb(tmp_path / "ijbc", faces, [(10, 11, 1), (11, 10, 0)])
    ijb = read_ijb(root, "ijb-c")
    assert [str(photo) for photo in ijb.templates.photos] == [f"loose_crop/{n}.jpg" for n in (1, 2, 3)]
    assert ijb.templates.template.tolist() == [10, 10, 11]
    assert ijb.templates.medium.tolist() == [1, 1, 2]
    assert ijb.templates.detector_score.tolist() == pytest.approx([0.9, 0.8, 1.0])
    assert ijb.templates.pairs.same.tolist() == [True, False]
    assert ijb.landmarks.shape == (3, 5, 2)
    assert ijb.landmarks[0, 1].tolist() == pytest.approx([73.5, 51.5])
    # Landmarks that lie where the template has them leave the photo as it is.
    crop = IjbPhotos(root, ijb.landmarks, 112).load(ijb.templates.photos[0])
    original = read_photo(root / "loose_crop" / "1.jpg").pixels
    assert np.abs(crop.astype(int) - original)[4:-4, 4:-4].mean() < 2

    points, faces_path = root / "meta" / "ijbc_name_5pts_score.txt", root / "meta" / "ijbc_face_tid_mid.txt"
    text = points.read_text()
    for content, message in (
        (
            text.replace("2.jpg", "4.jpg"),
            r"face_tid_mid.txt:2: '2.jpg'; expected '4.jpg', as in ijbc_name",
        ),
        (text + text.splitlines()[0] + "\n", r"face_tid_mid.txt:4: 'no photo'; expected '1.jpg'"),
        (text.replace("0.8", "high"), r"score.txt:2: '2.jpg 38.3 .*' ?.*single spaces"),
        (text.replace(" 0.8", ""), r"score.txt:2: "),
    ):
        points.write_text(content)
        with pytest.raises(UserError, match=message) as caught:
            read_ijb(root, "ijb-c")
        assert "\n" not in str(caught.value)
    points.write_text(text)
    faces_path.unlink()
    with pytest.raises(UserError, match=r"face_tid_mid.txt: unreadable"):
        read_ijb(root, "ijb-c")
    with pytest.raises(UserError, match="no folder 'loose_crop'; expected the photos of ijb-b"):
        read_ijb(tmp_path, "ijb-b")


@pytest.mark.parametrize("score", ["nan", "-0.5", "inf"])
def test_bad_scores_of_ijb_are_named(tmp_path: Path, score: str) -> None:
    root = write_ijb(tmp_path / "ijbc", [(10, 1, 0.9), (11, 2, 0.25)], [(10, 11, 0)])
    path = root / "meta" / "ijbc_name_5pts_score.txt"
    # Blank lines do not count as photos, but as lines.
    path.write_text(path.read_text().replace(" 0.25", f" {score}").replace("2.jpg", "\n2.jpg"))
    with pytest.raises(UserError, match=rf"name_5pts_score.txt:3: .*{score}") as caught:
        read_ijb(root, "ijb-c")
    assert "\n" not in str(caught.value)


def test_unknown_templates_of_ijb_are_named(tmp_path: Path) -> None:
    root = write_ijb(tmp_path / "ijbc", [(10, 1, 0.9), (12, 2, 1.0)], [(10, 12, 0), (12, 10, 0), (10, 11, 0)])
    message = r"ijbc_template_pair_label.txt:3: template 11; expected one of ijbc_face_tid_mid.txt"
    with pytest.raises(UserError, match=message):
        read_ijb(root, "ijb-c")
    (root / "meta" / "ijbc_template_pair_label.txt").write_text("10 12 1\n\n13 11 0\n")
    with pytest.raises(UserError, match=r"pair_label.txt:3: template 13; expected one of"):
        read_ijb(root, "ijb-c")


def test_landmarks_without_an_alignment_cost_the_photo(tmp_path: Path) -> None:
    root = write_ijb(tmp_path / "ijbc", [(10, 1, 0.9), (11, 2, 1.0)], [(10, 11, 0)])
    ijb = read_ijb(root, "ijb-c")
    ijb.landmarks.flags.writeable = True
    ijb.landmarks[1] = 50.0
    photos = IjbPhotos(root, ijb.landmarks, 112)
    assert isinstance(photos.load(ijb.templates.photos[0]), np.ndarray)
    assert photos.load(ijb.templates.photos[1]) == Rejected("bad_landmarks")


def test_csv_pairs_by_path(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes("left_path,right_path,same,site\r\na/é.jpg,b.jpg,1,x\r\n\r\nb.jpg,./c.jpg,0,y\r\n".encode())
    found = read_grouped_pairs(path)
    assert shown(found.pairs.pairs) == [("a/é.jpg", "b.jpg", 0, True), ("b.jpg", "c.jpg", 0, False)]
    assert (found.are_paths, found.knows_people) == (True, False)
    assert found.groups["site"].left == ["x", "y"]
    assert found.pairs.photos() == [
        Photo("a/é.jpg", 0, "a/é.jpg"),
        Photo("b.jpg", 0, "b.jpg"),
        Photo("c.jpg", 0, "c.jpg"),
    ]
    path.write_text("left_path,right_path,left_identity,right_identity\na.jpg,b.jpg,A,A\nb.jpg,c.jpg,A,B\n")
    found = read_grouped_pairs(path)
    assert [pair.same for pair in found.pairs.pairs] == [True, False]
    assert (found.are_paths, found.knows_people, found.groups) == (True, True, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("left_path,right_path\na,b\n", "column 'same' stands 0 times"),
        ("left_path,same\na,1\n", "column 'right_path' stands 0 times"),
        ("left_path,right_path,same\na,b,yes\n", r"pairs.csv:2: same 'yes'; expected 1 for one person, 0 for two"),
        ("left_path,right_path,same\n/a,b,1\n", r"pairs.csv:2: path '/a'; expected one within the folder"),
        ("left_path,right_path,same\nx/../../a,b,1\n", r"pairs.csv:2: path"),
        ("left_path,right_path,same\n,b,1\n", r"pairs.csv:2: path ''"),
        ("left_path,right_path,same\na,./a,1\n", r"pairs.csv:2: a is paired with itself"),
        ("left_path,right_path,left_identity,right_identity\na,b,A,\n", r"pairs.csv:2: no right_identity"),
        ("left_path,right_path,left_identity,right_identity\na,./a,A,B\n", r"pairs.csv:2: a is paired with itself"),
        (
            "left_path,right_path,left_identity,right_identity,same\na,b,A,B,1\n",
            "both 'same' and identities in its first line; expected one of them",
        ),
        (
            "left_identity,left_number,right_identity,right_number,same\nA,1,B,1,1\n",
            "both 'same' and identities in its first line; expected one of them",
        ),
    ],
)
def test_bad_csv_pairs_by_path_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_grouped_pairs(tmp_path / "pairs.csv")
    assert "\n" not in str(caught.value)
