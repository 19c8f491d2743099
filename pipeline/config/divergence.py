"""Configuration of what happens when training goes wrong numerically."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.config.section import Section


class DivergenceConfig(Section):
    """Steps whose loss or gradient is not finite, and losses that jump. Such a step leaves all weights as they are."""

    on_non_finite: Literal["stop", "skip"] = "stop"
    """`stop` ends the run with a dump for replay; `skip` goes on with the next batch, after a dump of the first one."""
    max_skipped: int = Field(10, ge=1)
    """So many skipped steps in a row end the run all the same."""
    spike_factor: float | None = Field(None, gt=1)
    """A loss of so many times the median of the last `spike_window` is a spike; None does not look."""
    spike_window: int = Field(50, ge=10)
    """Steps that a spike is measured against; nothing is a spike before there were as many."""
    on_spike: Literal["warn", "roll_back"] = "warn"
    """`roll_back` takes up the newest checkpoint's weights again and goes on with the batches after the spike."""
    max_roll_backs: int = Field(3, ge=1)
    """So many in a run; a spike after that is only said."""
