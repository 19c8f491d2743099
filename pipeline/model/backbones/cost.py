"""What a backbone costs a photo: parameters, products, and what a training step has to remember.

Counted on tensors without storage, so that any network is counted in seconds and in no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from pipeline.config.backbones import BackboneConfig
from pipeline.model.backbones.build import build_without_memory


@dataclass(frozen=True)
class BackboneCost:
    """Of a backbone for crops of one size."""

    num_parameters: int
    multiply_adds: int
    """Of the products and convolutions of a forward pass over one photo, in evaluation; twice as many FLOPs."""
    activation_bytes: int
    """Of what autograd keeps of one photo between the forward and the backward pass of a training step, in float32;
    not counted are weights, running statistics, and what batch norm keeps once for a whole micro-batch."""


def backbone_cost(config: BackboneConfig, crop_px: int) -> BackboneCost:
    """Count what the network costs.

    Raises:
        UserError: a network that cannot be built.
    """
    model = build_without_memory(config, crop_px)  # initial values are asked for, which fake tensors do not have
    # fake tensors pass for tensors of a CPU, where attention is fused as it is on a GPU; on the meta device it is not
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        few, many = _kept_bytes(model, _crops(2, crop_px)), _kept_bytes(model, _crops(4, crop_px))
        return BackboneCost(
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            multiply_adds=count_multiply_adds(model, _crops(1, crop_px)),
            activation_bytes=(many - few) // 2,
        )


def count_multiply_adds(model: nn.Module, crops: Tensor) -> int:
    """Of the products and convolutions of a forward pass in evaluation, to which the model is set.

    Args:
        model: runs once.
        crops: [B, 3, H, W] uint8, on the model's device.
    """
    model.eval()
    # the counter knows fused attention on GPUs only
    also_counted = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=also_counted) as counter:
        model(crops)
    return counter.get_total_flops() // 2


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """FLOPs by shapes [B, heads, N, C / heads]."""
    return sdpa_flop_count(query, key, value)


def _kept_bytes(model: nn.Module, crops: Tensor) -> int:
    """Bytes of all storages that autograd saves in a forward pass in training, each counted once."""
    model.train()
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()._cdata) not in own:
            kept[storage] = tensor  # held, so that no later storage gets the same address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(crops)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _crops(num_photos: int, crop_px: int) -> Tensor:
    return torch.zeros(num_photos, 3, crop_px, crop_px, dtype=torch.uint8)
