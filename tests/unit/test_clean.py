"""Doubtful photos are found and named, doubtful pairs shown, and a new version leaves out what is to be dropped."""

from __future__ import annotations

import re
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.config.errors import UserError
from pipeline.data.manifest import open_dataset
from preprocess.clean import find
from preprocess.clean.near import near_others, near_pairs
from preprocess.clean.people import look_alikes, robust_centres
from preprocess.clean.pixels import Crops, SamePicture
from preprocess.cli import app
from preprocess.crops import CropMaker, CropOptions
from preprocess.dataset import finish_dataset
from preprocess.plan import ShardOptions, build_plan, save_plan
from preprocess.shard import process_shard
from preprocess.sources import read_source
from preprocess.verify import find_faults
from preprocess.withdraw import withdraw
from tests.datasets import encode_jpeg, random_image

CROP_PX = 48


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def make(root: Path, photos: dict[str, bytes]) -> Path:
    """A data set of some photos, by path."""
    for name, content in photos.items():
        path = root / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    options = ShardOptions(crop=CropOptions(detector="none", size_px=CROP_PX), samples_per_shard=8)
    source, listing, _ = read_source(root / "photos")
    plan = build_plan(listing, options)
    data = root / "data"
    data.mkdir()
    save_plan(plan, data)
    for number in range(plan.num_shards):
        process_shard(plan, number, source, data, CropMaker(options.crop, None))
    finish_dataset(plan, data)
    return data


def picture(seed: int) -> np.ndarray:
    return random_image(np.random.default_rng(seed), CROP_PX)


