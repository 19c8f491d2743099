"""Templates: one embedding for several photos and video frames of a person, as IJB-B and IJB-C score them.

A medium is a photo or a video; frames of one video say less than as many photos do. Pooling over media therefore takes
the mean within each medium first, then the sum over media (Whitelam et al. 2017; InsightFace's `eval_ijbc`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as arrow_csv

from pipeline.config.errors import UserError
from pipeline.evaluate.search import Vectors
from pipeline.evaluate.verification import Bools, Floats, Ints

_ROWS = 16_384
_PAIRS = 1024
_SMALLEST_NORM = 1e-12


@dataclass(frozen=True)
class Templates:
    """One embedding a template."""

    ids: Ints
    """[T] ascending."""
    vectors: Vectors
    """[T, D] float32, L2-normalised."""


@dataclass(frozen=True)
class TemplateFaces:
    """Which template and medium each photo belongs to, in the file's order. A photo may stand there more than once."""

    name: list[str]
    template: Ints
    medium: Ints


@dataclass(frozen=True)
class TemplatePairs:
    """Pairs of templates to compare."""

    left: Ints
    """[P] template ids."""
    right: Ints
    same: Bools


def pool(
    embeddings: npt.NDArray[np.floating],
    template: Ints,
    medium: Ints | None = None,
    weight: npt.NDArray[np.floating] | None = None,
) -> Templates:
    """The templates' embeddings: sums of their photos', scaled to length 1.

    Without `medium` and `weight` that is the direction of the plain mean. With `medium`, each photo is divided by the
    number of photos of its medium in the template. With `weight`, it is multiplied by its weight first; as in
    `eval_ijbc`, nothing is divided by the sum of weights, so a medium of doubtful photos counts less than one of clear
    ones. What `eval_ijbc` calls N1 is the weight |f|, the norm of the embedding before it was scaled; D1 is the
    detector's score, and N1D1 the product of the two.

    Args:
        embeddings: [N, D], L2-normalised.
        template: [N] id of each photo's template.
        medium: [N] id of each photo's medium; ids may repeat in other templates.
        weight: [N] finite, not negative.

    Raises:
        UserError: embeddings or weights that are not finite, negative weights, or a template whose photos add up to
            nothing.
    """
    weights = np.ones(len(template)) if weight is None else np.asarray(weight, np.float64)
    bad = ~(np.isfinite(weights) & (weights >= 0.0))
    if bad.any():
        raise UserError("weights", f"{int(bad.sum())} of {len(bad)} are not finite or negative", "weights from 0")
    order = np.lexsort((np.zeros(len(template), np.int64) if medium is None else medium, template))
    template, weights = template[order], weights[order]
    if medium is not None:
        ordered = medium[order]
        begins = np.append(True, (template[1:] != template[:-1]) | (ordered[1:] != ordered[:-1]))[: len(template)]
        number = np.cumsum(begins) - 1
        weights = weights / np.bincount(number)[number]
    ids, first = np.unique(template, return_index=True)
    vectors = np.empty((len(ids), embeddings.shape[1]))
    begin = 0
    while begin < len(ids):
        # As many templates as have about `_ROWS` photos, at least one.
        end = max(begin + 1, int(np.searchsorted(first, first[begin] + _ROWS)))
        rows = slice(first[begin], first[end] if end < len(ids) else len(order))
        weighted = embeddings[order[rows]].astype(np.float64) * weights[rows, None]
        vectors[begin:end] = np.add.reduceat(weighted, first[begin:end] - first[begin], axis=0)
        begin = end
    norms = np.linalg.norm(vectors, axis=1)
    bad = ~(np.isfinite(norms) & (norms > _SMALLEST_NORM))
    if bad.any():
        found = f"{int(bad.sum())} of {len(ids)} have no direction, the first {ids[np.argmax(bad)]}"
        raise UserError("templates", found, "finite embeddings that do not cancel out, and weights above 0")
    return Templates(ids, (vectors / norms[:, None]).astype(np.float32))


