"""Lists of photo pairs: the official LFW file format, and pairs drawn from a data set.

The format: a first line with the number of folds and of pairs of each kind a fold (`10<TAB>300`), then for each
fold its same pairs (`Name<TAB>1<TAB>4`) and its different pairs (`Name<TAB>1<TAB>Other_Name<TAB>2`). A first line
with one number is the format of LFW's development lists: one block of same pairs, one of different pairs.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, islice
from math import isqrt
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.config.errors import UserError
from pipeline.evaluate.result import write_text

NUM_FOLDS = 10

_PHOTOS_PER_IDENTITY = 64
"""At most this many photos of an identity enter same pairs: 2,016 pairs, so that nobody dominates a list."""


_Numbers: TypeAlias = Callable[[str], Sequence[int]]
"""From an identity to the numbers of its photos, in order."""


class Photo(NamedTuple):
    """A photo as pair lists name it: the person and a number, from 1; or a path, where the list names paths."""

    identity: str
    number: int
    """0 where the path says all."""
    path: str = ""
    """Relative to the folder of photos, with "/"; empty where the list names people and numbers."""

    def __str__(self) -> str:
        return self.path or f"{self.identity}_{self.number:04d}"


class Pair(NamedTuple):
    """Two photos."""

    left: Photo
    right: Photo
    fold: int
    label: bool | None = None
    """Whether the list says that they show one person; None: it leaves that to their identities."""

    @property
    def same(self) -> bool:
        """Whether they show one person."""
        return self.left.identity == self.right.identity if self.label is None else self.label


@dataclass(frozen=True)
class PairList:
    """Pairs in the file's order: fold by fold, same pairs before different ones."""

    pairs: list[Pair]
    num_folds: int

    def photos(self) -> list[Photo]:
        """Each photo once, in order of first use."""
        return list(dict.fromkeys(photo for pair in self.pairs for photo in (pair.left, pair.right)))


