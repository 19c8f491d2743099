"""RecordIO as dmlc-core and InsightFace write it: framing, headers, the index, and what is wrong with damaged files."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.config.errors import UserError
from preprocess.recordio import RecordError, parse_image, read_head, scan, write_image_record
from preprocess.sources import find_source, list_source
from preprocess.sources.store import Place
from tests.datasets import encode_jpeg, random_image

MAGIC = bytes.fromhex("0a23d7ce")


def frame(payload: bytes, continued: int = 0) -> bytes:
    """One part, written out by hand from the format's description."""
    return MAGIC + struct.pack("<I", continued << 29 | len(payload)) + payload + b"\0" * (-len(payload) % 4)


def image(label: float, key: int, content: bytes) -> bytes:
    return struct.pack("<IfQQ", 0, label, key, 0) + content


def labelled(labels: tuple[float, ...], key: int, content: bytes = b"") -> bytes:
    return struct.pack("<IfQQ", len(labels), 0, key, 0) + struct.pack(f"<{len(labels)}f", *labels) + content


def jpegs(count: int) -> list[bytes]:
    rng = np.random.default_rng(5)
    return [encode_jpeg(random_image(rng, 32)) for _ in range(count)]


def write_set(folder: Path, people: list[list[bytes]], *, header: bool = True, idx: bool = True) -> Path:
    """InsightFace's files with `people[label]` images, in the order in which its own script writes records."""
    folder.mkdir(parents=True, exist_ok=True)
    records, key, ranges = [], 1, []
    for label, images in enumerate(people):
        ranges.append((key, key + len(images)))
        for content in images:
            # as its script packs them: the label and whether the photo is aligned
            records.append((key, labelled((float(label), 1.0), key, content)))
            key += 1
    if header:
        records.append((0, labelled((float(key), float(key + len(people))), 0)))
        records += [(key + i, labelled(tuple(map(float, pair)), key + i)) for i, pair in enumerate(ranges)]
    lines, data = [], b""
    for number, payload in records:
        lines.append(f"{number}\t{len(data)}\n")
        data += frame(payload)
    (folder / "train.rec").write_bytes(data)
    if idx:
        (folder / "train.idx").write_text("".join(lines))
    (folder / "property").write_text(f"{len(people)},32,32")
    return folder


def heads(data: bytes, tmp_path: Path) -> list:
    path = tmp_path / "x.rec"
    path.write_bytes(data)
    with open(path, "rb") as file:
        return list(scan(file.fileno(), len(data)))


@given(
    st.lists(st.one_of(st.just(MAGIC), st.binary(max_size=9)), max_size=8).map(b"".join),
    st.floats(0, 2**24 - 1, width=32),
    st.integers(0, 2**63),
)
@example(MAGIC, 0.0, 0)  # at a multiple of 4 behind the header of 24 bytes
@example(MAGIC * 3, 0.0, 0)
@example(b"x" + MAGIC, 0.0, 0)  # beside one
@example(b"", 0.0, 0xCED7230A)  # in the header itself
def test_what_is_written_is_read_back(content: bytes, label: float, key: int) -> None:
    file = io.BytesIO()
    count = write_image_record(file, label, key, content)
    frames = file.getvalue()
    assert count == len(frames)
    assert len(frames) % 4 == 0
    assert parse_image(frames) == content
    # the magic word stands at no multiple of 4 but at the parts' starts, so that a reader can find them again
    descriptor = os.memfd_create("record")
    try:
        os.write(descriptor, frames)
        head = read_head(descriptor, 0, len(frames))
    finally:
        os.close(descriptor)
    assert (head.num_bytes, head.labels, head.id, head.image_bytes) == (len(frames), (label,), key, len(content))


def test_frames_are_those_of_dmlc() -> None:
    """Split by hand: 8 bytes, the word, the word again, 5 bytes."""
    payload = image(3.0, 7, b"abcdefgh" + MAGIC + MAGIC + b"12345")
    file = io.BytesIO()
    write_image_record(file, 3.0, 7, payload[24:])
    expected = frame(payload[:32], 1) + frame(b"", 2) + frame(b"12345", 3)
    assert file.getvalue() == expected
    assert parse_image(expected) == payload[24:]


