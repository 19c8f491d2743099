"""The vision transformer: which patches it sees, and what decides that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.config.backbones import ViTConfig
from pipeline.model.backbones.vit import VisionTransformer

CROP_PX = 64  # 7 × 7 patches of 9 px


def network(mask_share: float = 0.3, drop_path: float = 0.0) -> VisionTransformer:
    torch.manual_seed(0)
    config = ViTConfig(size="tiny", width=0.125, embedding_dim=16, mask_share=mask_share, drop_path=drop_path)
    return VisionTransformer(config, CROP_PX)


def seen_patches(model: VisionTransformer, seed: int, batch: int = 4) -> Tensor:
    """[B, 49] bool: which patches the blocks were given, found by the gradient of what they gave."""
    crops = torch.randn(batch, 3, CROP_PX, CROP_PX, requires_grad=True)
    given: list[Tensor] = []
    hook = model.blocks.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    torch.manual_seed(seed)
    model(crops)
    hook.remove()
    (gradient,) = torch.autograd.grad(given[0].sum(), crops)
    patches = gradient[:, :, :63, :63].unflatten(2, (7, 9)).unflatten(4, (7, 9)).abs().sum((1, 3, 5)).flatten(1)
    return patches > 0


def test_the_generator_decides_which_patches_a_photo_is_seen_by() -> None:
    model = network()
    first, again, other = (seen_patches(model, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert (first.sum(dim=1) == int(49 * 0.7)).all()
    assert len({tuple(row.tolist()) for row in first}) == len(first)


def test_evaluation_sees_all_patches_and_is_not_random() -> None:
    model = network(drop_path=0.5).eval()
    assert seen_patches(model, 1).all()
    crops = torch.randn(2, 3, CROP_PX, CROP_PX)
    assert torch.equal(model(crops), model(crops))


def test_places_left_out_hold_the_mask_token_and_others_their_own_patch() -> None:
    model = network()
    handed: list[Tensor] = []
    model.neck.register_forward_pre_hook(lambda _, inputs: handed.append(inputs[0]))
    model.blocks = torch.nn.Sequential()  # what goes in comes out
    crops = torch.randn(4, 3, CROP_PX, CROP_PX)
    seen = seen_patches(model, 3)
    torch.manual_seed(3)
    model(crops)
    model.eval()(crops)
    masked, whole = (tokens.transpose(1, 2) for tokens in handed[-2:])
    assert model.mask_token is not None
    torch.testing.assert_close(masked[seen], whole[seen])
    assert torch.equal(masked[~seen], model.mask_token[0].expand((~seen).sum(), -1))


@pytest.mark.parametrize(("mask_share", "num_seen"), [(0.0, 49), (0.001, 48), (0.5, 24), (0.999, 1)])
def test_a_mask_leaves_out_at_least_one_patch_and_never_all(mask_share: float, num_seen: int) -> None:
    model = network(mask_share)
    assert (seen_patches(model, 1).sum(dim=1) == num_seen).all()
    assert (model.mask_token is None) == (mask_share == 0)


def test_a_branch_is_skipped_as_often_as_said_and_made_up_for() -> None:
    model = network(mask_share=0.0, drop_path=0.4)
    chances = [getattr(block.drop_path, "p", 0.0) for block in model.blocks]
    assert chances == pytest.approx([0.4 * number / 11 for number in range(12)])
    kept = model.blocks[-1].drop_path(torch.ones(2000, 3, 4))
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert kept.mean().item() == pytest.approx(1, abs=0.05)
    assert (kept == kept[:, :1, :1]).all()
