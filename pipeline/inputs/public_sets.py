"""The public test sets that are read in their own files: which there are, how each is recognised, who reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

from pipeline.config.errors import UserError
from pipeline.inputs import agedb, cfp, ijb, rfw
from pipeline.inputs.cross_lfw import read_cross_lfw
from pipeline.inputs.listed_pairs import ListedPairs
from preprocess.crops import NO_DETECTOR

LISTED_SETS: dict[str, tuple[str, ...]] = {
    "cfp-fp": (cfp.MARKER,),
    "cfp-ff": (cfp.MARKER,),
    "agedb-30": agedb.LISTS,
    "calfw": ("pairs_CALFW.txt",),
    "cplfw": ("pairs_CPLFW.txt",),
    "rfw": (rfw.MARKER,),
}
"""Sets of pairs of photos; each is known by any of these files. Of sets with the same files, the first is meant."""

PROTOCOLS = {**LISTED_SETS, **{name: (marker,) for name, marker in ijb.MARKERS.items()}}

_WITH_A_LIST = ("agedb-30", "calfw", "cplfw")
"""Sets whose pairs are in one file, which may lie elsewhere."""


def find_protocol(data: Path, named: str | None) -> str | None:
    """Which test set a folder is.

    Args:
        data: the folder.
        named: the set that the user names; None: any.

    Returns:
        Its name; None where nobody named one, and the files are of none.

    Raises:
        UserError: no such set, or not the files of the one that was named.
    """
    if require_known(named) is None:
        return next((name for name, markers in PROTOCOLS.items() if _has_any(data, markers)), None)
    assert named is not None
    markers = PROTOCOLS[named]
    if not data.is_dir():
        raise UserError(data, "not a directory" if data.exists() else "no such directory", f"the folder of {named}")
    if not _has_any(data, markers):
        raise UserError(data, f"not the files of {named}", " or ".join(markers))
    return named


def read_listed(data: Path, protocol: str, list_path: Path | None, detector: str | None) -> ListedPairs:
    """The pairs of a set of `LISTED_SETS`.

    Args:
        data: its folder.
        protocol: its name.
        list_path: its list of pairs, where that lies elsewhere.
        detector: as the user names it; `none` for photos that are aligned.

    Raises:
        UserError: files are missing or malformed, or a list is named of a set that has several.
    """
    markers = PROTOCOLS[protocol]
    if list_path is not None and protocol not in _WITH_A_LIST:
        raise UserError("--pairs", f"given with {protocol}, whose pairs are in several files", remedy="leave it out")
    if protocol in ("cfp-fp", "cfp-ff"):
        return cfp.read_cfp(data, "FP" if protocol == "cfp-fp" else "FF")
    if protocol == "rfw":
        return rfw.read_rfw(data)
    if list_path is None:
        list_path = next(data / name for name in markers if (data / name).is_file())
    if protocol == "agedb-30":
        return agedb.read_agedb(data, list_path)
    return read_cross_lfw(data, list_path, are_aligned=detector == NO_DETECTOR)


def ijb_name(protocol: str) -> Literal["ijb-b", "ijb-c"]:
    """The name of one of IJB's sets, as a type."""
    assert protocol in ijb.MARKERS
    return cast(Literal["ijb-b", "ijb-c"], protocol)


def require_known(protocol: str | None) -> str | None:
    """The same name, or None.

    Raises:
        UserError: there is no set of that name.
    """
    if protocol is not None and protocol not in PROTOCOLS:
        raise UserError("--protocol", f"unknown test set {protocol!r}", ", ".join(PROTOCOLS))
    return protocol


def _has_any(data: Path, markers: tuple[str, ...]) -> bool:
    return any(next(data.glob(marker), None) is not None for marker in markers)
