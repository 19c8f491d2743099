"""What a photo weighs in its template. A module of its own, for command lines must not wait for what measures."""

from __future__ import annotations

from enum import StrEnum


class TemplateWeights(StrEnum):
    """What a photo's embedding of length 1 is multiplied by before pooling; the names are those of `eval_ijbc`."""

    norm_score = "N1D1"
    """Its length before it was scaled, times the detector's score."""
    norm = "N1D0"
    score = "N0D1"
    none = "N0D0"
