"""The embeddings of all photos of a data set, made by any number of ranks and finished by whoever comes next.

The work is cut into parts of a fixed number of rows, whatever the number of ranks. Each part is one file, which appears
whole or not at all, and which one rank writes; so a run that was stopped goes on with the parts that are not there, and
the parts joined give the same bytes however many ranks made them in however many attempts. (On equal machines with as
many threads a rank: sums in another order have other last bits.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from pipeline import dist
from pipeline.atomic_write import write_atomically
from pipeline.config.errors import DataError, UserError
from pipeline.data.manifest import Dataset, SplitIndex
from pipeline.data.reader import Reader
from pipeline.data.row_crops import read_row_crops
from pipeline.evaluate.embed import require_usable
from pipeline.evaluate.recogniser import Recogniser
from pipeline.lock import exclusive_file
from preprocess.storage import one_line_errors, write_parquet

Rows = npt.NDArray[np.int64]
Splits = dict[str, SplitIndex]

PART_ROWS = 8192
BATCH = 64
"""Photos a batch; part of what decides the last bits, and so no option."""

_PLAN = "plan.json"


@dataclass(frozen=True)
class Part:
    """Successive rows of a split's index."""

    split: str
    first: int
    end: int
    file: str


@dataclass(frozen=True)
class Plan:
    """What parts must have in common to be joined."""

    model: str
    """Its digest."""
    data: str
    """The data set's digest."""
    withdrawn: str
    """Hash of the rows that must not be used."""
    device: str
    part_rows: int
    num_photos: int
    """Photos that are not withdrawn, whether they can be read or not."""


def parts_folder(output: Path) -> Path:
    """Where parts of a file lie until it is written."""
    return output.absolute().with_name(output.name + ".parts")


def embed_dataset(
    recogniser: Recogniser,
    dataset: Dataset,
    output: Path,
    show: Callable[[int, int], Callable[[int], None]],
    part_rows: int = PART_ROWS,
) -> tuple[int, int]:
    """Embed the photos of all splits that are not withdrawn. Collective on all ranks, which share `output`'s folder.

    Writes Parquet with the columns `key` and `embedding` (float32 lists of one length) in the order of splits and rows:
    what the model gives for the crop, not normalised, without the mirror image.

    Args:
        recogniser: the model.
        dataset: its crops are of the model's size.
        output: the file; parts lie in `parts_folder(output)` until it is complete. Held against other processes.
        show: called with the number of photos and of those in parts made earlier; gives what tells a display that more
            are done.
        part_rows: rows a part: what a rank that dies loses at most.

    Returns:
        Photos embedded, and photos that there are. The others could not be read.

    Raises:
        UserError: parts of another model or other data, crops of another size, ranks that do not see the same, an
            embedding that is not finite or zero, or a file that cannot be written.
        TemporaryError: the storage does not give a photo, or another process writes the file.
    """
    recogniser.require_crops(dataset, dataset.root)
    plan = _make_plan(recogniser, dataset, part_rows)
    if len({json.dumps(asdict(one)) for one in dist.all_gather_objects(plan)}) > 1:
        raise UserError(output, "the ranks see different models or data", "the same on all")
    if output.is_dir():
        raise UserError(output, "cannot be written (a folder)", "the name of a file")
    with one_line_errors(output), _alone_at(output):
        return _embed(recogniser, dataset, output, plan, show), plan.num_photos


def _embed(
    recogniser: Recogniser,
    dataset: Dataset,
    output: Path,
    plan: Plan,
    show: Callable[[int, int], Callable[[int], None]],
) -> int:
    """Make the parts that are missing and join all; gives the number of photos embedded."""
    folder = parts_folder(output)
    if dist.rank() == 0:
        with one_line_errors(folder):
            _begin(folder, plan)
    splits = {name: dataset.split(name) for name in dataset.info.splits}
    parts = [part for split in splits.values() for part in _cut(split, plan.part_rows)]
    # as rank 0 sees it: files of others may show later on a shared file system
    todo = dist.all_gather_objects([part for part in parts if not (folder / part.file).is_file()])[0]
    num_made = sum(len(_rows(splits, part)) for part in set(parts) - set(todo))
    _make_parts(recogniser, splits, folder, todo, show(plan.num_photos, num_made))
    num_embedded = 0
    if dist.rank() == 0:
        with one_line_errors(output):
            num_embedded = _join(folder, parts, output)
            _remove(folder)
    return dist.all_gather_objects(num_embedded)[0]


@contextmanager
def _alone_at(output: Path) -> Iterator[None]:
    """Keep other processes from the file. Collective on all ranks.

    Raises:
        InUseError: another one is writing it; `UserError`: one has written it while this one waited.
    """
    before = _state(output)
    with exclusive_file(output):
        if dist.all_gather_objects(_state(output) != before)[0]:
            raise UserError(output, "another process has written it meanwhile", "", "repeat the command to replace it")
        yield


def _state(path: Path) -> tuple[int, int] | None:
    """Changes when a file is replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _remove(folder: Path) -> None:
    """Remove the parts, and the plan after them: parts without one could be anybody's."""
    _remove_parts(folder)
    (folder / _PLAN).unlink()
    with suppress(OSError):
        folder.rmdir()


def _remove_parts(folder: Path) -> None:
    """Finished or not; NFS keeps files that somebody still has open under names of its own."""
    for path in folder.glob("*"):
        if path.name != _PLAN and not path.name.startswith(".nfs"):
            path.unlink()


