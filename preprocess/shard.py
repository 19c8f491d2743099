"""One shard: photos in; a tar, its index, a manifest and a commit record out.

The unit of parallel work is a slice, `SLICE_ROWS` consecutive rows of a shard, whose crops wait in `OUT/.work` until
the shard is put together. Each step may be repeated, or done twice at once, and gives the same bytes; so a killed run
loses the slices in progress and nothing else. `process_shard` is all of it, for one worker that has the plan and the
photos.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.atomic_write import write_atomically
from pipeline.data.dataset_format import MANIFEST_SCHEMA, STATUS_KEPT, STATUS_REJECTED, ShardCommit, shard_paths
from preprocess.crops import CropMaker, CropResult, PhotoRequest
from preprocess.ledger import write_ledger
from preprocess.measure import head_pose, phash, sharpness
from preprocess.photo import encode_jpeg, make_thumbnail
from preprocess.plain_jpeg import is_plain_jpeg
from preprocess.plan import Plan, ShardOptions, ShardPlan
from preprocess.sources.store import PhotoStore, Place
from preprocess.storage import work_folder, write_parquet
from preprocess.work_times import ENCODE

SLICE_ROWS = 32
_MEASURED = (
    *("sample_id", "source_sha256", "width", "height", "det_score", "bbox", "landmarks"),
    *("sharpness", "yaw", "pitch", "roll", "phash", "reject_reason"),
)
_STAMP = ("source_bytes", "source_mtime_ns")
SLICE_SCHEMA = pa.schema(
    [
        *(MANIFEST_SCHEMA.field(name) for name in _MEASURED),
        ("jpg", pa.binary()),  # the encoded crop; null for a reject
        ("thumbnail", pa.binary()),  # of a reject that decoded, and of a photo with several faces
        ("num_faces", pa.int32()),  # detected, sure and large enough; null where it is not known
        ("source_bytes", pa.int64()),  # when it was read, as is the next; null where there was no file
        ("source_mtime_ns", pa.int64()),
    ]
)


@dataclass(frozen=True)
class ShardContext:
    """What every worker must know, besides the rows."""

    photos: PhotoStore
    out: Path
    options: ShardOptions
    plan_hash: str


def process_shard(plan: Plan, number: int, photos: PhotoStore, out: Path, maker: CropMaker) -> ShardCommit:
    """Make shard `number` of the plan, or do nothing when it is committed already.

    Raises:
        UserError: the photos cannot be read, or are no longer there.
    """
    context = ShardContext(photos, out, plan.options, plan.hash)
    shard = plan.shard(number)
    done = read_commit(context.out, shard, plan.hash)
    if done is not None:
        return done
    for index in range(num_slices(shard)):
        process_slice(context, shard.name, index, slice_rows(shard, index), maker)
    return finish_shard(context, shard)


def num_slices(shard: ShardPlan) -> int:
    """How many slices a shard has; the last may be short."""
    return -(-len(shard.rows) // SLICE_ROWS)


def slice_rows(shard: ShardPlan, index: int) -> pa.Table:
    """Slice `index` of a shard, copied: a view would drag the whole plan through a pipe to another process."""
    start = index * SLICE_ROWS
    return shard.rows.take(pa.array(range(start, min(start + SLICE_ROWS, len(shard.rows)))))


def slice_path(out: Path, shard_name: str, index: int) -> Path:
    """Where a finished slice waits for its shard."""
    return work_folder(out) / shard_name / f"{index:06d}.arrow"


def process_slice(context: ShardContext, shard_name: str, index: int, rows: pa.Table, maker: CropMaker) -> None:
    """Make the crops of a slice, unless they wait already, of photos whose size and time have not changed since.

    Raises:
        UserError: the photos cannot be read, or are no longer there.
        MemoryError: there is not enough memory for a photo.
    """
    path = slice_path(context.out, shard_name, index)
    stamps = [_stamp(context, row) for row in rows.select(["source", "problem"]).to_pylist()]
    waiting = _read_slice(path, context.plan_hash, rows)
    if waiting is not None and waiting.select(list(_STAMP)).to_pylist() == stamps:
        return
    listed = rows.to_pylist()
    made = [{**columns, **stamp} for columns, stamp in zip(_process_rows(context, listed, maker), stamps, strict=True)]
    context.photos.check_reachable(_missing(rows, made))
    write_slice(context, shard_name, index, pa.Table.from_pylist(made, schema=SLICE_SCHEMA))
    maker.times.leave(context.out, len(rows))


def write_slice(context: ShardContext, shard_name: str, index: int, made: pa.Table) -> None:
    """Leave a slice, with `SLICE_SCHEMA`, where `finish_shard` looks for it."""
    table = made.replace_schema_metadata({"plan": context.plan_hash})

    def write(file: IO[bytes]) -> None:
        with pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)

    write_atomically(slice_path(context.out, shard_name, index), write, work_folder(context.out))


def finish_shard(context: ShardContext, shard: ShardPlan) -> ShardCommit:
    """Put a shard together from its slices: tar, index, manifest, ledger, and the commit record last.

    Raises:
        RuntimeError: a slice is missing, or what was written does not read back as it should.
    """
    out, work = context.out, work_folder(context.out)
    slices = []
    for index in range(num_slices(shard)):
        rows = shard.rows.slice(index * SLICE_ROWS, SLICE_ROWS)
        table = _read_slice(slice_path(out, shard.name, index), context.plan_hash, rows)
        if table is None:
            raise RuntimeError(f"slice {index} of {shard.name} is missing; was {work} changed during the run?")
        slices.append(table)
    made = pa.concat_tables(slices)
    paths = shard_paths(out, shard.split, shard.name)
    written: dict[str, Any] = {}

    def write(file: IO[bytes]) -> None:
        members = list(_members(shard.rows, made))
        offsets = write_tar(file, members)
        file.flush()
        written["offsets"] = offsets
        written["idx"] = build_idx(Path(file.name))
        written["sha256"], written["bytes"] = _check_tar(Path(file.name), members, offsets)

    write_atomically(paths["tar"], write, work)
    write_atomically(paths["idx"], written["idx"], work)
    manifest = _manifest(shard, made, written["offsets"])
    write_parquet(manifest, paths["manifest"], work)
    write_ledger(out, shard.name, manifest, made["thumbnail"].to_pylist(), made["num_faces"].to_pylist())
    num_kept = len(written["offsets"])
    commit = ShardCommit(
        shard=shard.name,
        split=shard.split,
        plan_hash=context.plan_hash,
        num_samples=num_kept,
        num_rejected=len(made) - num_kept,
        tar_bytes=written["bytes"],
        tar_sha256=written["sha256"],
        idx_sha256=hashlib.sha256(written["idx"]).hexdigest(),
        manifest_sha256=hashlib.sha256(paths["manifest"].read_bytes()).hexdigest(),
    )
    text = json.dumps(commit.model_dump(), indent=1) + "\n"
    write_atomically(paths["commit"], text.encode(), work)
    shutil.rmtree(work / shard.name, ignore_errors=True)
    return commit


def read_commit(out: Path, shard: ShardPlan, plan_hash: str) -> ShardCommit | None:
    """The commit record of a shard that is finished under this plan, or None. File sizes are checked, not hashes."""
    paths = shard_paths(out, shard.split, shard.name)
    try:
        commit = ShardCommit.model_validate_json(paths["commit"].read_text())
        complete = paths["tar"].stat().st_size == commit.tar_bytes
        complete = complete and paths["idx"].is_file() and paths["manifest"].is_file()
    except (OSError, ValueError):
        return None
    return commit if complete and commit.plan_hash == plan_hash else None


def build_idx(tar: Path) -> bytes:
    """The index that DALI's `wds2idx` would write for a tar, byte for byte.

    One line a sample: extension, byte offset, size and name of each member.
    """
    samples: list[list[str]] = []
    last = None
    with tarfile.open(tar, "r:") as archive:
        for member in archive:
            stem, _, extension = member.name.partition(".")
            if stem != last:
                samples.append([])
                last = stem
            samples[-1].append(f"{extension} {member.offset_data} {member.size} {member.name}")
    lines = [f"v1.2 {len(samples)}", *(" ".join(sample) for sample in samples)]
    return ("\n".join(lines) + "\n").encode()


def write_tar(file: IO[bytes], members: list[tuple[str, int, bytes]]) -> list[int]:
    """Write an uncompressed USTAR archive without a trace of time or user; returns the offset of each JPEG's data."""
    offsets = []
    with tarfile.open(fileobj=file, mode="w:", format=tarfile.USTAR_FORMAT) as archive:
        for key, label, jpg in members:
            for extension, content in (("cls", str(label).encode()), ("jpg", jpg)):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(content)
                info.mtime = 0
                info.mode = 0o644
                if extension == "jpg":
                    offsets.append(archive.offset + tarfile.BLOCKSIZE)
                archive.addfile(info, io.BytesIO(content))
    return offsets


