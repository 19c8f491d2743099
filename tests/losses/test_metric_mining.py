"""Semi-hard mining against a search through all negatives of each pair, where positives are many and distances tie."""

from __future__ import annotations

import pytest
import torch

from pipeline.model.metric.anchors import anchor_blocks
from pipeline.model.metric.batch import gather_batch
from pipeline.model.metric.mining import hardest, semi_hard


@pytest.mark.parametrize("num_people", [1, 2, 9, 80])
@pytest.mark.parametrize("has_ties", [True, False])
def test_semi_hard_is_the_nearest_beyond_the_positive(num_people: int, has_ties: bool) -> None:
    generator = torch.Generator().manual_seed(num_people)
    num = 100
    embeddings = torch.randn(num, 6, generator=generator)
    if has_ties:
        # few directions: most distances occur often, and photos of different people coincide
        embeddings = embeddings.sign()
    # some people have most of the photos
    labels = (num_people * torch.rand(num, generator=generator) ** 3).long()
    valid = torch.rand(num, generator=generator) > 0.1
    batch = gather_batch(embeddings, labels, torch.arange(num), valid, num_people, torch.float32)
    num_found = num_missing = 0
    for block in anchor_blocks(batch, None, batch.unit, block_bytes=100 * 4 * 30):
        edge = block.positive_cosine - 0.25
        columns, exists = semi_hard(block, edge)
        nearest, has_negative = hardest(block)
        for row, place in block.is_positive.nonzero().tolist():
            anchor, negatives = block.rows.start + row, block.negative_cosine[row]
            assert batch.labels[block.positive_columns[row, place]] == batch.labels[anchor]
            assert torch.equal(negatives == -torch.inf, batch.labels == batch.labels[anchor])
            positive = block.positive_cosine[row, place]
            semi = negatives[(negatives < positive) & (negatives > edge[row, place])]
            assert exists[row, place] == (len(semi) > 0)
            if len(semi):
                assert negatives[columns[row, place]] == semi.max()
            assert has_negative[row, place] == (negatives > -torch.inf).any()
            assert negatives[nearest[row, place]] == negatives.max()
            num_found, num_missing = num_found + bool(len(semi)), num_missing + (not len(semi))
        assert not exists[~block.is_positive].any()
    assert num_missing > 0
    assert num_found > 0 or num_people == 1
