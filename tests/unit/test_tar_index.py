"""Finding a tar's members: the same places as Python's own reader finds, and every refusal by name."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from preprocess import tar_index
from preprocess.tar_index import MAX_EXTENSION_BYTES, Member, TarError, read_members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def pack(members: dict[str, bytes], kind: int = tarfile.USTAR_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:", format=kind) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def members_of(data: bytes) -> list[Member]:
    descriptor = os.memfd_create("tar")
    try:
        os.write(descriptor, data)
        return list(read_members(descriptor, len(data)))
    finally:
        os.close(descriptor)


def refusal(data: bytes) -> str:
    with pytest.raises(TarError) as caught:
        members_of(data)
    return str(caught.value)


def special(name: str, kind: bytes, link: str = "") -> bytes:
    """An archive of one member that is no regular file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        archive.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)
def test_places_are_those_of_tarfile(tmp_path: Path, kind: int) -> None:
    long = "" if kind == tarfile.USTAR_FORMAT else "x" * 180
    contents = {
        "a/b.jpg": b"1" * 700,
        "a/ü.jpg": b"",
        f"deep/{'y' * 90}/z.jpg": b"2" * 512,
        f"w/{long}é.png": b"3",
        "./q.cls": b"7",
    }
    (tmp_path / "x.tar").write_bytes(pack(contents, kind))
    with tarfile.open(tmp_path / "x.tar") as archive:
        expected = [Member(each.name, each.offset_data, each.size) for each in archive]
    found = members_of((tmp_path / "x.tar").read_bytes())
    assert found == expected
    data = (tmp_path / "x.tar").read_bytes()
    assert {m.name: data[m.offset :][: m.num_bytes] for m in found} == contents


def test_folders_are_passed_by(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.jpg").write_bytes(b"x")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "a", "a")
    assert [member.name for member in members_of((tmp_path / "x.tar").read_bytes())] == ["a/1.jpg"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (special("a.jpg", tarfile.SYMTYPE, "/etc/passwd"), "byte 0: 'a.jpg' is a symbolic link"),
        (special("a.jpg", tarfile.LNKTYPE, "b.jpg"), "byte 0: 'a.jpg' is a hard link"),
        (special("null", tarfile.CHRTYPE), "byte 0: 'null' is a device"),
        (special("sda", tarfile.BLKTYPE), "byte 0: 'sda' is a device"),
        (special("fifo", tarfile.FIFOTYPE), "byte 0: 'fifo' is a named pipe"),
        (special("hole", tarfile.GNUTYPE_SPARSE), "byte 0: 'hole' is a sparse file"),
        (special("odd", b"Z"), "byte 0: 'odd' is of the unknown type b'Z'"),
        (pack({"/etc/passwd": b""}), "byte 0: '/etc/passwd' is an absolute path"),
        (pack({"ok.jpg": b"", "a/../../b.jpg": b""}), "byte 512: 'a/../../b.jpg' leads out of the archive"),
        (pack({"..": b""}), "byte 0: '..' leads out of the archive"),
        (pack({"/" + "x" * 150: b""}, tarfile.PAX_FORMAT), "is an absolute path"),
        (pack({"../" + "x" * 150: b""}, tarfile.GNU_FORMAT), "leads out of the archive"),
        (pack({"a": b""})[:512] * 2, "byte 512: 'a' stands there twice"),
        (gzip.compress(b"x" * 600, mtime=0), "byte 0: a file compressed with gzip, expected a plain tar"),
        (b"no archive at all" * 99, "byte 0: no tar header"),
        (b"", "byte 0: the archive ends without its end mark"),
        (pack({"a": b"x" * 600})[:1100], "byte 0: a member of 600 bytes, and the file ends after 1,100"),
        (pack({"a": b"x"})[:1024], "byte 1,024: the archive ends without its end mark; was it cut off?"),
        (pack({"a": b"x"}) + pack({"b": b"y"}), "byte 10,240: data after the end of the archive"),
    ],
)
def test_refusals(data: bytes, said: str) -> None:
    assert said in refusal(data)


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_of_a_gigabyte_is_not_read(tmp_path: Path, kind: bytes) -> None:
    """The file is that long, with a hole, so the claim is true; and Python's own reader would take it into memory."""
    path = tmp_path / "x.tar"
    path.write_bytes(header(kind, 2**30))
    os.truncate(path, 2**30 + 4096)
    with open(path, "rb") as file, pytest.raises(TarError, match=r"a header of 1,073,741,824 bytes, expected at most"):
        list(read_members(file.fileno(), 2**30 + 4096))


def pax(content: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    return header(kind, len(content)) + content + bytes(-len(content) % 512) + header(tarfile.REGTYPE, 0) + bytes(1024)


def test_an_extension_may_be_as_long_as_the_limit() -> None:
    name = "n" * 5000
    record = f" path={name}\n"
    record = f"{len(record) + 4}{record}"
    assert members_of(pax(record.encode()))[0].name == name
    comment = b"65536 comment=" + b"c" * (MAX_EXTENSION_BYTES - 15) + b"\n"
    assert [member.name for member in members_of(pax(comment))] == ["x"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"18 linkpath=/etc/\n", "a link"),
        (b"22 GNU.sparse.major=1\n", "a sparse file"),
        (b"13 size=-100\n", "a size of b'-100'"),
        (b"32 size=99999999999999999999999\n", "a size of b'999"),
        (b"23 size=99999999999999\n", "a member of 99,999,999,999,999 bytes, and the file ends after"),
        (b"12 path=/abs\n", "a malformed pax header"),
        (b"13 path=/abs\n", "'/abs' is an absolute path"),
        (b"10 path=a\0\n", "a malformed pax header"),
        (b"11 path=a\0\n", "a member called 'a\\x00'"),
        (b"0 path=a\n", "a malformed pax header"),
        (b"99999 path=a\n", "a malformed pax header"),
        (b"garbage", "a malformed pax header"),
    ],
)
def test_hostile_pax_headers(content: bytes, said: str) -> None:
    assert said in refusal(pax(content))


def test_a_name_for_all_members_is_refused() -> None:
    assert "gives all members one name" in refusal(pax(b"9 path=a\n", tarfile.XGLTYPE))


def test_a_number_of_members_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_index, "MAX_MEMBERS", 2)
    assert len(members_of(pack({"a": b"", "b": b""}))) == 2
    assert "byte 1,024: more than 2 members" in refusal(pack({"a": b"", "b": b"", "c": b""}))


@pytest.mark.parametrize("damage", [lambda d: d[:50] + b"\xff" + d[51:], lambda d: d[:148] + b"9" * 8 + d[156:]])
def test_a_header_that_does_not_add_up(damage: Callable[[bytes], bytes]) -> None:
    assert "byte 0: no tar header" in refusal(damage(pack({"a": b"x"})))


def test_a_negative_size() -> None:
    info = tarfile.TarInfo("a")
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 12  # -1 in base 256
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
    assert "byte 0: a member of -1 bytes" in refusal(bytes(block) + bytes(1024))