def key_of(sample_id: int) -> str:
    """The tar members' common stem."""
    return f"{sample_id:09d}"


def _process_rows(context: ShardContext, rows: Sequence[dict[str, Any]], maker: CropMaker) -> Iterator[dict[str, Any]]:
    """Columns of `SLICE_SCHEMA` for each photo; what does not apply is left out and becomes null."""
    results = maker.make_all(_request(context, row) for row in rows if not row["problem"])
    for row in rows:
        if row["problem"]:
            yield {**_nothing(row), "reject_reason": row["problem"]}
            continue
        try:
            result = next(results)
        except cv2.error as error:
            if error.code == cv2.Error.StsNoMem:
                raise MemoryError(str(error)) from None
            raise
        yield _describe(context, row, result, maker)


def _request(context: ShardContext, row: dict[str, Any]) -> PhotoRequest:
    bbox = None if row["bbox"] is None else np.array(row["bbox"], np.float32)
    landmarks = None if row["landmarks"] is None else np.array(row["landmarks"], np.float32).reshape(5, 2)
    return PhotoRequest(partial(context.photos.read, _place(row)), bbox, landmarks)


def _describe(context: ShardContext, row: dict[str, Any], result: CropResult, maker: CropMaker) -> dict[str, Any]:
    made = {
        **_nothing(row),
        "source_sha256": result.source_sha256,
        "width": result.width,
        "height": result.height,
        "reject_reason": result.reject_reason,
        "num_faces": result.num_faces,
    }
    if result.pixels is not None and (result.crop is None or result.num_faces > 1):
        made["thumbnail"] = make_thumbnail(result.pixels)
    if result.crop is None:
        return made
    with maker.times.stage(ENCODE):
        made["jpg"] = _stored_jpeg(context, _place(row), result, result.crop)
        made["sharpness"] = sharpness(result.crop)
        made["phash"] = phash(result.crop)
    return {**made, **_describe_face(result)}


