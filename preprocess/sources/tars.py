"""WebDataset tars: members `KEY.jpg` with their label in `KEY.cls` or `KEY.json`, or `IDENTITY/PHOTO.jpg`."""

from __future__ import annotations

import json
import os
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa

from pipeline.config.errors import UserError
from preprocess.photo import PHOTO_SUFFIXES, Reject
from preprocess.sources.listing import OnBytes, Rows
from preprocess.sources.store import ContainerFiles, ContainerPhotos, PhotoStore, Place, container_stamp, read_part
from preprocess.storage import storage_error
from preprocess.tar_index import Member, TarError, read_members

_MAX_LABEL_BYTES = 2**16
_JSON_KEYS = ("identity", "label", "cls")
_LABELS = "KEY.cls, or KEY.json with one of identity, label and cls, or a folder named after the person"


@dataclass(frozen=True)
class TarPhotos(ContainerPhotos):
    """Photos in tars, addressed as `photos.tar!a/b.jpg`."""

    def container_of(self, source: str) -> str:
        return source[: source.index(".tar!") + len(".tar")]

    def read(self, place: Place) -> bytes:
        assert place.offset is not None
        assert place.num_bytes is not None
        name = self.container_of(place.source)
        data = read_part(self.open_container(name), place.offset, place.num_bytes, self.root / name)
        if len(data) < place.num_bytes:
            raise Reject("truncated")
        return data


@dataclass
class _Sample:
    """The members of one key."""

    photos: list[Member] = field(default_factory=list)
    label: Member | None = None
    label_kind: str = ""


@dataclass(frozen=True)
class TarSource(ContainerFiles):
    """Tars of one folder to be listed."""

    def photos(self) -> PhotoStore:
        return TarPhotos(self.root, self.stamps())

    def list_rows(self, on_bytes: OnBytes) -> tuple[pa.Table, list[str]]:
        """One row a photo, by the tars' names and then by their members'.

        Raises:
            UserError: a tar is damaged or holds what is refused (see `preprocess.tar_index`), or a photo has no label.
        """
        rows = Rows()
        passed_over: Counter[str] = Counter()
        done = 0
        for name in sorted(self.names):
            path = self.root / name
            size = container_stamp(path).num_bytes
            try:
                with open(path, "rb") as file:
                    members = list(read_members(file.fileno(), size, partial(_report, on_bytes, done)))
                    self._add(rows, name, file.fileno(), _samples(members, passed_over))
            except TarError as error:
                raise UserError(path, str(error)) from None
            except OSError as error:
                raise storage_error(path, "cannot be read", error) from None
            done += size
            on_bytes(done)
        notes = [f"passed over {count:,} members: {reason}" for reason, count in sorted(passed_over.items())]
        return rows.sorted_by_source(), notes

    def _add(self, rows: Rows, name: str, descriptor: int, samples: dict[str, _Sample]) -> None:
        for key, sample in samples.items():
            for photo in sample.photos:
                where = f"{self.root / name}!{_shown(photo.name)}"
                identity = _identity(where, key, sample, descriptor)
                is_utf8 = _shown(photo.name) == photo.name
                rows.add(
                    f"{name}!{_shown(photo.name)}",
                    identity,
                    problem="" if is_utf8 else "bad_name",
                    offset=photo.offset,
                    num_bytes=photo.num_bytes,
                )


def _report(on_bytes: OnBytes, before: int, here: int) -> None:
    on_bytes(before + here)


def _samples(members: Sequence[Member], passed_over: Counter[str]) -> dict[str, _Sample]:
    """Members by key. As webdataset does it, a key ends at the first dot of the base name."""
    samples: dict[str, _Sample] = {}
    for member in members:
        folder, base = posixpath.split(member.name)
        stem, _, extension = base.partition(".")
        if not stem:
            passed_over["hidden"] += 1
            continue
        key = posixpath.join(folder, stem)
        kind = extension.lower()
        if kind in ("cls", "json"):
            sample = samples.setdefault(key, _Sample())
            if sample.label is None or kind == "cls":  # of both, the plainer one
                sample.label, sample.label_kind = member, kind
        elif f".{kind.rpartition('.')[2]}" in PHOTO_SUFFIXES:
            samples.setdefault(key, _Sample()).photos.append(member)
        else:
            passed_over["neither a photo nor a label"] += 1
    num_alone = sum(not sample.photos for sample in samples.values())
    if num_alone:
        passed_over["labels without a photo"] += num_alone
    return samples


def _identity(where: str, key: str, sample: _Sample, descriptor: int) -> str:
    if sample.label is None:
        folder = key.removeprefix("./").split("/", 1)[0] if "/" in key.removeprefix("./") else ""
        if not folder:
            raise UserError(where, "no label", _LABELS)
        return _shown(folder)
    if sample.label.num_bytes > _MAX_LABEL_BYTES:
        raise UserError(where, f"a label of {sample.label.num_bytes:,} bytes", f"at most {_MAX_LABEL_BYTES:,}")
    content = os.pread(descriptor, sample.label.num_bytes, sample.label.offset)
    identity = _parse_label(content, sample.label_kind)
    if identity is None:
        raise UserError(where, f"label {content[:60].decode(errors='replace')!r}", _LABELS)
    return identity


def _parse_label(content: bytes, kind: str) -> str | None:
    """The identity that a label's text gives, or None."""
    try:
        text = content.decode().strip()
        if kind == "cls":
            return text or None
        tree = json.loads(text)
    except (ValueError, RecursionError):
        return None
    found = next((tree[name] for name in _JSON_KEYS if name in tree), None) if isinstance(tree, dict) else None
    is_name = isinstance(found, int | str) and not isinstance(found, bool) and found != ""
    return str(found) if is_name else None


def _shown(name: str) -> str:
    """A name that can stand in Parquet: bytes that are not UTF-8 are written out."""
    return os.fsencode(name).decode(errors="backslashreplace")
