"""Where the regular files of an uncompressed tar stand, found header by header, without trusting the archive.

Only headers are read and nothing is ever extracted. What has no place in a set of photos is refused by name: links,
devices and pipes, sparse files, absolute paths and `..`, a name twice, headers that claim more than they may. Names may
be long in the ways of POSIX (pax) and of GNU tar.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

MAX_MEMBERS = 2**24
MAX_EXTENSION_BYTES = 2**16
"""Of a header that extends the one that follows, such as a long name."""

_BLOCK = tarfile.BLOCKSIZE
_ZEROS = bytes(_BLOCK)
_REFUSED = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.GNUTYPE_LONGLINK: "a link with a long name",
}
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_GZIP, _ZSTD, _XZ = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ"


class TarError(ValueError):
    """An archive that is damaged or holds what is refused; says what, at which byte."""

    def __init__(self, offset: int, what: str) -> None:
        super().__init__(f"byte {offset:,}: {what}")


class Member(NamedTuple):
    """A regular file of the archive."""

    name: str
    offset: int
    """Of its content."""
    num_bytes: int


def read_members(
    descriptor: int, file_bytes: int, on_bytes: Callable[[int], None] = lambda _: None
) -> Iterator[Member]:
    """The regular files of a tar, in its order.

    Args:
        descriptor: of the open archive.
        file_bytes: its length.
        on_bytes: told how far the archive has been gone through.

    Raises:
        TarError: see the module's text; also an archive that is compressed, cut off, or followed by something else.
        OSError: the disk or the network fails.
    """
    seen: set[str] = set()
    longer_name, size_override = "", None
    offset = 0
    while True:
        block = os.pread(descriptor, _BLOCK, offset)
        if block == _ZEROS:
            _check_end(descriptor, offset, file_bytes)
            return
        header = _parse_header(block, offset)
        content = offset + _BLOCK
        size = header.size if size_override is None else size_override
        if size < 0 or content + size > file_bytes:
            raise TarError(offset, f"a member of {size:,} bytes, and the file ends after {file_bytes:,}")
        if header.type in (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
            longer_name, size_override = _read_extension(descriptor, header, offset, longer_name, size_override)
        else:
            name = longer_name or header.name
            longer_name, size_override = "", None
            if header.type in _REFUSED:
                raise TarError(offset, f"{name!r} is {_REFUSED[header.type]}")
            _check_name(name, offset)
            if header.type in _REGULAR and not name.endswith("/"):
                if name in seen:
                    raise TarError(offset, f"{name!r} stands there twice")
                seen.add(name)
                if len(seen) > MAX_MEMBERS:
                    raise TarError(offset, f"more than {MAX_MEMBERS:,} members")
                if len(seen) % 4096 == 0:
                    on_bytes(offset)
                yield Member(name, content, size)
            elif header.type not in (*_REGULAR, tarfile.DIRTYPE):
                raise TarError(offset, f"{name!r} is of the unknown type {header.type!r}")
        offset = content + size + -size % _BLOCK


def _parse_header(block: bytes, offset: int) -> tarfile.TarInfo:
    """One header block; its checksum is checked."""
    if offset == 0:
        for magic, kind in ((_GZIP, "gzip"), (_ZSTD, "zstd"), (_XZ, "xz")):
            if block.startswith(magic):
                raise TarError(0, f"a file compressed with {kind}, expected a plain tar; unpack it to one first")
    if len(block) < _BLOCK:
        raise TarError(offset, "the archive ends without its end mark; was it cut off?")
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise TarError(offset, f"no tar header ({error})") from None


def _read_extension(
    descriptor: int, header: tarfile.TarInfo, offset: int, name: str, size: int | None
) -> tuple[str, int | None]:
    """Name and size of the member that follows, from a header that extends the next one's."""
    if header.size > MAX_EXTENSION_BYTES:
        raise TarError(offset, f"a header of {header.size:,} bytes, expected at most {MAX_EXTENSION_BYTES:,}")
    content = os.pread(descriptor, header.size, offset + _BLOCK)
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return content.rstrip(b"\0").decode("utf-8", "surrogateescape"), size
    for key, value in _pax_records(content, offset):
        if key.startswith(b"GNU.sparse"):
            raise TarError(offset, "a sparse file")
        if key == b"linkpath":
            raise TarError(offset, "a link")
        if key in (b"path", b"size") and header.type == tarfile.XGLTYPE:
            raise TarError(offset, "a header that gives all members one name or size")
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif key == b"size":
            if not (value.isdigit() and len(value) < 19):
                raise TarError(offset, f"a size of {value[:32]!r}")
            size = int(value)
    return name, size


def _pax_records(content: bytes, offset: int) -> Iterator[tuple[bytes, bytes]]:
    """POSIX pax: `LENGTH KEY=VALUE\\n`, where the length counts the whole record."""
    place = 0
    while place < len(content):
        digits = content[place : place + 8].split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() else 0
        record = content[place + len(digits) + 1 : place + length]
        key, separator, value = record.partition(b"=")
        if not (separator and value.endswith(b"\n") and place + length <= len(content)):
            raise TarError(offset, "a malformed pax header")
        yield key, value[:-1]
        place += length


def _check_name(name: str, offset: int) -> None:
    if not name or "\0" in name:
        raise TarError(offset, f"a member called {name!r}")
    if name.startswith("/"):
        raise TarError(offset, f"{name!r} is an absolute path")
    if ".." in name.split("/"):
        raise TarError(offset, f"{name!r} leads out of the archive")


def _check_end(descriptor: int, offset: int, file_bytes: int) -> None:
    """After the end mark only zeros may follow: what else stands there would be lost without a word."""
    while offset < file_bytes:
        block = os.pread(descriptor, 2**20, offset)
        if block.count(0) < len(block):
            place = offset + len(block) - len(block.lstrip(b"\0"))
            raise TarError(place, "data after the end of the archive; were several tars put together?")
        if not block:
            return
        offset += len(block)
