"""The verdicts on a data set's photos: duplicates, overlap with a test set, and what embeddings say of labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.errors import UserError
from pipeline.data.dataset_format import STATUS_KEPT
from pipeline.data.manifest import open_dataset
from pipeline.data.tombstones import read_tombstones
from preprocess.clean.near import near_others, near_pairs
from preprocess.clean.people import MIN_PHOTOS, look_alikes, nearest_strangers, robust_centres, stranger_quantiles

DROP, REVIEW = "drop", "review"

EXACT = "exact_duplicate"
EXACT_OF_OTHER = "exact_duplicate_of_other_person"
NEAR = "near_duplicate"
NEAR_OF_OTHER = "near_duplicate_of_other_person"
IN_TEST_SET = "in_test_set"
NEAR_TEST_SET = "near_duplicate_in_test_set"
NAME_IN_TEST_SET = "name_in_test_set"
LIKE_OTHER = "like_other_person"
FAR = "far_from_person"
LOOK_ALIKE = "people_look_alike"

MAX_OF_HASH = 16
"""Photos of one hash that others are compared with: black crops, say, must not be compared all with all."""

IsSame = Callable[[int, int], bool]
"""Whether the crops at two places are versions of one picture, see `preprocess.clean.pixels`."""

_DOUBTFUL_SHARE = 0.95
_LOOK_ALIKE_SHARE = 0.25

VERDICT_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("verdict", pa.string()),  # drop: --apply leaves it out; review: for a person to look at
        ("reason", pa.string()),
        ("score", pa.float64()),  # differing bits of duplicates, cosine of embeddings; 0 of names
        ("other_key", pa.string()),  # what it is compared with; in the test set for the three reasons that name it
    ]
)

_COLUMNS = ("sample_id", "key", "split", "shard", "jpg_offset", "jpg_size", "jpg_crc32")
_FACTS = ("identity", "source", "source_sha256", "phash")


class Verdict(NamedTuple):
    """A row of `VERDICT_SCHEMA`."""

    key: str
    verdict: str
    reason: str
    score: float
    other_key: str


def read_photos(data: Path) -> pa.Table:
    """The kept photos of all splits that are not withdrawn, in the order of their sample ids.

    Raises:
        UserError: no finished data set, or a manifest that cannot be read.
    """
    manifests = open_dataset(data).manifests([*_COLUMNS, *_FACTS, "status"])
    kept = [table.filter(pc.equal(table["status"], STATUS_KEPT)) for _, _, table in manifests]
    photos = pa.concat_tables(kept).drop_columns(["status"])
    withdrawn = read_tombstones(data)["sample_id"].combine_chunks()
    return photos.filter(pc.invert(pc.is_in(photos["sample_id"], withdrawn))).sort_by("sample_id").combine_chunks()


def find_duplicates(photos: pa.Table, threshold: int, is_same: IsSame) -> Iterator[Verdict]:
    """Exact and near duplicates. Of a person's photos the first stays; of two people's, a label may be wrong.

    Args:
        photos: from `read_photos`.
        threshold: bits by which perceptual hashes of near duplicates may differ.
        is_same: whether the crops at two places of `photos` are versions of one picture; asked of those near by hash.
    """
    keys, identities = photos["key"].to_pylist(), photos["identity"].to_pylist()
    # one photo may show two people: the crops must be the same too
    exact = zip(*(photos[name].to_pylist() for name in ("source_sha256", "jpg_crc32", "jpg_size")), strict=True)
    groups: dict[object, list[int]] = defaultdict(list)
    for place, content in enumerate(exact):
        groups[content].append(place)
    is_dropped = np.zeros(len(photos), bool)
    for places in groups.values():
        first_of = dict(reversed([(identities[place], place) for place in places]))
        for place in places if len(places) > 1 else []:
            same = first_of[identities[place]]
            other = next((p for name, p in first_of.items() if name != identities[place]), -1)
            if other >= 0:
                yield Verdict(keys[place], DROP, EXACT_OF_OTHER, 0.0, keys[other])
            elif same != place:
                yield Verdict(keys[place], DROP, EXACT, 0.0, keys[same])
            is_dropped[place] = other >= 0 or same != place
    unique, numbers, counts = np.unique(photos["phash"].to_numpy(), return_inverse=True, return_counts=True)
    near: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for i, j, bits in zip(*(column.tolist() for column in near_pairs(unique, threshold)), strict=True):
        near[i].append((bits, j))
        near[j].append((bits, i))
    own_at: dict[tuple[str, int], list[int]] = defaultdict(list)
    all_at: dict[int, list[int]] = defaultdict(list)
    has_near = counts > 1
    has_near[list(near)] = True
    for place in np.flatnonzero(~is_dropped & has_near[numbers]).tolist():
        number, name = int(numbers[place]), identities[place]
        around = [(0, number), *sorted(near.get(number, ()))]
        own = ((bits, p) for bits, at in around for p in own_at.get((name, at), ()))
        if (found := _first_same(place, own, is_same)) is not None:
            yield Verdict(keys[place], DROP, NEAR, float(found[0]), keys[found[1]])
            continue
        strangers = ((bits, p) for bits, at in around for p in all_at.get(at, ()) if identities[p] != name)
        if (found := _first_same(place, strangers, is_same)) is not None:
            yield Verdict(keys[place], REVIEW, NEAR_OF_OTHER, float(found[0]), keys[found[1]])
        for places in (own_at[name, number], all_at[number]):
            if len(places) < MAX_OF_HASH:
                places.append(place)


def find_overlap(photos: pa.Table, test: pa.Table, threshold: int, is_same: IsSame) -> Iterator[Verdict]:
    """Photos that a test set has too: the same file, a near duplicate, or a person of the same name.

    Args:
        photos: from `read_photos`.
        test: the same of the test set.
        threshold: bits by which perceptual hashes of near duplicates may differ.
        is_same: whether the crops at a place of `photos` and one of `test` are versions of one picture.
    """
    keys, test_keys = photos["key"].to_pylist(), test["key"].to_pylist()
    by_hash = dict(zip(test["source_sha256"].to_pylist(), test_keys, strict=True))
    is_test_file = [text in by_hash for text in photos["source_sha256"].to_pylist()]
    for place in np.flatnonzero(is_test_file).tolist():
        yield Verdict(keys[place], DROP, IN_TEST_SET, 0.0, by_hash[photos["source_sha256"][place].as_py()])
    pairs = near_others(photos["phash"].to_numpy(), test["phash"].to_numpy(), threshold, MAX_OF_HASH)
    columns = zip(*(column.tolist() for column in pairs), strict=True)
    for place, group in groupby(columns, key=lambda pair: pair[0]):
        others = ((bits, other) for _, other, bits in group)
        if not is_test_file[place] and (found := _first_same(place, others, is_same)) is not None:
            yield Verdict(keys[place], REVIEW, NEAR_TEST_SET, float(found[0]), test_keys[found[1]])
    by_name = {_plain(name): key for name, key in zip(test["identity"].to_pylist(), test_keys, strict=True)}
    for key, name in zip(keys, photos["identity"].to_pylist(), strict=True):
        # numbers are no names: person 7 of one set is not person 7 of another
        if not name.isdecimal() and _plain(name) in by_name:
            yield Verdict(key, REVIEW, NAME_IN_TEST_SET, 0.0, by_name[_plain(name)])


def _first_same(place: int, candidates: Iterable[tuple[int, int]], is_same: IsSame) -> tuple[int, int] | None:
    """The first of the candidates (bits, place) that shows the same picture."""
    return next((candidate for candidate in candidates if is_same(place, candidate[1])), None)


def find_wrong_labels(photos: pa.Table, vectors: npt.NDArray[np.float32]) -> Iterator[Verdict]:
    """Photos far from their person, and people who look alike.

    A photo is doubtful when it is less like its person's centre, made without it, than one in twenty strangers' centres
    are; it goes when it is less like it than the median stranger's.

    Args:
        photos: [N], those of `read_photos` that have an embedding.
        vectors: [N, D] float32, L2-normalised.
    """
    names = photos["identity"].combine_chunks().dictionary_encode()
    labels = names.indices.to_numpy().astype(np.int64)
    keys = photos["key"].to_pylist()
    found = robust_centres(vectors, labels)
    median, bar = stranger_quantiles(vectors, labels, found.centres, (0.5, _DOUBTFUL_SHARE))
    typical = np.lexsort((-found.own_cosine, labels))
    typical = typical[np.unique(labels[typical], return_index=True)[1]]
    judged = np.flatnonzero((found.num_photos[labels] >= MIN_PHOTOS) & (found.own_cosine < bar))
    cosine, stranger = nearest_strangers(vectors[judged], labels[judged], found.centres)
    for place, other, similar in zip(judged.tolist(), stranger.tolist(), cosine.tolist(), strict=True):
        own = float(found.own_cosine[place])
        verdict = DROP if own < median else REVIEW
        if similar > bar:
            yield Verdict(keys[place], verdict, LIKE_OTHER, own, keys[typical[other]])
        else:
            yield Verdict(keys[place], verdict, FAR, own, keys[typical[labels[place]]])
    for one, other, similar in look_alikes(vectors, labels, found, _LOOK_ALIKE_SHARE):
        yield Verdict(keys[typical[one]], REVIEW, LOOK_ALIKE, similar, keys[typical[other]])


def read_embeddings(path: Path, photos: pa.Table) -> tuple[pa.Table, npt.NDArray[np.float32]]:
    """The photos that a file has embeddings of, [N], and those, [N, D] float32, L2-normalised.

    Args:
        path: Parquet with the columns `key` and `embedding`, lists of one length (launch/embed.py writes it).
        photos: from `read_photos`.

    Raises:
        UserError: another file, no photo in common, or an embedding that is not finite or 0.
    """
    expected = "Parquet with key and embedding (python launch/embed.py writes it)"
    try:
        table = pq.read_table(path, columns=["key", "embedding"])
        lists = table["embedding"].combine_chunks()
        flat = lists.flatten().to_numpy(zero_copy_only=False)
        vectors = flat.reshape(len(table), -1).astype(np.float32)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, pa.ArrowException) as error:
        raise UserError(path, f"cannot be used ({str(error).splitlines()[0]})", expected) from None
    place_of = {key: place for place, key in enumerate(table["key"].to_pylist())}
    rows = [row for row, key in enumerate(photos["key"].to_pylist()) if key in place_of]
    if not rows:
        raise UserError(path, "none of its keys is in the data set", "embeddings of this data set")
    chosen = photos.take(pa.array(rows)).combine_chunks()
    vectors = vectors[[place_of[key] for key in chosen["key"].to_pylist()]]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise UserError(path, "an embedding is 0 or not finite", expected)
    return chosen, vectors / lengths


def verdict_table(verdicts: list[Verdict]) -> pa.Table:
    """With `VERDICT_SCHEMA`, in the order of keys and reasons."""
    rows = sorted(verdicts, key=lambda verdict: (verdict.key, verdict.reason))
    columns = zip(*rows, strict=True) if rows else [[]] * len(VERDICT_SCHEMA)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, VERDICT_SCHEMA, strict=True)]
    return pa.table(arrays, schema=VERDICT_SCHEMA)


def count_verdicts(verdicts: list[Verdict]) -> list[tuple[str, str, int]]:
    """Reason, verdict and number, the most frequent first."""
    counts = Counter((verdict.reason, verdict.verdict) for verdict in verdicts)
    return [(reason, verdict, count) for (reason, verdict), count in counts.most_common()]


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()