@given(st.lists(st.one_of(st.just(MAGIC), st.binary(max_size=5)), max_size=8).map(b"".join))
@example(b"x" + MAGIC + MAGIC)  # beside the multiples of 4: no cut
@example(b"xyz" + MAGIC + b"a" + MAGIC)
def test_cuts_are_those_of_dmlc(content: bytes) -> None:
    """As its `WriteRecord` goes about it, word by word."""
    payload = image(1.0, 2, content)
    expected, start = b"", 0
    for place in range(0, len(payload) // 4 * 4, 4):
        if payload[place : place + 4] == MAGIC:
            expected += frame(payload[start:place], 1 if start == 0 else 2)
            start = place + 4
    expected += frame(payload[start:], 3 if start else 0)
    file = io.BytesIO()
    write_image_record(file, 1.0, 2, content)
    assert file.getvalue() == expected


def test_dali_reads_what_is_written(tmp_path: Path) -> None:
    """NVIDIA's reader of the same format, as a second opinion; it knows neither key 0 nor records of identities."""
    fn = pytest.importorskip("nvidia.dali.fn")
    from nvidia.dali import pipeline_def

    contents = jpegs(3)
    with open(tmp_path / "a.rec", "wb") as rec, open(tmp_path / "a.idx", "w") as idx:
        offset = 0
        for key, content in enumerate(contents):
            idx.write(f"{key}\t{offset}\n")
            offset += write_image_record(rec, float(key * 5), key, content)

    @pipeline_def(batch_size=3, num_threads=1, device_id=None)
    def read() -> object:
        images, labels = fn.readers.mxnet(path=[str(tmp_path / "a.rec")], index_path=[str(tmp_path / "a.idx")])
        return images, labels

    images, labels = read().run()
    assert [bytes(np.asarray(images.at(i))) for i in range(3)] == contents
    assert [float(np.asarray(labels.at(i))[0]) for i in range(3)] == [0.0, 5.0, 10.0]


def test_scan_finds_every_kind_of_record(tmp_path: Path) -> None:
    data = frame(image(4.0, 1, b"abc")) + frame(labelled((4.0, 0.0), 2, b"defgh")) + frame(labelled((3.0, 9.0), 0))
    found = [(head.labels, head.id, head.image_bytes) for _, head in heads(data, tmp_path)]
    assert found == [((4.0,), 1, 3), ((4.0, 0.0), 2, 5), ((3.0, 9.0), 0, 0)]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\0" * 40, "byte 0: no record begins here"),
        (frame(image(1, 1, b"abcd"))[:-1], "byte 0: a record of 36 bytes, and the file ends after 35"),
        (frame(image(1, 1, b"")) + b"tail", "byte 32: the record is cut off"),
        (frame(b"short"), "byte 0: a record of 5 bytes, too short for an image's header"),
        (frame(image(1, 1, b""), 5), "byte 0: continuation flag 5, expected 0 to 3"),
        (frame(image(1, 1, b""), 2), "byte 0: continuation flag 2 at the start of a record"),
        (frame(image(1, 1, b""), 1) + frame(b"x", 1), "byte 32: continuation flag 1 inside a split record"),
        (frame(image(1, 1, b""), 1), "byte 32: the record is cut off"),
        (MAGIC + b"\xff\xff\xff\x1f" + bytes(40), "a record of 536,870,911 bytes, expected at most"),
        (frame(struct.pack("<IfQQ", 2**32 - 1, 0, 1, 0)), "a record of 24 bytes that claims 4,294,967,295 labels"),
    ],
)  # fmt: skip
def test_damage_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(RecordError) as caught:
        heads(data, tmp_path)
    assert said in str(caught.value)


def test_set_of_insightface(tmp_path: Path) -> None:
    contents = jpegs(6)
    folder = write_set(tmp_path / "faces", [contents[:3], contents[3:4], contents[4:]])
    (folder / "lfw.bin").touch()
    photos, table, notes = list_source(find_source(folder))
    assert table["source"].to_pylist() == [f"train.rec#{key}" for key in range(1, 7)]
    assert table["identity"].to_pylist() == ["0", "0", "0", "1", "2", "2"]
    places = [Place(row["source"], row["offset"], row["num_bytes"]) for row in table.to_pylist()]
    assert [photos.read(place) for place in places] == contents
    assert notes == [
        "train.rec: 3 records of identities, which hold no photo",
        "passed over lfw.bin: verification sets, see `preprocess import-bin`",
    ]