def pair_scores(templates: Templates, left: Ints, right: Ints) -> Floats:
    """[P] float64 cosines of pairs of templates, in blocks; `verification.squared_distance` turns them into distances.

    The products are made in float32, so cosines are right to some 1e-7: reading their rows is what 15.6 million pairs
    take, and half as many bytes are read in a fourth of the time.

    Args:
        templates: see `pool`.
        left, right: [P] template ids.

    Raises:
        UserError: a pair names a template that is not there.
    """
    rows = [_rows(templates.ids, ids) for ids in (left, right)]
    scores = np.empty(len(left), np.float64)
    for start in range(0, len(left), _PAIRS):
        part = slice(start, start + _PAIRS)
        a, b = (templates.vectors[side[part]] for side in rows)
        scores[part] = np.einsum("nd,nd->n", a, b)
    return scores


def read_faces(path: Path) -> TemplateFaces:
    """Read IJB's list of faces (`ijbc_face_tid_mid.txt`): a line `IMAGE TEMPLATE MEDIUM` a photo.

    Raises:
        UserError: no such file, or a line of another form, named by its number.
    """
    table = read_table(path, {"image": pa.string(), "template": pa.int64(), "medium": pa.int64()})
    return TemplateFaces(table["image"].to_pylist(), table["template"].to_numpy(), table["medium"].to_numpy())


def read_template_pairs(path: Path) -> TemplatePairs:
    """Read IJB's list of pairs (`ijbc_template_pair_label.txt`): a line `TEMPLATE TEMPLATE 1-or-0` a pair.

    Raises:
        UserError: no such file, or a line of another form, named by its number.
    """
    table = read_table(path, {"left": pa.int64(), "right": pa.int64(), "label": pa.int64()})
    label = table["label"].to_numpy()
    wrong = (label != 0) & (label != 1)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise UserError(
            f"{path}:{line_of_row(path, place)}", f"label {label[place]}", "1 for the same person, 0 for two"
        )
    return TemplatePairs(table["left"].to_numpy(), table["right"].to_numpy(), label == 1)


def read_table(path: Path, columns: dict[str, pa.DataType]) -> pa.Table:
    """Read one of IJB's files: columns that single spaces part; lines may end in CR LF, and blank ones do not count.

    Args:
        path: the file.
        columns: their names, for messages, and types: strings, integers or floats.

    Raises:
        UserError: no such file, no line, or a line of another form, named by its number.
    """
    try:
        table = arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(column_names=list(columns)),
            parse_options=arrow_csv.ParseOptions(delimiter=" ", quote_char=False),
            convert_options=arrow_csv.ConvertOptions(column_types=columns, null_values=[], strings_can_be_null=False),
        )
    except OSError as error:
        raise UserError(path, f"unreadable ({error.strerror or error})", "a protocol file of IJB") from None
    except pa.ArrowInvalid as error:
        raise _bad_line(path, columns, str(error)) from None
    return table.combine_chunks()


def line_of_row(path: Path, row: int) -> int:
    """The number of the line, from 1, that holds a row, from 0, of one of IJB's files: blank lines are no rows."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        filled = (number for number, line in enumerate(lines, start=1) if line.strip())
        return next(islice(filled, row, None))


def _rows(ids: Ints, wanted: Ints) -> Ints:
    place = np.searchsorted(ids, wanted).clip(max=max(len(ids) - 1, 0))
    unknown = ids[place] != wanted if len(ids) else np.ones(len(wanted), bool)
    if unknown.any():
        first = wanted[np.argmax(unknown)]
        found = f"{int(unknown.sum())} of {len(wanted)} name a template that is not there, first {first}"
        raise UserError("pairs", found, "templates of the list of faces", "check that both lists are of one set")
    return place


def _bad_line(path: Path, columns: dict[str, pa.DataType], problem: str) -> UserError:
    """Which line it was: Arrow's message knows only when it reads in one thread."""
    expected = " ".join(f"{name.upper()}" for name in columns)
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.rstrip("\n").split(" ")
            if not line.strip():
                continue
            if len(fields) != len(columns) or not all(map(_fits, fields, columns.values())):
                return UserError(f"{path}:{number}", repr(line.rstrip("\n")[:80]), f"`{expected}`, single spaces")
    return UserError(path, "empty" if path.stat().st_size == 0 else problem.splitlines()[0], f"lines `{expected}`")


def _fits(field: str, kind: pa.DataType) -> bool:
    if pa.types.is_integer(kind):
        return field.removeprefix("-").isascii() and field.removeprefix("-").isdigit()
    if pa.types.is_floating(kind):
        try:
            return math.isfinite(float(field))
        except ValueError:
            return False
    return True
