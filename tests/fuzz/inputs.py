"""Inputs for each reader: valid files, mutated ones, and pieces of the format put together at random."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import struct
import tarfile

_INTERESTING = (0, 1, 2, 3, 7, 8, 24, 255, 256, 511, 512, 2**16, 2**24, 2**29 - 1, 2**29, 2**31 - 1, 2**31, 2**32 - 1)
_WIDE = (*_INTERESTING, 2**33, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_MAGIC = struct.pack("<I", 0xCED7230A)


def rec_pair(rng: random.Random) -> tuple[bytes, bytes | None]:
    """A `.rec` file and mostly a `.idx` that belongs to it, one or both damaged."""
    records = [_record(rng, key) for key in range(rng.randint(1, 6))]
    data, lines = b"", []
    for key, record in enumerate(records):
        lines.append(b"%d\t%d\n" % (key, len(data)))
        data += record
    idx = b"".join(lines)
    damaged = rng.choice(("rec", "idx", "both", "none"))
    if damaged in ("rec", "both"):
        data = mutate(rng, data)
    if damaged in ("idx", "both"):
        idx = mutate(rng, idx)
    return data, (idx if rng.random() < 0.7 else None)


def tar(rng: random.Random) -> bytes:
    """A tar of a few members of any kind; most checksums are right, or nothing behind them would be reached."""
    buffer = io.BytesIO()
    kind = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=buffer, mode="w:", format=kind) as archive:
        for number in range(rng.randint(0, 5)):
            info = tarfile.TarInfo(_name(rng, number, 80 if kind == tarfile.USTAR_FORMAT else 150))
            content = rng.choice((b"7", b'{"label": 3}', b"\xff\xd8\xff" + rng.randbytes(600)))
            if rng.random() < 0.1:
                info.type = rng.choice((b"1", b"2", b"3", b"5", b"6", b"x", b"g", b"L", b"K", b"S", b"Z"))
                info.linkname = rng.choice(("", "/etc/passwd"))
            info.size = len(content) if info.type in (b"0", b"x", b"g", b"L", b"K", b"S") else 0
            archive.addfile(info, io.BytesIO(content))
    data = buffer.getvalue()
    if rng.random() < 0.8:
        data = mutate(rng, data)
        if rng.random() < 0.8:
            data = _with_right_checksums(data)
    return data


def pair_bin(rng: random.Random) -> bytes:
    """A pickle: of a verification set, mutated; or operations in a row."""
    if rng.random() < 0.5:
        images = [rng.randbytes(rng.choice((0, 5, 300))) for _ in range(4)]
        tree: object = (images, [True, False])
        if rng.random() < 0.3:
            import numpy as np

            tree = ([np.frombuffer(image, np.uint8) for image in images], [np.bool_(True), np.bool_(False)])
        return mutate(rng, pickle.dumps(tree, rng.randint(0, 5)))
    pieces = [_operation(rng) for _ in range(rng.randint(1, 40))]
    return b"".join(pieces) + b"."


def mutate(rng: random.Random, data: bytes) -> bytes:
    """One to eight changes at random places."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        place = rng.randrange(len(content) + 1)
        end = min(len(content), place + rng.choice((1, 4, 8, 64, 512)))
        change = rng.randrange(8)
        if change == 0 and content:
            content[place % len(content)] ^= 1 << rng.randrange(8)
        elif change == 1:
            content[place:end] = rng.randbytes(end - place)
        elif change == 2:
            del content[place:end]
        elif change == 3:
            content[place:place] = content[place:end]
        elif change == 4:
            content[place:place] = rng.randbytes(rng.choice((1, 4, 16)))
        elif change == 5:
            packed = struct.pack(rng.choice("<>") + "Q", rng.choice(_WIDE))
            content[place : place + 8] = packed
        elif change == 6:
            packed = struct.pack(rng.choice("<>") + "I", rng.choice(_INTERESTING))
            content[place : place + 4] = packed
        else:
            del content[place:]
    return bytes(content)


