"""Parts of `evaluation.json` that are there when they were asked for. `docs/evaluation.md` explains the fields."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

DegradationKind = Literal["blur", "low_resolution", "jpeg", "occlusion", "brightness"]


class Frozen(BaseModel):
    """What all parts of a result have in common: nothing unknown, nothing infinite, no change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RobustnessPoint(Frozen):
    """Verification of the same pairs where the second photo of each is degraded this much."""

    strength: float
    accuracy: float
    """By folds, at thresholds chosen on pairs that are degraded alike."""
    std: float
    accuracy_at_clean_threshold: float
    far_at_clean_threshold: float
    tar_at_clean_threshold: float
    tar_at_far_1e_3: float | None
    """At a threshold chosen on these pairs; null where there are too few different pairs."""


class RobustnessCurve(Frozen):
    """One kind of degradation."""

    kind: DegradationKind
    unit: str
    """Of the strengths."""
    neutral: float | None
    """The strength that changes nothing; null for JPEG quality, which has none."""
    points: list[RobustnessPoint]


class Robustness(Frozen):
    """Verification where photos get worse."""

    protocol: str
    num_probes: int
    """Photos that were degraded."""
    clean: RobustnessPoint
    """Nothing degraded; its `strength` is 0."""
    clean_threshold: float
    """Squared distance: the best on the pairs as they are."""
    curves: list[RobustnessCurve]


class RejectFigures(Frozen):
    """An error-versus-reject curve and its area."""

    rejected: list[float]
    """Shares of the same pairs rejected; the rate is that of the last share that is not above."""
    fnmr: list[float]
    area: float
    """Below the curve, from 0 to `up_to`."""


class Quality(Frozen):
    """Whether measures of photo quality predict false non-matches."""

    protocol: str
    num_same: int
    threshold: float
    """Squared distance; a pair is accepted below it."""
    start_fnmr: float
    """At that threshold, with nothing rejected."""
    up_to: float
    """Where areas end: a share rejected."""
    area_of_chance: float
    """Of a measure that says nothing."""
    least_area: float
    """If each pair rejected were one that fails."""
    measures: dict[str, RejectFigures]
    """Keys `norm` and `ser_fiq`."""
    left_out: dict[str, str]
    """Measures that this model does not allow, and why."""


class Coordinates(Frozen):
    """Where a map puts the photos."""

    method: str
    x: list[float]
    y: list[float]


class PeopleMap(Frozen):
    """Embeddings of some people's photos, laid out in the plane."""

    protocol: str
    people: list[str]
    person: list[int]
    """Of each photo: a place in `people`."""
    photo: list[str]
    """The name of each: `Ann_0001`, or its path where photos go by path."""
    maps: list[Coordinates]


class ClusterAgreement(Frozen):
    """How well clusters are people."""

    precision: float
    recall: float
    f: float


class ClusterFigures(Frozen):
    """One way to cluster, measured."""

    method: str
    given: str
    """What it was told beforehand."""
    threshold: float | None
    """Cosine, chosen on the first half of the people; null for methods without one."""
    num_clusters: int
    """A photo that is put with nobody counts as one."""
    pairwise: ClusterAgreement
    bcubed: ClusterAgreement
    nmi: float


class Clusters(Frozen):
    """Clusterings of the second half of a split's people."""

    protocol: str
    num_people_to_choose: int
    num_photos_to_choose: int
    num_people: int
    """Measured."""
    num_photos: int
    num_left_out: int
    """Photos of neither half: there is a limit to what is compared all with all."""
    methods: list[ClusterFigures]


class GroupRate(Frozen):
    """Errors among the pairs of a group or of two."""

    errors: int
    trials: int
    value: float
    low: float
    high: float
    """Ends of the 95 % interval."""
    method: Literal["wilson", "bootstrap"]


class GroupErrors(Frozen):
    """Pairs of which one photo is of one group and one of the other."""

    groups: tuple[str, str]
    fmr: GroupRate | None
    """False match rate; null without different pairs."""
    fnmr: GroupRate | None
    """False non-match rate; null without same pairs."""


class GroupDisparity(Frozen):
    """The worst and the best of some groups' rates."""

    worst: tuple[str, str]
    worst_rate: float
    best: tuple[str, str]
    best_rate: float
    ratio: float | None
    """Worst / best; null where the best is 0."""


class Grouping(Frozen):
    """One column of groups."""

    name: str
    rates: list[GroupErrors]
    fmr: GroupDisparity | None
    """null where fewer than two groups or pairs of groups have the rate."""
    fnmr: GroupDisparity | None


class Fairness(Frozen):
    """Error rates of groups of people at one threshold."""

    protocol: str
    threshold: float
    """Squared distance; a pair is accepted below it."""
    groupings: list[Grouping]


class Sections(Frozen):
    """What was asked for; each is null unless it was."""

    robustness: Robustness | None = None
    quality: Quality | None = None
    people_map: PeopleMap | None = None
    clusters: Clusters | None = None
    fairness: Fairness | None = None
