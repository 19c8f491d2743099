"""Verification sets: pickles of all kinds in which they exist, and pickles that would do something else."""

from __future__ import annotations

import os
import pickle
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.errors import UserError
from pipeline.data.pair_bin import PairBin, read_pair_bin

IMAGES = [b"\xff\xd8one", b"\xff\xd8" + b"\x80two" * 100, b"\x89PNG3", b""]
EXPECTED = PairBin(IMAGES, [True, False])


def read(tmp_path: Path, data: bytes) -> PairBin:
    (tmp_path / "x.bin").write_bytes(data)
    return read_pair_bin(tmp_path / "x.bin")


def refusal(tmp_path: Path, data: bytes) -> str:
    with pytest.raises(UserError) as caught:
        read(tmp_path, data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("numpy_bools", [False, True])
def test_python3(tmp_path: Path, protocol: int, arrays: bool, numpy_bools: bool) -> None:
    images = [np.frombuffer(image, np.uint8).copy() for image in IMAGES] if arrays else IMAGES
    same = [np.bool_(True), np.bool_(False)] if numpy_bools else [True, False]
    found = read(tmp_path, pickle.dumps((images, same), protocol))
    assert found.is_same == [True, False]
    assert found.images == [bytes(image) for image in images]


def python2(images: list[bytes], same: list[bool]) -> bytes:
    """As Python 2's `cPickle.dump((images, same), file, 2)` writes it, operation by operation."""
    out = b"\x80\x02]q\x01("
    for number, image in enumerate(images):
        short = len(image) < 256
        out += (b"U" + bytes([len(image)]) if short else b"T" + struct.pack("<i", len(image))) + image
        out += b"q" + bytes([number + 2])
    out += b"e]q\x64("
    out += b"".join(b"\x88" if each else b"\x89" for each in same)
    return out + b"e\x86q\x65."


def test_python2_strings(tmp_path: Path) -> None:
    assert read(tmp_path, python2(IMAGES, [True, False])) == EXPECTED


def test_python2_arrays(tmp_path: Path) -> None:
    """NumPy's pickles of Python 2 hold byte strings where those of Python 3 hold text."""
    image = b"\xff\xd8\xfe"
    dtype = b"cnumpy\ndtype\nq\x01U\x02u1q\x02K\x00K\x01\x87q\x03Rq\x04"
    dtype += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x03\x85" + dtype
    array += b"\x89U\x03" + image + b"tb"
    data = b"\x80\x02](" + array * 2 + b"e](I01\ne\x86."
    assert read(tmp_path, data) == PairBin([image, image], [True])


class Caller:
    def __init__(self, function: object, *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self._call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "arguments"),
    [(os.system, ("touch MARK",)), (exec, ("import pathlib; pathlib.Path('MARK').touch()",)), (os.mkdir, ("MARK",))],
)
def test_calls_are_refused_and_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, function: object, arguments: tuple[object, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps(([Caller(function, *arguments)], [True]), protocol)
    said = refusal(tmp_path, data)
    assert "a pickle that calls " in said or "operation" in said
    assert not (tmp_path / "MARK").exists()
    pickle.loads(data)
    assert (tmp_path / "MARK").exists()  # so would `pickle` have done


def test_other_ways_to_call_are_refused(tmp_path: Path) -> None:
    assert "calls os.system" in refusal(tmp_path, b"cos\nsystem\n(U\x02idtR.")
    assert "the operation INST" in refusal(tmp_path, b"(U\x02idios\nsystem\n.")
    assert "the operation OBJ" in refusal(tmp_path, b"(U\x02ido.")
    assert "calls numpy.load" in refusal(tmp_path, b"\x80\x02cnumpy\nload\nU\x01x\x85R.")
    assert "calls builtins.getattr" in refusal(tmp_path, b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.")
    assert "by something else than text" in refusal(tmp_path, b"\x80\x04K\x01K\x02\x93.")
    assert "the operation PERSID" in refusal(tmp_path, b"Pid\n.")
    assert "the operation EXT1" in refusal(tmp_path, b"\x82\x01.")
    assert "calls what is no function" in refusal(tmp_path, b"\x80\x02cnumpy\nndarray\n)R.")
    assert "calls bytes with arguments" in refusal(tmp_path, b"\x80\x02c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.")
    assert "the operation NEWOBJ" in refusal(tmp_path, b"\x80\x02cnumpy\nndarray\n)\x81.")
    assert "fills something else than an array" in refusal(tmp_path, b"\x80\x02]}b."[:3] + b"]b.")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc",  # bytes of 4 exabytes
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc",
        b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b"abc",
        b"\x80\x02T" + struct.pack("<i", -1) + b"abc",
        b"\x80\x02X" + struct.pack("<I", 2**32 - 1) + b"abc",
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"abc",
        b"\x80\x02]r" + struct.pack("<I", 2**32 - 1) + b"]j" + struct.pack("<I", 2**31) + b".",  # kept far away
        b"\x80\x04\x95" + struct.pack("<Q", 2**63 - 1) + b"].",
        b"I" + b"9" * 100_000 + b"\n.",
    ],
)
def test_claims_cost_no_memory(tmp_path: Path, data: bytes) -> None:
    tracemalloc.start()
    refusal(tmp_path, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_copies_are_counted(tmp_path: Path) -> None:
    """One long text, made into bytes again and again: a kilobyte of operations for gigabytes."""
    text = b"X" + struct.pack("<I", 2**20) + b"a" * 2**20 + b"q\x01X\x06\x00\x00\x00latin1q\x02"
    again = b"c_codecs\nencode\nh\x01h\x02\x86R"
    data = b"\x80\x02](" + text + again * 100 + b"e]\x86."
    assert "makes more than it holds" in refusal(tmp_path, data)


def test_nested_references_are_not_followed(tmp_path: Path) -> None:
    """40 doublings: a trillion items if anything walked or printed them."""
    bomb = b"K\x01q\x00" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(40))
    assert "image 0 is a tuple" in refusal(tmp_path, b"\x80\x02" + bomb + b".")
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n)U\x01b\x87R"
    array += b"(K\x01h\x28cnumpy\ndtype\nU\x02u1\x85R\x89U\x01xtb"
    assert "several rows" in refusal(tmp_path, b"\x80\x02" + bomb + b"](" + array + b"e]\x86.")
    assert "pair 0 is a tuple" in refusal(tmp_path, b"\x80\x02" + bomb + b"](U\x01aU\x01be](h\x28e\x86.")


