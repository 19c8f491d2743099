"""RFW: four lists of pairs, one a race, of photos that are hard to tell apart (Wang et al. 2019, arXiv:1812.00194).

Its test part holds `data/African/m.0abc/m.0abc_0001.jpg` and `txts/African/African_pairs.txt`, whose lines are those of
LFW's pair list: `m.0abc<TAB>1<TAB>3` and `m.0abc<TAB>1<TAB>m.0xyz<TAB>2`. A list's pairs are in the order of its ten
folds and are cut into ten consecutive parts.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.config.errors import UserError
from pipeline.evaluate.grouped_pairs import Groups
from pipeline.evaluate.pairs import NUM_FOLDS, Pair, PairList, Photo, parse_pair
from pipeline.evaluate.protocols import consecutive_folds
from pipeline.inputs.listed_pairs import ListedPairs, read_lines

MARKER = "txts/*/*_pairs.txt"
GROUP = "race"

_HEADER = re.compile(r"[0-9]+(\s+[0-9]+)?")


def read_rfw(root: Path) -> ListedPairs:
    """All pairs of RFW in ten folds, each with a tenth of every race's; the group `race` says whose they are.

    Args:
        root: the folder that holds `data` and `txts`.

    Raises:
        UserError: no list, or a malformed line, named by its number.
    """
    lists = sorted(root.glob(MARKER))
    if not lists:
        raise UserError(root, "no list of pairs", "txts/RACE/RACE_pairs.txt, as RFW has it")
    pairs: list[tuple[Pair, str]] = []
    for path in lists:
        race = path.parent.name
        lines = list(read_lines(path, "a pair list in the format of LFW's pairs.txt"))
        if lines and _HEADER.fullmatch(lines[0][1]):
            del lines[0]
        if not lines:
            raise UserError(path, "no pairs", "a line a pair")
        for (where, line), fold in zip(lines, consecutive_folds(len(lines), NUM_FOLDS).tolist(), strict=True):
            pair = parse_pair(line, fold, None, where)
            pairs.append((pair._replace(left=_photo(pair.left, race), right=_photo(pair.right, race)), race))
    pairs.sort(key=lambda one: one[0].fold)
    races = [race for _, race in pairs]
    listed = PairList([pair for pair, _ in pairs], NUM_FOLDS)
    return ListedPairs(listed, root, lists, root / "txts", {GROUP: Groups(races, races)})


def _photo(photo: Photo, race: str) -> Photo:
    return photo._replace(path=f"data/{race}/{photo.identity}/{photo}.jpg")
