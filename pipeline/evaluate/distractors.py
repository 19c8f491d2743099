"""Rank 1 among growing numbers of strangers, as MegaFace reports it."""

from __future__ import annotations

import math

import numpy as np
from markupsafe import Markup

from pipeline.evaluate import identification, result
from pipeline.evaluate.charts import Axis, Series, chart, number, percent_axis
from pipeline.evaluate.embed import Embeddings
from pipeline.evaluate.template_set import EmbeddedRows


def search_among(found: Embeddings, strangers: EmbeddedRows, path: str, num_own: int) -> result.Distractors:
    """Search each photo among one other of its person and 10, 100, … and all strangers; see `rank1_among_distractors`.

    Args:
        found: embeddings of the photos that are searched.
        strangers: the distractors, in the order in which they join the gallery.
        path: where they come from.
        num_own: how many photos of those who search were left out of them.

    Raises:
        UserError: nobody has two photos.
    """
    vectors = strangers.vectors[strangers.is_present]
    person = np.unique([photo.identity for photo in found.photos], return_inverse=True)[1]
    sizes = [10**power for power in range(1, 7) if 10**power < len(vectors)] + [len(vectors)]
    rates = identification.rank1_among_distractors(found.vectors.astype(np.float32), person, vectors, sizes)
    return result.Distractors(
        path=path,
        num_distractors=len(vectors),
        num_missing=len(strangers.missing),
        num_own=num_own,
        rank1={str(size): rate for size, rate in rates.items()},
    )


def distractors_chart(figures: result.Distractors) -> Markup:
    """Rank 1 over the number of distractors."""
    sizes, rates = [float(size) for size in figures.rank1], list(figures.rank1.values())
    decades = max(1, math.ceil(math.log10(sizes[-1]) - 1e-9))
    x = Axis(1.0, 10.0**decades, [(10.0**k, number(10.0**k)) for k in range(decades + 1)], "distractors", log=True)
    y = percent_axis(0.0, 1.0, 0.2, "rank 1, %")
    return chart("Rank 1 over the number of distractors", x, y, [Series("plain", sizes, rates)])