def _record(rng: random.Random, key: int) -> bytes:
    """A record, one in five with something odd in its header or its framing."""
    is_odd = rng.random() < 0.2
    flag = rng.choice(_INTERESTING) if is_odd else rng.choice((0, 0, 2))
    label = rng.choice((-1.0, float("nan"), float("inf"), 2.0**24)) if is_odd else float(rng.randint(0, 9))
    labels = struct.pack("<ff", label, 7.0)
    payload = struct.pack("<IfQQ", flag, label, rng.choice(_WIDE) if is_odd else key, 0)
    payload += labels[: 4 * min(flag, 2)] + rng.randbytes(rng.choice((0, 3, 40, 300)))
    if rng.random() < 0.3:
        place = rng.randrange(len(payload) + 1)
        parts = [payload[:place], *([b""] if rng.random() < 0.5 else []), payload[place:]]
        flags = [1, *([2] * (len(parts) - 2)), 3]
    else:
        parts, flags = [payload], [rng.choice((1, 2, 3, 5)) if is_odd else 0]
    return b"".join(
        _MAGIC + struct.pack("<I", each << 29 | len(part)) + part + bytes(-len(part) % 4)
        for each, part in zip(flags, parts, strict=True)
    )


def _name(rng: random.Random, number: int, longest: int) -> str:
    """A name, one in five an odd one."""
    odd = ("/abs", "../up", "x/../y", "é", ".hidden", "")
    stem = rng.choice(odd if rng.random() < 0.2 else ("a/b", "b/c", "./d/e", "f/" + "n" * longest))
    place = rng.choice((number, number, number, 0))
    return f"{stem}{place}.{rng.choice(('jpg', 'jpg', 'png', 'cls', 'json', 'txt', 'tar.jpg'))}"


def _with_right_checksums(data: bytes) -> bytes:
    content = bytearray(data)
    for start in range(0, len(content) - 511, 512):
        if content[start + 257 : start + 262] == b"ustar":
            content[start + 148 : start + 156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    return bytes(content)


_GLOBALS = (
    *(b"numpy.core.multiarray\n_reconstruct", b"numpy\nndarray", b"numpy\ndtype", b"numpy.core.multiarray\nscalar"),
    *(b"numpy.core.numeric\n_frombuffer", b"_codecs\nencode", b"__builtin__\nbytes", b"os\nsystem"),
)


def _operation(rng: random.Random) -> bytes:
    """One operation of a pickle with an argument that fits, or claims not to."""
    operation = rng.choice(pickletools.opcodes) if rng.random() < 0.2 else None
    if operation is not None:
        return operation.code.encode("latin-1") + rng.randbytes(rng.choice((0, 1, 4, 8)))
    size = rng.choice((0, 1, 2, 5, rng.choice(_WIDE)))
    content = rng.choice((b"", b"u1", b"latin1", b"\x01", b"abcde"))
    return rng.choice(
        (
            *(b"(", b"]", b")", b"e", b"a", b"l", b"t", b"\x85", b"\x86", b"\x87", b"R", b"b", b"N", b"\x88", b"\x89"),
            *(b"\x93", b"\x94", b"K" + rng.randbytes(1), b"M" + rng.randbytes(2), b"J" + rng.randbytes(4)),
            *(b"q" + bytes([rng.randrange(4)]), b"h" + bytes([rng.randrange(4)])),
            *(b"r" + struct.pack("<I", size % 2**32), b"j" + struct.pack("<I", size % 2**32)),
            *(b"U" + bytes([size % 256]) + content, b"T" + struct.pack("<I", size % 2**32) + content),
            *(b"C" + bytes([size % 256]) + content, b"B" + struct.pack("<I", size % 2**32) + content),
            *(b"\x8e" + struct.pack("<Q", size) + content, b"\x96" + struct.pack("<Q", size) + content),
            *(b"X" + struct.pack("<I", size % 2**32) + content, b"\x8c" + bytes([size % 256]) + content),
            *(b"X" + struct.pack("<I", len(content)) + content, b"U" + bytes([len(content)]) + content),
            *(b"c" + rng.choice(_GLOBALS) + b"\n", b"\x8a" + bytes([size % 256]) + content),
            *(
                b"I%d\n" % size,
                b"I01\n",
                b"\x95" + struct.pack("<Q", size),
                b"p%d\n" % (size % 7),
                b"g%d\n" % (size % 7),
            ),
        )
    )
