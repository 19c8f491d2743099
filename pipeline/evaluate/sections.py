"""The parts of an evaluation that are there when they are asked for, measured one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from pipeline.evaluate.cluster_people import deal_halves, measure_clusters
from pipeline.evaluate.embed import Embedder, Embeddings
from pipeline.evaluate.group_errors import measure_groups
from pipeline.evaluate.grouped_pairs import Groups
from pipeline.evaluate.pairs import Photo
from pipeline.evaluate.people_map import choose_photos, map_people
from pipeline.evaluate.photo_quality import measure_quality, same_pair_photos
from pipeline.evaluate.photos import PhotoSource
from pipeline.evaluate.result_sections import Sections
from pipeline.evaluate.robustness import count_photos, measure_robustness
from pipeline.evaluate.run import ScoredPairs
from pipeline.evaluate.ser_fiq import why_not

Progress = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""From the number of photos and what is done with them to the function that counts them."""


@dataclass(frozen=True)
class Asked:
    """Which sections."""

    robustness: bool = False
    quality: bool = False
    map_people: int | None = None
    """How many people the map shows."""
    clusters: bool = False


@dataclass(frozen=True)
class Measured:
    """What has been measured before, and on what."""

    embedder: Embedder
    source: PhotoSource
    found: Embeddings
    """Of the pairs' photos or of more."""
    groups: Mapping[str, Groups]
    """Of all pairs of the list; none where it has none."""
    scored: ScoredPairs
    threshold: float
    """Squared distance: the best on these pairs, or one carried over."""
    is_carried: bool
    knows_people: bool
    """Whether it is known who is on the photos."""
    where: object
    """What to name in messages."""


def check_photos(asked: Asked, photos: Sequence[Photo], where: object) -> None:
    """See that there are people enough for what was asked for: better now than when all photos are embedded.

    Args:
        asked: the sections.
        photos: that will be embedded.
        where: what to name in messages.

    Raises:
        UserError: too few photos or people.
    """
    if asked.map_people is not None:
        choose_photos(photos, asked.map_people, where)
    if asked.clusters:
        deal_halves(sorted(photos), where)


def measure_sections(asked: Asked, measured: Measured, *, batch: int, flip: bool, progress: Progress) -> Sections:
    """Measure what was asked for; group rates wherever pairs have groups.

    Raises:
        UserError: too few photos or people are left for a section.
    """
    embedder, source, found, scored = measured.embedder, measured.source, measured.found, measured.scored
    # First what may be refused, and takes least time.
    people_map = None if asked.map_people is None else map_people(found, asked.map_people, measured.where)
    clusters = measure_clusters(found, measured.where) if asked.clusters else None
    robustness = quality = fairness = None
    if measured.groups:
        fairness = measure_groups(
            scored,
            measured.groups,
            measured.threshold,
            is_carried=measured.is_carried,
            knows_people=measured.knows_people,
        )
    if asked.quality:
        has_score = why_not(embedder) is None
        counting = progress(len(same_pair_photos(scored)), "scoring the quality of") if has_score else nullcontext()
        with counting as advance:
            quality = measure_quality(embedder, source, found, scored, batch=batch, advance=advance)
    if asked.robustness:
        with progress(count_photos(scored.pairs, embedder.crop_px), "embedding degraded") as advance:
            robustness = measure_robustness(embedder, source, found, scored, batch=batch, flip=flip, advance=advance)
    return Sections(robustness=robustness, quality=quality, people_map=people_map, clusters=clusters, fairness=fairness)