def model_digest(recogniser: Recogniser) -> str:
    """Names a model's function: hash of a run's weights, of an ONNX file and what it is fed, of a callable's module."""
    described = recogniser.description
    hasher = hashlib.sha256(
        described.model_dump_json(include={"kind", "sha256", "input", "output", "embedding_dim"}).encode()
    )
    if described.kind == "python":
        hasher.update(described.checkpoint.encode())
    if isinstance(recogniser.embedder.embed, nn.Module):
        for name, tensor in recogniser.embedder.embed.state_dict().items():
            hasher.update(name.encode())
            hasher.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hasher.hexdigest()


def _make_plan(recogniser: Recogniser, dataset: Dataset, part_rows: int) -> Plan:
    hasher = hashlib.sha256()
    num_photos = 0
    for name in dataset.info.splits:
        split = dataset.split(name)
        hasher.update(name.encode() + split.withdrawn.tobytes())
        num_photos += len(split) - len(split.withdrawn)
    return Plan(
        model=model_digest(recogniser),
        data=dataset.info.digest,
        withdrawn=hasher.hexdigest(),
        device=recogniser.embedder.device.type,
        part_rows=part_rows,
        num_photos=num_photos,
    )


def _begin(folder: Path, plan: Plan) -> None:
    """Write down what is made here, or see that it is what was begun."""
    path = folder / _PLAN
    wanted = asdict(plan)
    if not path.is_file():
        _remove_parts(folder)
        write_atomically(path, json.dumps(wanted).encode())
        return
    try:
        begun = json.loads(path.read_text())
        differing = [name for name, value in wanted.items() if begun.get(name) != value]
    except (ValueError, AttributeError):
        raise UserError(path, "damaged", "", f"remove {folder}") from None
    if differing:
        found = f"begun with another {' and another '.join(differing)}"
        raise UserError(folder, found, "the model and the data of the first attempt", "remove it to begin anew")


def _cut(split: SplitIndex, part_rows: int) -> Iterator[Part]:
    for first in range(0, len(split), part_rows):
        yield Part(split.split, first, min(first + part_rows, len(split)), f"{split.split}-{first:012d}.parquet")


def _rows(splits: Splits, part: Part) -> Rows:
    """A part's rows that are not withdrawn."""
    return np.setdiff1d(np.arange(part.first, part.end), splits[part.split].withdrawn)


def _make_parts(
    recogniser: Recogniser, splits: Splits, folder: Path, todo: list[Part], advance: Callable[[int], None]
) -> None:
    """Make parts in rounds, one a rank. So no rank ever waits for others longer than a part takes."""
    for start in range(0, len(todo), dist.world_size()):
        place = start + dist.rank()
        num_rows = 0
        if place < len(todo):
            num_rows = len(_rows(splits, todo[place]))
            table = _embed_part(recogniser, splits, todo[place], advance)
            with one_line_errors(folder):
                write_parquet(table, folder / todo[place].file, folder)
        advance(sum(dist.all_gather_objects(num_rows)) - num_rows)


def _embed_part(recogniser: Recogniser, splits: Splits, part: Part, advance: Callable[[int], None]) -> pa.Table:
    """Keys and embeddings of a part's photos that can be read."""
    embedder, split, wanted = recogniser.embedder, splits[part.split], _rows(splits, part)
    found: list[Rows] = [np.empty(0, np.int64)]
    vectors = [np.empty((0, recogniser.description.embedding_dim), np.float32)]
    with Reader(split) as reader, torch.inference_mode():
        batches = read_row_crops(reader, embedder.crop_px, wanted, BATCH, must_answer=True)
        for number, (rows, crops) in enumerate(batches):
            if len(rows):
                images = torch.from_numpy(crops).permute(0, 3, 1, 2).to(embedder.device)
                found.append(rows)
                vectors.append(embedder.embed(images).to("cpu", torch.float32).numpy())
            advance(min(BATCH, len(wanted) - number * BATCH))
    keys, stacked = split.keys(np.concatenate(found)), np.concatenate(vectors)
    require_usable(stacked.astype(np.float64), lambda row: repr(keys[row]), embedder.where)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(stacked.ravel()), stacked.shape[1])
    return pa.table({"key": pa.array(keys, pa.string()), "embedding": flat})


def _join(folder: Path, parts: list[Part], output: Path) -> int:
    """Write the file, a part in memory at a time; gives the number of its rows.

    Raises:
        UserError: no photo could be read; `DataError`: a part is missing or damaged.
    """
    num_rows = 0

    def write(file: IO[bytes]) -> None:
        nonlocal num_rows
        with ExitStack() as stack:
            writer = None
            for part in parts:
                try:
                    table = pq.read_table(folder / part.file)
                except (OSError, pa.ArrowException) as error:
                    remedy = "all ranks must write to one folder; remove damaged files and repeat the command"
                    raise DataError(folder / part.file, f"cannot be read ({error})", "", remedy) from None
                if writer is None:
                    settings = {"compression": "zstd", "compression_level": 3, "version": "2.6"}
                    writer = stack.enter_context(pq.ParquetWriter(file, table.schema, **settings))
                if len(table):
                    writer.write_table(table, row_group_size=len(table))
                num_rows += len(table)
        if num_rows == 0:
            raise UserError(output, "none of the photos can be read", "photos", "preprocess verify DATA")

    write_atomically(output, write)
    return num_rows
