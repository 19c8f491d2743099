"""Configuration of the local cache of a remote data set."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import ByteSize, Field

from pipeline.config.section import Section

MIB = 1 << 20


class CacheConfig(Section):
    """A folder on a local disk that keeps what was read from a remote data set, shared by all processes of a node."""

    path: Path
    """The folder; made when it is missing. Several data sets may share it."""
    max_bytes: ByteSize = Field(gt=0)
    """Bytes of shards that are kept at most, as `200GiB`; what was used longest ago goes first."""
    granularity: Literal["block", "shard"] = "block"
    """What is fetched and kept as one piece: a block of a shard, or the whole shard."""
    block_mib: int = Field(8, ge=1, le=1024)
    """Size of a block, in MiB."""