def _stored_jpeg(context: ShardContext, place: Place, result: CropResult, crop: npt.NDArray[np.uint8]) -> bytes:
    """The photo's own bytes where the options ask for them and they will do, else the crop [H, W, 3] encoded."""
    options = context.options
    if options.keep_jpegs:
        data = context.photos.read(place)
        is_same = hashlib.sha256(data).hexdigest() == result.source_sha256  # a file may change between two reads
        if is_same and is_plain_jpeg(data, options.crop.size_px):
            return data
    return encode_jpeg(crop, options.quality)


def _place(row: dict[str, Any]) -> Place:
    return Place(row["source"], row.get("offset"), row.get("num_bytes"))


def _stamp(context: ShardContext, row: dict[str, Any]) -> dict[str, int | None]:
    """Size and time of a photo's file, taken before it is read: a change while it is read shows in the next run."""
    stamp = None if row["problem"] else context.photos.stamp(row["source"])
    return dict(zip(_STAMP, stamp or (None, None), strict=True))


def _missing(rows: pa.Table, made: list[dict[str, Any]]) -> list[str]:
    """Sources of the photos that turned out to be unreadable."""
    columns = (rows[name].to_pylist() for name in ("source", "problem"))
    return [
        source
        for source, problem, row in zip(*columns, made, strict=True)
        if row["reject_reason"] == "unreadable" and not problem
    ]


