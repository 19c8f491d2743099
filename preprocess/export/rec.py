"""A split as InsightFace's `train.rec`, `train.idx`, `train.lst` and `property`.

Records: the images, keys 1 … N, person by person; a record for each person, keys N + 1 … N + C, with the keys at which
that person's images begin and end; at last key 0, with those at which the persons' records begin and end.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from pipeline.config.errors import UserError
from preprocess.export.samples import Samples
from preprocess.progress import Advance
from preprocess.recordio import MAX_EXACT_LABEL, write_image_record
from preprocess.storage import finish_folder, unfinished_folder


def export_rec(samples: Samples, out: Path, advance: Advance) -> None:
    """Write each photo's JPEG as it is into one record file. The folder appears when it is complete.

    `train.lst` has a line a photo, `1<TAB>IDENTITY/KEY.jpg<TAB>LABEL`: it tells who is behind a label.

    Args:
        samples: what to write.
        out: the folder to make.
        advance: told how many photos have been written since it was last told.

    Raises:
        UserError: more photos or people than the format counts exactly, a name that `train.lst` cannot hold, or a
            damaged photo.
    """
    _check(samples)
    work = unfinished_folder(out, samples.origin)
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    with (
        open(work / "train.rec", "wb", buffering=2**20) as rec,
        open(work / "train.idx", "w") as idx,
        open(work / "train.lst", "w", encoding="utf-8") as lst,
    ):
        offset = key = 0
        ranges = []
        for label, group in itertools.groupby(samples, key=lambda sample: sample.label):
            first = key + 1
            for sample in group:
                key += 1
                idx.write(f"{key}\t{offset}\n")
                lst.write(f"1\t{sample.identity}/{sample.key}.jpg\t{label}\n")
                offset += write_image_record(rec, float(label), key, samples.jpeg(sample))
                advance(1)
            ranges.append((float(first), float(key + 1)))
        first_identity = key + 1
        for labels in ranges:
            key += 1
            idx.write(f"{key}\t{offset}\n")
            offset += write_image_record(rec, labels, key)
        idx.write(f"0\t{offset}\n")
        write_image_record(rec, (float(first_identity), float(key + 1)), 0)
    (work / "property").write_text(f"{len(samples.identities)},{samples.crop_px},{samples.crop_px}\n")
    finish_folder(work, out)


def _check(samples: Samples) -> None:
    num_records = len(samples) + len(samples.identities) + 1
    if num_records >= MAX_EXACT_LABEL:
        raise UserError(
            samples.where,
            f"{num_records:,} records, and .rec files count them in float32",
            f"fewer than {MAX_EXACT_LABEL:,}",
            "export --format folders instead, or a smaller data set",
        )
    bad = next((name for name in samples.identities if "\t" in name or len(f"x{name}x".splitlines()) > 1), None)
    if bad is not None:
        raise UserError(f"identity {bad!r}", "cannot stand in train.lst", "no tab or line break in it")
