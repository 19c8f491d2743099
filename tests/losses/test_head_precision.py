"""The head in bfloat16 products against float64, with the bound that docs/head.md states."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.config.margins import MarginConfig
from pipeline.model.margins.base import build_margin
from pipeline.model.partial_fc import HeadOptions, MarginSoftmaxHead
from tests.losses.head_cases import MARGINS

NUM_CLASSES, DIM, BATCH = 300, 64, 32
LOSS_BOUND, GRADIENT_BOUND = 2e-2, 4e-2
JUMPING_BOUND = 0.2
"""For CurricularFace's gradients: a negative that rounding carries over the threshold changes its weight at once."""


def run(margin: MarginConfig, dtype: torch.dtype, products: str) -> tuple[Tensor, Tensor, Tensor]:
    options = HeadOptions(products=products, block_bytes=1 << 14)  # type: ignore[arg-type]
    head = MarginSoftmaxHead(NUM_CLASSES, DIM, build_margin(margin, NUM_CLASSES), 0, options).to(dtype)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, NUM_CLASSES, (BATCH,), generator=generator)
    centres = head.get_parameter("class_centres").detach().double()
    towards = torch.linspace(-0.2, 1, BATCH, dtype=torch.float64)[:, None]
    noise = torch.randn(BATCH, DIM, generator=generator, dtype=torch.float64)
    embeddings = 15 * towards * torch.nn.functional.normalize(centres[labels]) + noise
    embeddings = embeddings.to(dtype).requires_grad_()
    ids = torch.arange(BATCH)
    loss = head(embeddings, labels, ids, ids >= 0, 0).loss
    loss.backward()
    gradient = head.get_parameter("class_centres").grad
    assert embeddings.grad is not None
    assert gradient is not None
    return loss.detach().double(), embeddings.grad.double(), gradient.double()


@pytest.mark.parametrize(("name", "margin"), MARGINS, ids=[name for name, _ in MARGINS])
def test_bf16_products_stay_within_the_stated_bound(name: str, margin: MarginConfig) -> None:
    exact = run(margin, torch.float64, "fp32")
    narrow = run(margin, torch.float32, "bf16")
    assert (narrow[0] - exact[0]).abs() <= LOSS_BOUND * exact[0].abs()
    bound = JUMPING_BOUND if name == "curricularface" else GRADIENT_BOUND
    for found, expected in zip(narrow[1:], exact[1:], strict=True):
        assert (found - expected).norm() <= bound * expected.norm()
    assert not torch.equal(narrow[1], exact[1]), "were nothing rounded, this would test nothing"
