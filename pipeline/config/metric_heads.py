"""Configuration sections of the metric heads; `pipeline/model/metric` has what they name."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.section import Section


class MemoryConfig(Section):
    """Cross-batch memory (Wang et al. 2020, arXiv:1912.06798): past embeddings join each anchor's pairs."""

    size: int = Field(8192, ge=1)
    """Embeddings kept, the newest ones; every rank has all of them."""
    start_step: int = Field(1000, ge=0)
    """Step at which it begins to fill: before, embeddings move too fast to be compared with old ones."""


class MetricHeadConfig(Section):
    """What all heads that compare the embeddings of a global batch share."""

    block_bytes: int | None = Field(None, ge=1024)
    """Memory of one block of cosines, anchors times gallery; None chooses."""


class ContrastiveConfig(MetricHeadConfig):
    """½d² for two photos of a person, ½[m − d]²₊ for others (DeepID2, Sun et al. 2014, arXiv:1406.4773)."""

    kind: Literal["contrastive"] = "contrastive"
    margin: float = Field(1.0, gt=0, le=2)
    """m, the distance beyond which two people are left alone."""
    memory: MemoryConfig | None = None
    """Compare with past batches too."""


class TripletConfig(MetricHeadConfig):
    """[d_ap − d_an + α]₊ (FaceNet, Schroff et al. 2015, arXiv:1503.03832, section 3.1)."""

    kind: Literal["triplet"] = "triplet"
    mining: Literal["semi_hard", "hard", "random", "batch_hard", "batch_all"] = "semi_hard"
    """Which negatives meet which pairs: see docs/metric-learning.md."""
    margin: float = Field(0.2, ge=0, le=4)
    """What a negative has to be farther away than the positive; with `soft_margin`, the width of semi-hard only."""
    soft_margin: bool = False
    """Softplus of the difference of distances in place of the hinge (Hermans et al. 2017, arXiv:1703.07737)."""
    squared: bool = True
    """Squared distances, as FaceNet; otherwise plain ones, as Hermans et al."""
    memory: MemoryConfig | None = None
    """Mine in past batches too; with semi_hard and hard."""

    @model_validator(mode="after")
    def _memory_fits_mining(self) -> TripletConfig:
        if self.memory is not None and self.mining not in ("semi_hard", "hard"):
            raise ValueError(f"memory goes with mining semi_hard or hard, not {self.mining}")
        return self


class MarginBasedConfig(MetricHeadConfig):
    """[α + y(d − β)]₊ with distance-weighted sampling (Wu et al. 2017, arXiv:1706.07567, section 4)."""

    kind: Literal["margin_based"] = "margin_based"
    margin: float = Field(0.2, ge=0, le=2)
    """Width of the border on either side of beta."""
    beta: float = Field(1.2, gt=0, le=2)
    """At the start: the learnt distance that divides a person from others."""
    beta_per_class: bool = False
    """One beta for each class, in place of one for all."""


class MultiSimilarityConfig(MetricHeadConfig):
    """Multi-similarity loss with its pair mining (Wang et al. 2019, arXiv:1904.06627)."""

    kind: Literal["multi_similarity"] = "multi_similarity"
    positive_scale: float = Field(2.0, gt=0)
    """Weight of a positive's cosine in its exponent, the paper's alpha."""
    negative_scale: float = Field(50.0, gt=0)
    """Weight of a negative's, the paper's beta."""
    base: float = Field(0.5, ge=-1, le=1)
    """Cosine that separates the two, the paper's lambda."""
    mining_margin: float = Field(0.1, ge=0, le=2)
    """A pair is kept if it comes this near in cosine to the hardest of the other kind, the paper's epsilon."""


class NPairConfig(MetricHeadConfig):
    """N-pair multi-class loss (Sohn 2016) over scaled cosines, all negatives against each positive pair."""

    kind: Literal["n_pair"] = "n_pair"
    scale: float = Field(16.0, gt=0)
    """Factor on cosines, the inverse of a temperature."""