def _nothing(row: dict[str, Any]) -> dict[str, Any]:
    return {"sample_id": row["sample_id"], "source_sha256": "", "width": 0, "height": 0}


def _describe_face(result: CropResult) -> dict[str, Any]:
    face = result.face
    if face is None:
        return {}
    yaw, pitch, roll = head_pose(face.landmarks)
    return {
        "det_score": face.score,
        "bbox": face.bbox.tolist(),
        "landmarks": face.landmarks.ravel().tolist(),
        "yaw": yaw,
        "pitch": pitch,
        "roll": roll,
    }


def _read_slice(path: Path, plan_hash: str, rows: pa.Table) -> pa.Table | None:
    """A finished slice of this plan, or None when there is none."""
    try:
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
    except (OSError, pa.ArrowException):
        return None
    if not table.schema.equals(SLICE_SCHEMA):
        return None
    fits = table.schema.metadata == {b"plan": plan_hash.encode()} and table["sample_id"].equals(rows["sample_id"])
    return table.replace_schema_metadata(None) if fits else None


def _members(rows: pa.Table, made: pa.Table) -> Iterator[tuple[str, int, bytes]]:
    """Key, label and JPEG of the kept rows."""
    for sample_id, label, jpg in zip(rows["sample_id"], rows["label"], made["jpg"], strict=True):
        if jpg.is_valid:
            yield key_of(sample_id.as_py()), label.as_py(), jpg.as_py()


def _check_tar(path: Path, members: list[tuple[str, int, bytes]], offsets: list[int]) -> tuple[str, int]:
    """Read a tar back and compare it with what was to be written; returns its sha256 and size in bytes."""
    hasher = hashlib.sha256()
    with open(path, "rb") as file:
        for (key, _, jpg), offset in zip(members, offsets, strict=True):
            file.seek(offset)
            if file.read(len(jpg)) != jpg:
                raise RuntimeError(f"{path}: {key}.jpg does not read back as it was written")
        file.seek(0)
        while block := file.read(2**20):
            hasher.update(block)
        return hasher.hexdigest(), file.tell()


def _manifest(shard: ShardPlan, made: pa.Table, offsets: list[int]) -> pa.Table:
    kept = made["jpg"].is_valid().to_numpy()
    jpgs = made["jpg"].to_pylist()
    place = np.where(kept, np.cumsum(kept) - 1, -1)
    jpg_offset = np.full(len(made), -1, np.int64)
    jpg_offset[kept] = offsets
    columns: dict[str, Any] = {
        "key": [key_of(sample_id) for sample_id in shard.rows["sample_id"].to_pylist()],
        "shard": [shard.name] * len(made),
        "row": place,
        "jpg_offset": jpg_offset,
        "jpg_size": [len(jpg) if jpg is not None else 0 for jpg in jpgs],
        "jpg_crc32": [zlib.crc32(jpg) if jpg is not None else 0 for jpg in jpgs],
        "status": np.where(kept, STATUS_KEPT, STATUS_REJECTED),
        **{name: shard.rows[name] for name in ("split", "label", "identity", "source")},
        **{name: made[name] for name in _MEASURED},
    }
    arrays = []
    for field in MANIFEST_SCHEMA:
        values = columns[field.name]
        arrays.append(values if isinstance(values, pa.ChunkedArray) else pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=MANIFEST_SCHEMA).combine_chunks()
