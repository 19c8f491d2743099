"""The stages of a network, found by running it: in which order its modules are called, and how large their maps are.

A unit is a block (a module of modules in a sequence of them) or a layer outside all blocks. Units follow each other in
the order in which a forward pass calls them, and a stage ends where the map shrinks to less than half its places. Where
no block shrinks it, as in a transformer, each block is a stage. What makes the embedding is the last stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pipeline.model.backbones.build import NETWORK_PREFIX, FaceModel

NETWORKS = (NETWORK_PREFIX.removesuffix("."), f"{NETWORK_PREFIX}trunk")
"""What is no unit however it is built: the network, and the one of timm in it."""


def find_stages(model: FaceModel, crop_px: int) -> list[list[str]]:
    """Stages from the input to the output; each is a list of modules and parameters by their names in `model`.

    Every parameter is in one stage: one of a module that no forward pass calls, or of none, is in the stage of the
    parameter before it.

    Args:
        model: on the meta device, for only the shapes of what it computes are looked at.
        crop_px: side of its crops.
    """
    units = dict(_units(model, ""))
    places = _places_by_unit(model, units, crop_px)
    stage_of = dict(zip(places, _number_stages(model, units, places), strict=True))
    names: list[dict[str, None]] = [{} for _ in range(1 + max(stage_of.values()))]
    number = 0
    for parameter, _ in model.named_parameters():
        owner = next((unit for unit in places if parameter.startswith(f"{unit}.")), parameter)
        number = stage_of.get(owner, number)
        names[number][owner] = None
    return [_by_container(list(stage), {unit for other in names for unit in other}) for stage in names]


def _units(module: nn.Module, prefix: str, is_sequence: bool = False) -> Iterator[tuple[str, bool]]:
    """Names of the units under a module, and whether each is a block."""
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        # a list or a dictionary of modules is never called itself
        is_container = isinstance(child, nn.Sequential) or type(child).forward is nn.Module.forward
        if is_container or path in NETWORKS or (not is_sequence and _has_blocks(child)):
            yield from _units(child, f"{path}.", is_container)
        else:
            yield path, is_sequence and _is_composite(child)


def _has_blocks(module: nn.Module) -> bool:
    sequences = (part for part in module.modules() if isinstance(part, nn.Sequential | nn.ModuleList))
    elements = (element for sequence in sequences for element in sequence)
    return any(_is_composite(element) and not isinstance(element, nn.Sequential) for element in elements)


def _is_composite(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _places_by_unit(model: FaceModel, units: dict[str, bool], crop_px: int) -> dict[str, int]:
    """The units that have parameters, in the order in which they are called, and the places of the map that each gives;
    none in a vector."""
    places: dict[str, int] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        def note(_module: nn.Module, _inputs: Any, outputs: Any) -> None:
            places.setdefault(name, _num_places(next(leaf for leaf in tree_leaves(outputs) if torch.is_tensor(leaf))))

        return model.get_submodule(name).register_forward_hook(note)

    with_parameters = [name for name in units if next(model.get_submodule(name).parameters(), None) is not None]
    handles = [watch(name) for name in with_parameters]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, crop_px, crop_px, dtype=torch.uint8, device="meta"))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return places


def _num_places(output: Tensor) -> int:
    if output.ndim == 4:  # crops are square, and so are maps: [B, C, S, S], or [B, S, S, C]
        return output.shape[2] * (output.shape[3] if output.shape[2] == output.shape[3] else output.shape[1])
    return output.shape[1] if output.ndim == 3 else 0


def _number_stages(model: FaceModel, units: dict[str, bool], places: dict[str, int]) -> Iterator[int]:
    """The number of each called unit's stage, from 0."""
    of_blocks = [size for unit, size in places.items() if units[unit]]
    # a class token more or less is no other size
    begins_at_blocks = len(of_blocks) > 1 and 2 * min(of_blocks) > max(of_blocks)
    tail = _embedding_units(model, places)
    number, first = -1, 0
    for unit, size in places.items():
        is_smaller = 2 * size < first
        if number < 0 or unit == tail[0] or (unit not in tail and (is_smaller or (begins_at_blocks and units[unit]))):
            number, first = number + 1, size
        yield number


def _embedding_units(model: FaceModel, places: dict[str, int]) -> list[str]:
    """The last unit, and what stands before it behind the last map: units that give a vector, layers on one place."""
    *others, last = places

    def is_behind(unit: str) -> bool:
        return places[unit] == 0 or (places[unit] == 1 and not _is_composite(model.get_submodule(unit)))

    return [last, *takewhile(is_behind, reversed(others))][::-1]


def _by_container(names: list[str], all_names: set[str]) -> list[str]:
    """The same, with a module's name in place of all that is in it, as far up as nothing of another stage is in it."""
    others = all_names - set(names)
    found: dict[str, None] = {}
    for name in names:
        while (above := name.rpartition(".")[0]) and not any(other.startswith(f"{above}.") for other in others):
            name = above
        found[name] = None
    return list(found)
