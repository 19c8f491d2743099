"""Which photos a mining round looks at."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.data.counter import uniform


def draw_subset(
    labels: npt.NDArray[np.int32], *, seed: int, number: int, size: int, photos_per_person: int
) -> npt.NDArray[np.int64]:
    """Draw people by a hash of (seed, round, label) and their photos by a hash of (seed, round, row).

    People, not photos: of a large split, a draw of photos would hold hardly anyone twice, and an anchor needs a
    positive. People with a single photo are left out for the same reason.

    Args:
        labels: [N], contiguous, of all rows of the split.
        seed: of the run.
        number: of the round.
        size: rows at most; at least two people of `photos_per_person`.
        photos_per_person: rows of a label at most.

    Returns:
        [S] rows, sorted by label, then row. Empty where no label has two.
    """
    num_photos = np.bincount(labels)
    people = np.flatnonzero(num_photos >= 2)
    people = people[np.argsort(uniform(f"mined people of round {number}", seed, people), kind="stable")]
    num_taken = np.cumsum(np.minimum(num_photos[people], photos_per_person))
    is_drawn = np.zeros(len(num_photos), bool)
    is_drawn[people[num_taken <= size]] = True
    rows = np.flatnonzero(is_drawn[labels])
    rows = rows[np.lexsort((uniform(f"mined photos of round {number}", seed, rows), labels[rows]))]
    first = np.searchsorted(labels[rows], labels[rows])
    rows = rows[np.arange(len(rows)) - first < photos_per_person]
    return rows[np.lexsort((rows, labels[rows]))]