@pytest.mark.parametrize("idx", [True, False])
def test_set_of_im2rec(tmp_path: Path, idx: bool) -> None:
    """Without key 0: every record is a photo, numbered from 0."""
    contents = jpegs(3)
    data = b"".join(frame(image(float(n // 2), n, content)) for n, content in enumerate(contents))
    (tmp_path / "train.rec").write_bytes(data)
    if idx:
        offsets = np.cumsum([0, *(len(frame(image(0, 0, content))) for content in contents)])
        (tmp_path / "train.idx").write_text("".join(f"{n}\t{offsets[n]}\n" for n in range(3)))
    _, table, notes = list_source(find_source(tmp_path / "train.rec"))
    assert table["source"].to_pylist() == ["train.rec#0", "train.rec#1", "train.rec#2"]
    assert table["identity"].to_pylist() == ["0", "0", "1"]
    assert notes == ([] if idx else ["train.idx is missing: keys were found by going through train.rec"])


def test_a_missing_index_gives_the_same_listing(tmp_path: Path) -> None:
    contents = jpegs(4)
    with_idx = list_source(find_source(write_set(tmp_path / "a", [contents[:2], contents[2:]])))
    without = list_source(find_source(write_set(tmp_path / "b", [contents[:2], contents[2:]], idx=False)))
    assert with_idx[1].equals(without[1])


def test_counts_that_do_not_agree_are_said(tmp_path: Path) -> None:
    folder = write_set(tmp_path, [jpegs(2)])
    (folder / "property").write_text("85742,112,112")
    data = (folder / "train.rec").read_bytes()
    wrong = data.replace(struct.pack("<ff", 3.0, 4.0), struct.pack("<ff", 3.0, 9.0))
    (folder / "train.rec").write_bytes(wrong)
    assert list_source(find_source(folder))[2][1:] == [
        "train.rec: its first record counts 6 identities",
        "property counts 85,742 identities, the photos are of 1",
    ]


def test_sets_too_large_for_the_numbers_of_their_header(tmp_path: Path) -> None:
    """Beyond 2**24 records the first record's numbers are rounded: then having no image makes a record a person's."""
    folder = write_set(tmp_path, [jpegs(2), jpegs(1)])
    data = (folder / "train.rec").read_bytes()
    (folder / "train.rec").write_bytes(data.replace(struct.pack("<ff", 4.0, 6.0), struct.pack("<ff", 2.0**24, 2.0**25)))
    _, table, notes = list_source(find_source(folder))
    assert len(table) == 3
    assert notes == ["train.rec: 2 records of identities, which hold no photo"]


def test_an_image_without_bytes_is_a_reject(tmp_path: Path) -> None:
    _, table, _ = list_source(find_source(write_set(tmp_path, [[jpegs(1)[0], b""]])))
    assert table["problem"].to_pylist() == ["", "empty_file"]


@pytest.mark.parametrize("label", [2.0**24, 2.0**24 + 2, 2.0**40])
def test_labels_beyond_float32_are_refused(tmp_path: Path, label: float) -> None:
    (tmp_path / "a.rec").write_bytes(frame(image(label, 1, b"x")))
    with pytest.raises(UserError, match=f"record 1 has label {label:.0f}, and float32 cannot tell"):
        list_source(find_source(tmp_path / "a.rec"))


def test_the_last_exact_label_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.rec").write_bytes(frame(image(2.0**24 - 1, 1, b"x")))
    assert list_source(find_source(tmp_path / "a.rec"))[1]["identity"].to_pylist() == ["16777215"]


@pytest.mark.parametrize("label", [-1.0, 0.5, float("nan"), float("-inf")])
def test_labels_that_are_no_numbers_of_people(tmp_path: Path, label: float) -> None:
    (tmp_path / "a.rec").write_bytes(frame(image(label, 1, b"x")))
    with pytest.raises(UserError, match="expected a whole number from 0"):
        list_source(find_source(tmp_path / "a.rec"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[:-1], "train.idx lists no record at byte"),
        (lambda lines: lines[1:], "train.idx lists no record at byte 0"),
        (lambda lines: [*lines[:-1], "9\t12345678\n"], "record 9: byte 12,345,678: the record is cut off"),
        (lambda lines: [*lines[:-1], "9\t4\n"], "record 9: byte 4: no record begins here"),
        (lambda lines: [*lines, lines[0]], "key 1 stands in several lines"),
        (lambda lines: [*lines, "99\t0\n"], "offset 0 stands in several lines"),
        (lambda lines: ["one\t0\n", *lines], "line 1: 'one\\t0\\n'; expected KEY<TAB>OFFSET"),
        (lambda lines: ["1" * 200], "expected KEY<TAB>OFFSET"),
        (lambda lines: [], "empty; expected lines of KEY<TAB>OFFSET"),
    ],
)  # fmt: skip
def test_a_wrong_index_loses_nothing_in_silence(tmp_path: Path, change: object, said: str) -> None:
    folder = write_set(tmp_path, [jpegs(2)])
    lines = (folder / "train.idx").read_text().splitlines(keepends=True)
    (folder / "train.idx").write_text("".join(change(lines)))
    with pytest.raises(UserError) as caught:
        list_source(find_source(folder))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ids_that_repeat_need_the_index(tmp_path: Path) -> None:
    (tmp_path / "a.rec").write_bytes(frame(image(1, 0, b"x")) * 2)
    with pytest.raises(UserError, match=r"1 ids stand in several records, such as 0; .* bring a\.idx along"):
        list_source(find_source(tmp_path / "a.rec"))
