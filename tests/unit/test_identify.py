"""Who is enrolled and who is searched, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config.errors import UserError
from pipeline.evaluate.embed import Embeddings
from pipeline.evaluate.identify import identify
from pipeline.evaluate.pairs import Photo


def embeddings(*photos: tuple[str, int, float]) -> Embeddings:
    """Photos with directions in degrees."""
    radians = np.deg2rad([angle for _, _, angle in photos])
    vectors = np.stack((np.cos(radians), np.sin(radians)), axis=1)
    return Embeddings([Photo(name, number) for name, number, _ in photos], vectors, {Photo("Z", 1): "gone"})


def test_first_photos_are_enrolled_and_all_others_searched() -> None:
    # Bo's photo 2 lies nearer to Ann's first, and Ann's photo 10 (not its "first" as text) to Cy's only photo.
    found = identify(
        embeddings(("Ann", 10, 170), ("Bo", 2, 20), ("Ann", 2, 0), ("Cy", 4, 180), ("Bo", 1, 60), ("Bo", 9, 70)), "data"
    )
    assert (found.num_gallery, found.num_probes, found.num_missing) == (3, 3, 1)
    # Ranks: Ann's photo 10 is third, Bo's 2 second, Bo's 9 first.
    assert found.cmc == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert found.rank == pytest.approx({"1": 1 / 3, "5": 1.0, "10": 1.0})


def test_half_of_the_people_are_strangers_in_the_open_set() -> None:
    """Eight people in the corners of a circle; strangers' photos lie 45 degrees from whoever is enrolled."""
    photos = [(f"p{n}", number, 45.0 * n + number) for n in range(8) for number in range(10)]
    found = identify(embeddings(*photos), "data").open_set
    assert (found.num_gallery, found.num_mated, found.num_unmated) == (4, 36, 40)
    point = found.tpir_at_fpir["1e-1"]
    assert (point.tpir, point.num_unmated_needed) == (1.0, 30)
    assert point.fpir is not None
    assert point.fpir <= 0.1
    assert found.tpir_at_fpir["1e-2"].tpir is None
    assert identify(embeddings(*photos[::-1]), "data").open_set == found


def test_too_few_people_or_photos_are_refused() -> None:
    for photos in ([], [("A", 1, 0.0), ("A", 2, 0.0)], [("A", 1, 0.0), ("B", 1, 0.0)]):
        with pytest.raises(UserError, match=r"data: .* expected two people, and two photos of somebody"):
            identify(embeddings(*photos), "data")
