"""InsightFace's verification sets (`lfw.bin`, `cfp_fp.bin`, …) as photos and a pair list.

Their crops are aligned already. Who is on a photo is not known beyond its pair, so each pair has people of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from pipeline.data.pair_bin import PairBin, photo_names
from pipeline.evaluate.pairs import NUM_FOLDS, Pair, PairList, Photo
from pipeline.evaluate.photos import Crop, Rejected
from pipeline.evaluate.protocols import consecutive_folds


class PairSetPhotos:
    """The photos of a verification set; see `pipeline.evaluate.photos.PhotoSource`.

    Args:
        pairs: the set.
        crop: gives the crop of the model's size from a photo's bytes, or why there is none.
    """

    def __init__(self, pairs: PairBin, crop: Callable[[bytes], Crop | Rejected]) -> None:
        self._crop = crop
        names = [Photo(*name) for number, same in enumerate(pairs.is_same) for name in photo_names(number, same)]
        self._images = dict(zip(names, pairs.images, strict=True))

    def numbers(self) -> Mapping[str, list[int]]:
        """The numbers of each identity's photos."""
        found: dict[str, list[int]] = defaultdict(list)
        for photo in self._images:
            found[photo.identity].append(photo.number)
        return found

    def load(self, photo: Photo) -> Crop | Rejected:
        image = self._images.get(photo)
        return Rejected("not in the verification set") if image is None else self._crop(image)


def list_pairs(pairs: PairBin) -> PairList:
    """The set's pairs in its own order, cut into ten consecutive folds of like size as InsightFace cuts them.

    Where ten do not divide the pairs, the first folds have one more.
    """
    folds = consecutive_folds(len(pairs.is_same), NUM_FOLDS).tolist()
    listed = []
    for number, (same, fold) in enumerate(zip(pairs.is_same, folds, strict=True)):
        left, right = photo_names(number, same)
        listed.append(Pair(Photo(*left), Photo(*right), fold))
    return PairList(listed, NUM_FOLDS)