def again(image: np.ndarray) -> bytes:
    """The same picture, other bytes."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    pictures = [picture(seed) for seed in range(12)]
    photos = {f"p{seed % 4}/{seed}.jpg": encode_jpeg(pictures[seed]) for seed in range(12)}
    photos["p0/copy.jpg"] = photos["p0/0.jpg"]
    photos["p1/version.jpg"] = again(pictures[1])
    photos["p2/of_p3.jpg"] = photos["p3/3.jpg"]
    photos["p3/like_p0.jpg"] = again(pictures[4])
    photos["<b>&amp;/1.jpg"] = encode_jpeg(picture(50))
    photos["<b>&amp;/1b.jpg"] = again(picture(50))
    return make(tmp_path, photos)


def by_source(data: Path, verdicts: Sequence[find.Verdict]) -> set[tuple[str, str, str, str]]:
    table = find.read_photos(data)
    source = dict(zip(table["key"].to_pylist(), table["source"].to_pylist(), strict=True))
    return {(source[v.key], v.verdict, v.reason, source.get(v.other_key, v.other_key)) for v in verdicts}


def test_duplicates_are_named(data: Path) -> None:
    photos = find.read_photos(data)
    crops = Crops(data, photos)
    found = by_source(data, list(find.find_duplicates(photos, 4, SamePicture(crops, crops))))
    assert found == {
        ("p0/copy.jpg", "drop", "exact_duplicate", "p0/0.jpg"),
        ("p1/version.jpg", "drop", "near_duplicate", "p1/1.jpg"),
        ("p2/of_p3.jpg", "drop", "exact_duplicate_of_other_person", "p3/3.jpg"),
        ("p3/3.jpg", "drop", "exact_duplicate_of_other_person", "p2/of_p3.jpg"),
        ("p3/like_p0.jpg", "review", "near_duplicate_of_other_person", "p0/4.jpg"),
        ("<b>&amp;/1b.jpg", "drop", "near_duplicate", "<b>&amp;/1.jpg"),
    }


def hashed(hashes: Sequence[int], identities: Sequence[str]) -> pa.Table:
    """Photos of which nothing is known but the hashes; the files differ. Keys are a, b, …."""
    count = len(hashes)
    columns = {
        "key": [chr(ord("a") + place) for place in range(count)],
        "identity": list(identities),
        "source_sha256": [str(place) for place in range(count)],
        "jpg_crc32": list(range(count)),
        "jpg_size": [1] * count,
        "phash": pa.array(hashes, pa.uint64()),
    }
    return pa.table(columns)


@pytest.mark.parametrize("bits", [0, 2, 4, 5])
@pytest.mark.parametrize("is_same", [True, False])
def test_a_near_duplicate_is_near_by_hash_and_the_same_by_its_pixels(bits: int, is_same: bool) -> None:
    asked = []

    def ask(one: int, other: int) -> bool:
        asked.append((one, other))
        return is_same

    found = list(find.find_duplicates(hashed([0, 2**bits - 1], ["one", "one"]), 4, ask))
    expected = [find.Verdict("b", "drop", find.NEAR, float(bits), "a")] if is_same and bits <= 4 else []
    assert found == expected
    assert asked == ([(1, 0)] if bits <= 4 else []), "only pairs that are near by hash are looked at"
    found = list(find.find_duplicates(hashed([0, 2**bits - 1], ["one", "two"]), 4, lambda one, other: is_same))
    expected = [find.Verdict("b", "review", find.NEAR_OF_OTHER, float(bits), "a")] if is_same and bits <= 4 else []
    assert found == expected


def test_a_photo_is_compared_with_all_that_are_near_until_one_is_the_same() -> None:
    # c is near both; nearer to a by hash, but a version of b. d and e are further versions, of c and of another person
    photos = hashed([0, 0b111, 0b1, 0b1, 0b11], ["one", "one", "one", "one", "two"])
    groups = [0, 1, 1, 1, 1]
    found = list(find.find_duplicates(photos, 4, lambda one, other: groups[one] == groups[other]))
    assert found == [
        find.Verdict("c", "drop", find.NEAR, 2.0, "b"),
        find.Verdict("d", "drop", find.NEAR, 2.0, "b"),
        find.Verdict("e", "review", find.NEAR_OF_OTHER, 1.0, "b"),
    ]


def test_many_photos_of_one_hash_are_not_compared_all_with_all() -> None:
    asked = 0

    def ask(one: int, other: int) -> bool:
        nonlocal asked
        asked += 1
        return False

    photos = hashed([7] * 1000, [f"person {place % 3}" for place in range(1000)])
    assert list(find.find_duplicates(photos, 4, ask)) == []
    assert asked <= 1000 * 2 * find.MAX_OF_HASH


def test_the_command_writes_verdicts_a_page_and_a_version(data: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()}
    withdraw(data, {"identity": ["p1"]}, "")
    text = run("clean", data, tmp_path / "report", "--apply", tmp_path / "new")
    assert {path: path.read_bytes() for path in before} == before, "nothing is deleted"
    verdicts = pq.read_table(tmp_path / "report" / "verdicts.parquet")
    assert verdicts.schema.equals(find.VERDICT_SCHEMA)
    assert verdicts["reason"].to_pylist().count("near_duplicate") == 1, "p1 is withdrawn"
    assert "10 photos, without 4 to drop and 4 withdrawn samples" in text
    sources = open_dataset(tmp_path / "new").split("train").manifest(["source"])["source"].to_pylist()
    assert not {"p0/copy.jpg", "p2/of_p3.jpg", "p3/3.jpg", "<b>&amp;/1b.jpg", "p1/1.jpg"} & set(sources)
    assert {"p0/0.jpg", "p3/like_p0.jpg", "<b>&amp;/1.jpg"} <= set(sources)
    assert find_faults(tmp_path / "new", lambda count: None) == []
    page = (tmp_path / "report" / "doubtful.html").read_text()
    assert "&lt;b&gt;&amp;amp;" in page
    assert "<b>&amp;/" not in page
    assert not re.search(r'(src|href)="(?!data:|#)', page), "the page needs no other file"
    assert page.count("<img") == 2 * len(verdicts)
    assert "prefers-color-scheme: dark" in page
    # the same again gives the same bytes
    run("clean", data, tmp_path / "again")
    for name in ("verdicts.parquet", "doubtful.html"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "report" / name).read_bytes()


def test_overlap_with_a_test_set(data: Path, tmp_path: Path) -> None:
    other = make(
        tmp_path / "test",
        {
            "anna/1.jpg": encode_jpeg(picture(5)),
            "anna/2.jpg": again(picture(6)),
            "P0/1.jpg": encode_jpeg(picture(90)),
            "7/1.jpg": encode_jpeg(picture(91)),
        },
    )
    photos, test = find.read_photos(data), find.read_photos(other)
    is_same = SamePicture(Crops(data, photos), Crops(other, test))
    found = list(find.find_overlap(photos, test, 4, is_same))
    named = by_source(data, found)
    assert {row[:3] for row in named if row[2] != "name_in_test_set"} == {
        ("p1/5.jpg", "drop", "in_test_set"),
        ("p2/6.jpg", "review", "near_duplicate_in_test_set"),
    }
    assert {row[0] for row in named if row[2] == "name_in_test_set"} == {
        *("p0/0.jpg", "p0/4.jpg", "p0/8.jpg", "p0/copy.jpg")
    }
    run("clean", data, tmp_path / "report", "--against", other)
    assert "In the test set" in (tmp_path / "report" / "doubtful.html").read_text()


def people(num_people: int, num_photos: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    centres = rng.normal(size=(num_people, 32))
    labels = np.repeat(np.arange(num_people), num_photos)
    vectors = centres[labels] + 0.5 * rng.normal(size=(len(labels), 32))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def as_photos(names: Sequence[str]) -> pa.Table:
    return pa.table({"key": [f"{place:09d}" for place in range(len(names))], "identity": list(names)})


def test_wrong_labels_and_look_alikes_are_found() -> None:
    rng = np.random.default_rng(0)
    vectors, labels = people(30, 12, rng)
    names = np.array([f"person{label:02d}" for label in labels], object)
    names[labels == 29] = np.where(np.arange(12) < 6, "one", "same")  # one person, two names
    wrong = rng.choice(np.flatnonzero(labels < 29), 14, replace=False)
    for place in wrong:
        names[place] = f"person{(labels[place] + 1 + rng.integers(0, 27)) % 29:02d}"
    found = list(find.find_wrong_labels(as_photos(names.tolist()), vectors))
    of_labels = {int(verdict.key) for verdict in found if verdict.reason != find.LOOK_ALIKE}
    # a twentieth of strangers is let pass: one of these is like its wrong person by chance
    assert of_labels <= set(wrong.tolist())
    assert len(of_labels) >= 13
    for verdict in found:
        if verdict.reason == find.LIKE_OTHER:
            assert labels[int(verdict.other_key)] == labels[int(verdict.key)]
    assert [{str(names[int(v.key)]), str(names[int(v.other_key)])} for v in found if v.reason == find.LOOK_ALIKE] == [
        {"one", "same"}
    ]


def test_a_robust_centre_ignores_a_third_of_wrong_photos() -> None:
    rng = np.random.default_rng(1)
    vectors, labels = people(2, 30, rng)
    truth = vectors[labels == 0].mean(0)
    mixed = np.concatenate([vectors[:20], vectors[30:40]])
    found = robust_centres(mixed, np.zeros(30, np.int64))
    mean = mixed.mean(0)
    truth, mean = truth / np.linalg.norm(truth), mean / np.linalg.norm(mean)
    assert found.centres[0] @ truth > mean @ truth
    assert found.own_cosine[:20].min() > found.own_cosine[20:].max()


def test_look_alikes_are_those_of_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.clean.people._TILE", 7)
    vectors, labels = people(30, 5, np.random.default_rng(3))
    vectors[labels == 29], labels[labels == 17] = vectors[labels == 11], 18  # one person twice, one of ten photos
    labels = np.unique(labels, return_inverse=True)[1]
    found = robust_centres(vectors, labels)
    expected = {}
    for one in range(29):
        for other in range(one):
            cosines = [float((vectors[labels == a] @ found.centres[b]).mean()) for a, b in ((one, other), (other, one))]
            bars = [np.quantile(found.own_cosine[labels == b], 0.25) for b in (other, one)]
            if cosines[0] >= bars[0] and cosines[1] >= bars[1]:
                expected[other, one] = sum(cosines) / 2
    pairs = look_alikes(vectors, labels, found, 0.25)
    assert {(one, other): similar for one, other, similar in pairs} == pytest.approx(expected, abs=1e-5)
    assert (11, 28) in expected
    assert [similar for _, _, similar in pairs] == sorted((similar for _, _, similar in pairs), reverse=True)


def test_look_alikes_among_20_000_people_take_less_than_200_mb() -> None:
    num_people, num_photos, dim = 20_000, 4, 32  # all similarities would take 1.6 GB
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(num_people, 1, dim)).astype(np.float32)
    vectors = (centres + 0.1 * rng.normal(size=(num_people, num_photos, dim)).astype(np.float32)).reshape(-1, dim)
    vectors[-num_photos:] = vectors[3 * num_photos : 4 * num_photos]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = np.repeat(np.arange(num_people), num_photos)
    found = robust_centres(vectors, labels)
    tracemalloc.start()
    try:
        pairs = look_alikes(vectors, labels, found, 0.25)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [pair[:2] for pair in pairs] == [(3, 19_999)]
    assert peak_bytes < 200e6


def brute_force(hashes: np.ndarray, threshold: int) -> set[tuple[int, int]]:
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None])
    return {(i, j) for i, j in zip(*np.nonzero(bits <= threshold), strict=True) if i < j}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(0, 300), threshold=st.integers(0, 16))
def test_near_pairs_are_those_of_brute_force(seed: int, size: int, threshold: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, size, np.uint64)
    for place in range(size // 2):  # half of them lie near another
        for bit in rng.integers(0, 64, rng.integers(0, threshold + 3)):
            hashes[place] = (hashes[place] if bit % 7 else hashes[size - 1 - place]) ^ np.uint64(1 << int(bit))
    hashes = np.unique(hashes)
    i, j, bits = near_pairs(hashes, threshold)
    assert len(i) == len(set(zip(i.tolist(), j.tolist(), strict=True)))
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == brute_force(hashes, threshold)
    assert np.array_equal(bits, np.bitwise_count(hashes[i] ^ hashes[j]))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), threshold=st.integers(0, 8), max_of_hash=st.integers(1, 3))
def test_near_others_are_those_of_brute_force(seed: int, threshold: int, max_of_hash: int) -> None:
    rng = np.random.default_rng(seed)
    others = rng.integers(0, 2**64, 50, np.uint64)
    others[40:] = others[rng.integers(0, 8, 10)]  # some twice or more
    hashes = np.concatenate([others[rng.integers(0, 50, 40)], rng.integers(0, 2**64, 20, np.uint64)])
    for place in range(30):
        for bit in rng.integers(0, 64, rng.integers(0, 10)):
            hashes[place] ^= np.uint64(1 << int(bit))
    earlier = np.array([(others[:place] == others[place]).sum() for place in range(50)])
    distance = np.bitwise_count(hashes[:, None] ^ others[None])
    expected = [
        (place, int(bits), other)
        for place, row in enumerate(distance)
        for other, bits in enumerate(row)
        if bits <= threshold and earlier[other] < max_of_hash
    ]
    place, other, bits = near_others(hashes, others, threshold, max_of_hash)
    assert list(zip(place.tolist(), bits.tolist(), other.tolist(), strict=True)) == sorted(expected)


def test_a_bucket_of_equal_chunks_is_gone_through_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocess.clean.near._BLOCK_PAIRS", 100)
    hashes = np.arange(200, dtype=np.uint64) << np.uint64(50)
    i, j, _ = near_pairs(hashes, 2)
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == brute_force(hashes, 2)


def test_mistakes(data: Path, tmp_path: Path) -> None:
    photos = find.read_photos(data)
    path = tmp_path / "embeddings.parquet"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"launch/embed\.py writes it"):
        find.read_embeddings(path, photos)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(8, np.float32)), 4)
    pq.write_table(pa.table({"key": ["a", "b"], "embedding": vectors}), path)
    with pytest.raises(UserError, match="none of its keys"):
        find.read_embeddings(path, photos)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4, np.float32)), 4)
    pq.write_table(pa.table({"key": [photos["key"][0]], "embedding": vectors}), path)
    with pytest.raises(UserError, match="0 or not finite"):
        find.read_embeddings(path, photos)
    for words, expected in (
        (("--bits", "40"), "--bits: 40"),
        (("--apply", str(data)), "exists already"),
        (("--against", str(tmp_path / "none")), "no such directory"),
    ):
        with pytest.raises(UserError, match=expected):
            run("clean", data, tmp_path / "report", *words)


def test_judging_needs_no_torch() -> None:
    code = "import sys, preprocess.clean.run; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