def test_too_many_operations(tmp_path: Path) -> None:
    assert "more than 1,000,000 operations" in refusal(tmp_path, b"\x80\x02](" + b"N" * 1_000_001 + b"e.")


def test_depth_is_no_trouble(tmp_path: Path) -> None:
    assert "something else" in refusal(tmp_path, b"\x80\x02)" + b"\x85" * 500_000 + b".")
    assert sys.getrecursionlimit() < 500_000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "a pickle of something else"),
        (([b"a", b"b"], [True], []), "a pickle of something else"),
        (([b"a", b"b", b"c"], [True]), "3 images and 1 pairs; expected two images a pair"),
        (([], []), "0 images and 0 pairs"),
        (([b"a", None], [True]), "image 1 is a nonetype; expected encoded bytes"),
        (([b"a", "text"], [True]), "image 1 is a str"),
        (([b"a", b"b"], [2]), "pair 0 is a int; expected True or False"),
        (([np.zeros((4, 4, 3), np.uint8)] * 2, [True]), "an array of several rows"),
        (([np.zeros(4, np.float32)] * 2, [True]), "an array of another type than uint8"),
        (([np.zeros(4, object)] * 2, [True]), "an array of another type than uint8"),
        (([{}, b"b"], [True]), "the operation EMPTY_DICT"),
    ],
)
def test_other_content(tmp_path: Path, content: object, said: str) -> None:
    assert said in refusal(tmp_path, pickle.dumps(content, 2))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "not a pickle (pickle exhausted before seeing STOP)"),
        (b"\xff\xd8\xff a photo", "not a pickle"),
        (b"\x80\x02]q", "not a pickle"),
        (b".", "takes more than it gave"),
        (b"(.", "takes more than it gave"),
        (b"](\x85.", "takes more than it gave"),
        (b"a.", "takes more than it gave"),
        (b"e.", "without a mark"),
        (b"K\x01K\x01a.", "changes something else than a list"),
        (b"h\x07.", "recalls what it has not kept"),
    ],
)
def test_garbage(tmp_path: Path, data: bytes, said: str) -> None:
    assert said in refusal(tmp_path, data)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.bin: cannot be read \(No such file or directory\)"):
        read_pair_bin(tmp_path / "no.bin")
