"""IJB-B and IJB-C, 1:1: pairs of templates, as InsightFace distributes their photos, landmarks and protocols.

    loose_crop/1.jpg …
    meta/ijbc_name_5pts_score.txt        1.jpg x0 y0 … x4 y4 SCORE: five landmarks and the detector's score
    meta/ijbc_face_tid_mid.txt           1.jpg TEMPLATE MEDIUM, line by line the photos of the file above
    meta/ijbc_template_pair_label.txt    TEMPLATE TEMPLATE 1-or-0

(Whitelam et al. 2017; Maze et al. 2018.) Each photo is aligned by its landmarks; no detector looks at it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from pipeline.config.errors import UserError
from pipeline.evaluate.pairs import Photo
from pipeline.evaluate.photos import Crop, Rejected
from pipeline.evaluate.search import Vectors
from pipeline.evaluate.template_set import TemplateSet
from pipeline.evaluate.templates import TemplatePairs, line_of_row, read_faces, read_table, read_template_pairs
from pipeline.evaluate.verification import Ints
from pipeline.inputs.listed_pairs import NO_SUCH_FILE
from preprocess.align import align
from preprocess.photo import Reject, read_photo

MARKERS = {"ijb-b": "meta/ijbb_face_tid_mid.txt", "ijb-c": "meta/ijbc_face_tid_mid.txt"}

_NUM_POINTS = 5


@dataclass(frozen=True)
class Ijb:
    """One of the two sets."""

    templates: TemplateSet
    landmarks: Vectors
    """[N, 5, 2] px of the loose crop."""
    lists: list[Path]
    """Landmarks, faces, pairs."""


def read_ijb(root: Path, name: Literal["ijb-b", "ijb-c"]) -> Ijb:
    """The protocol files of a set; no photo is read.

    Args:
        root: the folder that holds `loose_crop` and `meta`.
        name: which of the two.

    Raises:
        UserError: a file or the folder of photos is missing, a line is malformed, or two files do not go together.
    """
    stem = root / "meta" / name.replace("-", "")
    lists = [Path(f"{stem}_{end}.txt") for end in ("name_5pts_score", "face_tid_mid", "template_pair_label")]
    if not (root / "loose_crop").is_dir():
        raise UserError(root, "no folder 'loose_crop'", f"the photos of {name}")
    numbers = [f"{axis}{point}" for point in range(_NUM_POINTS) for axis in "xy"]
    table = read_table(lists[0], {"image": pa.string(), **dict.fromkeys([*numbers, "score"], pa.float32())})
    names = table["image"].to_pylist()
    faces = read_faces(lists[1])
    if names != faces.name:
        both = zip(names, faces.name, strict=False)
        place = next(
            (place for place, (one, other) in enumerate(both) if one != other), min(len(names), len(faces.name))
        )
        found = f"{faces.name[place] if place < len(faces.name) else 'no photo'!r}"
        expected = f"{names[place] if place < len(names) else 'no photo'!r}, as in {lists[0].name}"
        raise UserError(f"{lists[1]}:{place + 1}", found, expected)
    photos = [
        Photo(f"template_{template}", row, f"loose_crop/{image}")
        for row, (image, template) in enumerate(zip(names, faces.template.tolist(), strict=True), start=1)
    ]
    score = table["score"].to_numpy().astype(np.float64)
    bad = ~(np.isfinite(score) & (score >= 0.0))
    if bad.any():
        place = int(np.argmax(bad))
        raise UserError(f"{lists[0]}:{line_of_row(lists[0], place)}", f"score {score[place]:g}", "a number from 0")
    pairs = read_template_pairs(lists[2])
    _check_templates(pairs, faces.template, lists)
    templates = TemplateSet(
        photos=photos,
        template=faces.template,
        medium=faces.medium,
        detector_score=score,
        pairs=pairs,
    )
    landmarks = np.stack([table[column].to_numpy() for column in numbers], axis=1).reshape(-1, _NUM_POINTS, 2)
    return Ijb(templates, landmarks, lists)


def _check_templates(pairs: TemplatePairs, template: Ints, lists: list[Path]) -> None:
    """Better now than when all photos are embedded."""
    known = np.unique(template)
    unknown = ~(np.isin(pairs.left, known) & np.isin(pairs.right, known))
    if unknown.any():
        place = int(np.argmax(unknown))
        named = next(int(side[place]) for side in (pairs.left, pairs.right) if side[place] not in known)
        raise UserError(f"{lists[2]}:{line_of_row(lists[2], place)}", f"template {named}", f"one of {lists[1].name}")


class IjbPhotos:
    """Photos aligned by their landmarks; see `pipeline.evaluate.photos.PhotoSource`."""

    def __init__(self, root: Path, landmarks: Vectors, crop_px: int) -> None:
        self._root, self._landmarks, self._crop_px = root, landmarks, crop_px

    def load(self, photo: Photo) -> Crop | Rejected:
        """The crop by the landmarks of the photo's row, its number; landmarks are never judged, as in `eval_ijbc`."""
        path = self._root / photo.path
        if not path.is_file():
            return Rejected(NO_SUCH_FILE)
        try:
            return align(read_photo(path).pixels, self._landmarks[photo.number - 1], self._crop_px)
        except Reject as reject:
            return Rejected(reject.reason)
        except ValueError:
            return Rejected("bad_landmarks")
