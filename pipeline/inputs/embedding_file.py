"""A file of embeddings in the place of a model: Parquet as `launch/embed.py` writes it, or an npz."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.config.errors import UserError
from pipeline.evaluate.embed import Embedder
from pipeline.evaluate.recogniser import Recogniser
from pipeline.evaluate.result import Model
from pipeline.evaluate.stored import StoredEmbeddings
from pipeline.inputs.trial import first_line

SUFFIXES = (".parquet", ".npz")
_EXPECTED = "a column key of strings and a column embedding of lists of floats of one length, as launch/embed.py writes"
_EXPECTED_ARRAYS = "an array key [N] of strings and an array embedding [N, D] of floats"
_DAMAGES = (
    *(OSError, EOFError, ValueError, KeyError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error),
    MemoryError,  # a shape that is not the array's
    RuntimeError,  # encrypted
)
"""What NumPy raises of damaged npz files."""
_PICTURE_PX = 112
"""Of crops that are made only to be looked at."""
_ROWS_AT_ONCE = 65536


def open_embeddings(path: Path) -> Recogniser:
    """Open and check a file of embeddings.

    Raises:
        UserError: not such a file, a key twice, or embeddings that are not finite, zero or of several lengths.
    """
    if not path.is_file():
        raise UserError(path, "no such file", _EXPECTED)
    keys, vectors = _read_parquet(path) if path.suffix == ".parquet" else _read_npz(path)
    _check(path, keys, vectors)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()

    def embed(crops: Tensor) -> Tensor:
        raise UserError(path, "a file of embeddings", "a model, which can embed other photos than those in the file")

    stored = StoredEmbeddings(str(path), keys, vectors)
    return Recogniser(
        embedder=Embedder(embed, _PICTURE_PX, torch.device("cpu"), str(path), stored),
        description=Model(kind="embeddings", checkpoint=str(path), sha256=digest, embedding_dim=vectors.shape[1]),
        notes=[f"No model ran: the embeddings are those of {path.name}, mirror images added or not as they are there."],
    )


def _read_parquet(path: Path) -> tuple[list[str], npt.NDArray[np.floating]]:
    try:
        table = pq.read_table(path, columns=["key", "embedding"])
        keys = table["key"].cast(pa.string()).to_pylist()
        lists = table["embedding"].combine_chunks()
        lengths = np.unique(lists.value_lengths().to_numpy(zero_copy_only=False))
    except (OSError, ValueError, TypeError, AttributeError, KeyError, pa.ArrowException) as error:
        raise UserError(path, f"cannot be used ({first_line(error)})", _EXPECTED) from None
    if None in keys or lists.null_count or lists.flatten().null_count:
        raise UserError(path, "a key, an embedding or a number is null", _EXPECTED)
    if len(lengths) > 1:
        raise UserError(path, f"embeddings of {int(lengths[0])} and of {int(lengths[-1])} numbers", "one length")
    if not pa.types.is_floating(lists.type.value_type):
        raise UserError(path, f"embeddings of {lists.type.value_type}", "floats")
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    return keys, flat.reshape(len(keys), -1 if len(keys) else 1)


def _read_npz(path: Path) -> tuple[list[str], npt.NDArray[np.floating]]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            keys, vectors = arrays["key"], arrays["embedding"]
    except _DAMAGES as error:
        raise UserError(path, f"cannot be used ({first_line(error)})", _EXPECTED_ARRAYS) from None
    if keys.ndim != 1 or keys.dtype.kind != "U" or vectors.ndim != 2 or vectors.dtype.kind != "f":
        found = f"key is {keys.dtype} {list(keys.shape)}, embedding {vectors.dtype} {list(vectors.shape)}"
        raise UserError(path, found, _EXPECTED_ARRAYS)
    if len(keys) != len(vectors):
        raise UserError(path, f"{len(keys):,} keys and {len(vectors):,} embeddings", "as many")
    return keys.tolist(), vectors


def _check(path: Path, keys: list[str], vectors: npt.NDArray[np.floating]) -> None:
    if not keys or vectors.shape[1] == 0:
        raise UserError(path, "holds no embeddings", _EXPECTED)
    counts = Counter(keys)
    if len(counts) < len(keys):
        repeated = [key for key, count in counts.items() if count > 1]
        raise UserError(path, f"{len(repeated):,} keys stand there more than once, first {repeated[0]!r}", "each once")
    bad: list[int] = []
    for first in range(0, len(keys), _ROWS_AT_ONCE):
        lengths = np.linalg.norm(vectors[first : first + _ROWS_AT_ONCE].astype(np.float64), axis=1)
        bad += (first + np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))).tolist()
    if bad:
        found = f"{len(bad):,} of {len(keys):,} embeddings are not finite or zero, first that of {keys[bad[0]]!r}"
        raise UserError(path, found, "finite embeddings")