def read_pairs(path: Path) -> PairList:
    """Read a pair list.

    Raises:
        UserError: no such file, not text, or a malformed line, named by its number.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(path, f"unreadable ({reason})", "a pair list in the format of LFW's pairs.txt") from error
    return parse_pairs(text, str(path))


def parse_pairs(text: str, where: str) -> PairList:
    """Parse the content of a pair list; `where` names it in messages.

    Raises:
        UserError: a malformed line, named by its number.
    """
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    if not lines:
        raise UserError(where, "empty", "a first line like `10<TAB>300`")
    number, first = lines[0]
    header = [_positive(field, f"{where}:{number}") for field in _fields(first)]
    if len(header) not in (1, 2):
        raise UserError(f"{where}:{number}", f"{len(header)} numbers", "`FOLDS<TAB>PAIRS` or one number of pairs")
    num_folds, per_kind = (1, header[0]) if len(header) == 1 else header
    expected = num_folds * per_kind * 2
    if len(lines) - 1 != expected:
        raise UserError(where, f"{len(lines) - 1} pairs", f"{expected}, by its first line {first.strip()!r}")
    pairs = []
    for place, (number, line) in enumerate(lines[1:]):
        fold, within = divmod(place, per_kind * 2)
        pairs.append(parse_pair(line, fold, within < per_kind, f"{where}:{number}"))
    return PairList(pairs=pairs, num_folds=num_folds)


def parse_pair(line: str, fold: int, same: bool | None, where: str) -> Pair:
    """One pair of a list in LFW's format.

    Args:
        line: its text.
        fold: the fold it belongs to.
        same: the kind that its place in the list calls for; None: as many fields as it has say.
        where: file and line, for messages.

    Raises:
        UserError: a line of another form.
    """
    fields = _fields(line)
    same = len(fields) == 3 if same is None else same
    kind, form, count = (
        ("same", "NAME<TAB>NUMBER<TAB>NUMBER", 3) if same else ("different", "NAME<TAB>NUMBER<TAB>NAME<TAB>NUMBER", 4)
    )
    if len(fields) != count:
        raise UserError(where, f"{len(fields)} fields", f"a {kind} pair: {form}")
    left = Photo(fields[0], _positive(fields[1], where))
    right = Photo(fields[0] if same else fields[2], _positive(fields[-1], where))
    if left == right:
        raise UserError(where, f"{left} is paired with itself", "two different photos")
    if not same and left.identity == right.identity:
        raise UserError(where, f"both photos are of {left.identity!r}", "two people in a different pair")
    return Pair(left, right, fold)


def format_pairs(pairs: PairList) -> str:
    """The file's content; `parse_pairs` gives the same list back.

    Raises:
        UserError: an identity's name cannot stand in the format.
    """
    per_kind = len(pairs.pairs) // (2 * pairs.num_folds)
    if len(pairs.pairs) != per_kind * 2 * pairs.num_folds:
        raise ValueError(f"{len(pairs.pairs)} pairs do not fill {pairs.num_folds} balanced folds")
    lines = [f"{pairs.num_folds}\t{per_kind}"]
    for pair in pairs.pairs:
        left, right = pair.left, pair.right
        for name in (left.identity, right.identity):
            if name != name.strip() or len(f"x{name}x".splitlines()) > 1 or "\t" in name or not name:
                raise UserError(repr(name), "a name that a pair list cannot hold", "no tab or line break in it")
        if pair.same:
            lines.append(f"{left.identity}\t{left.number}\t{right.number}")
        else:
            lines.append(f"{left.identity}\t{left.number}\t{right.identity}\t{right.number}")
    return "\n".join(lines) + "\n"


def inner_path(path: str, where: str) -> str:
    """A path as `Photo` keeps it: relative to the folder of photos, with "/", without "." and "..".

    Raises:
        UserError: no path, or one that leads out of the folder; `where` names the line.
    """
    found = posixpath.normpath(path.strip().replace("\\", "/")) if path.strip() else ""
    if not found or found == "." or found.startswith(("/", "../")) or found == "..":
        raise UserError(where, f"path {path!r}", "one within the folder of photos")
    return found


def deal_into_folds(pairs: Sequence[Pair], num_folds: int = NUM_FOLDS) -> PairList:
    """Deal a block of pairs into balanced folds in the official order, each kind's pairs in turn.

    Pairs that do not fill a round of folds are left out, from the end.

    Raises:
        UserError: fewer pairs of one kind than folds.
    """
    kinds = [[pair for pair in pairs if pair.same is same] for same in (True, False)]
    per_kind = min(len(kind) for kind in kinds) // num_folds
    if per_kind == 0:
        found = f"{len(kinds[0])} same and {len(kinds[1])} different pairs"
        raise UserError("pairs", found, f"at least {num_folds} of each kind, one for each fold")
    dealt = [
        pair._replace(fold=fold)
        for fold in range(num_folds)
        for kind in kinds
        for pair in kind[fold : per_kind * num_folds : num_folds]
    ]
    return PairList(pairs=dealt, num_folds=num_folds)


def draw_pairs(photos: Mapping[str, Sequence[int]], where: object, seed: int = 0, limit: int = 3000) -> PairList:
    """Draw as many same as different pairs, none twice, and deal them into ten identity-mixed folds.

    Identities take turns in giving a same pair, and every two identities are equally likely to give a different one,
    so people with many photos do not dominate. A pure function of its arguments, on any machine.

    Args:
        photos: the numbers of each identity's photos.
        where: what to name in messages.
        seed: another seed draws other pairs.
        limit: the largest number of pairs of each kind.

    Raises:
        UserError: too few photos for one pair of each kind in each fold.
    """
    names = sorted(photos)
    num_photos = np.array([len(photos[name]) for name in names], np.int64)
    num_same = int(sum(min(n, _PHOTOS_PER_IDENTITY) * (min(n, _PHOTOS_PER_IDENTITY) - 1) // 2 for n in num_photos))
    num_different = int((num_photos.sum() ** 2 - (num_photos**2).sum()) // 2)
    num_pairs = min(limit, num_same, num_different) // NUM_FOLDS * NUM_FOLDS
    if num_pairs == 0:
        raise UserError(
            where,
            f"{len(names)} identities give {num_same} same and {num_different} different pairs",
            f"at least {NUM_FOLDS} of each",
            "hold out more: preprocess shard … --val-identities 0.2, or name a list: --pairs FILE",
        )
    # RandomState, not Generator: its stream is frozen, so the same seed draws the same pairs with any numpy version.
    random = np.random.RandomState(seed)
    # Only the people who are drawn are looked at: memory follows `limit`, not the data set.
    numbers = cache(lambda name: sorted(photos[name]))
    same = _same_pairs([name for name, n in zip(names, num_photos, strict=True) if n > 1], numbers, random)
    different = _different_pairs([name for name in names if photos[name]], numbers, num_photos[num_photos > 0], random)
    chosen = [next(same) for _ in range(num_pairs)] + [next(different) for _ in range(num_pairs)]
    return deal_into_folds(chosen)


def fold_in_turn(pairs: Sequence[Pair], num_folds: int = NUM_FOLDS) -> PairList:
    """Give pairs folds, those of each kind in turn; unlike `deal_into_folds` it keeps all pairs, in their order."""
    given = {True: 0, False: 0}
    dealt = []
    for pair in pairs:
        dealt.append(pair._replace(fold=given[pair.same] % num_folds))
        given[pair.same] += 1
    return PairList(dealt, num_folds)


def write_pairs(path: Path, pairs: PairList) -> None:
    """Write a pair list; the final name never bears a partial file."""
    write_text(path, format_pairs(pairs))


def _same_pairs(names: Sequence[str], numbers: _Numbers, random: np.random.RandomState) -> Iterator[Pair]:
    """All same pairs, one of each identity a round; the order of identities changes each round."""
    begun: dict[str, Iterator[Pair]] = {}
    while names:
        used_up = set()
        for i in random.permutation(len(names)):
            name = names[i]
            if name not in begun:
                begun[name] = _pairs_of(name, numbers(name), random)
            pair = next(begun[name], None)
            if pair is None:
                used_up.add(name)
            else:
                yield pair
        names = [name for name in names if name not in used_up]


def _pairs_of(name: str, numbers: Sequence[int], random: np.random.RandomState) -> Iterator[Pair]:
    """The same pairs of one identity's photos, at most `_PHOTOS_PER_IDENTITY` of these, in random order."""
    chosen = sorted(numbers[i] for i in islice(_shuffled(len(numbers), random), _PHOTOS_PER_IDENTITY))
    for place in _shuffled(len(chosen) * (len(chosen) - 1) // 2, random):
        # Places count (0, 1), (0, 2), (1, 2), (0, 3) …: j (j - 1) / 2 of them come before the first that ends in j.
        j = (1 + isqrt(1 + 8 * place)) // 2
        yield Pair(Photo(name, chosen[place - j * (j - 1) // 2]), Photo(name, chosen[j]), 0)


def _shuffled(count: int, random: np.random.RandomState) -> Iterator[int]:
    """0 … count - 1 in random order: Fisher and Yates's shuffle that keeps only the places it has touched."""
    moved: dict[int, int] = {}
    for i in range(count):
        j = int(random.randint(i, count))
        here = moved.pop(i, i)
        if j == i:
            yield here
        else:
            yield moved.get(j, j)
            moved[j] = here


def _different_pairs(
    names: Sequence[str], numbers: _Numbers, counts: npt.NDArray[np.int64], random: np.random.RandomState
) -> Iterator[Pair]:
    """All different pairs: drawn by chance, repeats thrown away, until half are gone; then the shuffled rest."""

    def pair(draw: tuple[int, int, int, int]) -> Pair:
        a, i, b, j = draw
        return Pair(Photo(names[a], numbers(names[a])[i]), Photo(names[b], numbers(names[b])[j]), 0)

    total = int((counts.sum() ** 2 - (counts**2).sum()) // 2)
    seen: set[tuple[int, int, int, int]] = set()
    while len(seen) < total // 2:
        a, b = _two(random, len(names))
        draw = (a, int(random.randint(counts[a])), b, int(random.randint(counts[b])))
        if draw not in seen:
            seen.add(draw)
            yield pair(draw)
    rest = [
        draw
        for a, b in combinations(range(len(names)), 2)
        for i in range(counts[a])
        for j in range(counts[b])
        if (draw := (a, i, b, j)) not in seen
    ]
    for place in random.permutation(len(rest)):
        yield pair(rest[place])


def _two(random: np.random.RandomState, count: int) -> tuple[int, int]:
    """Two different numbers below `count`, in order (`choice` without replacement would shuffle all of them)."""
    while True:
        a, b = (int(x) for x in random.randint(count, size=2))
        if a != b:
            return min(a, b), max(a, b)


def _fields(line: str) -> list[str]:
    """Tabs separate where there are any, so that names may hold spaces; else spaces do."""
    parts = line.split("\t") if "\t" in line else line.split()
    return [part.strip() for part in parts if part.strip()]


def _positive(field: str, where: str) -> int:
    if not (field.isascii() and field.isdigit() and int(field) > 0):
        raise UserError(where, f"{field!r}", "a whole number from 1")
    return int(field)
