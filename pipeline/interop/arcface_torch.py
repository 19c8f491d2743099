"""Reads what InsightFace's arcface_torch leaves behind: backbones, and the class centres of all ranks.

Its networks are the IResNets of `pipeline.model.backbones.iresnet` under other names: the same layers in the same
order, batch norm's ε 1e-5, the last map flattened as channels, rows, columns, and crops as RGB scaled to [−1, 1].
Files are read with `weights_only=True`: a pickle that would run code is refused.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config.backbones import IResNetConfig
from pipeline.config.errors import UserError
from pipeline.model.backbones import build_without_memory
from pipeline.model.backbones.build import NETWORK_PREFIX
from pipeline.model.backbones.iresnet import BLOCKS, CHANNELS
from pipeline.onnx_weights import onnx_shapes, read_onnx

# what the ranks' files were called over the years; the number in brackets is the rank
CENTRE_FILES = {
    "checkpoint_gpu_N.pt": re.compile(r"checkpoint_gpu_(\d+)\.pt"),
    "softmax_fc_gpu_N.pt": re.compile(r"softmax_fc_gpu_(\d+)\.pt"),
    "rank_N_softmax_weight.pt": re.compile(r"rank[_:](\d+)_softmax_weight\.pt"),
}
BACKBONE_KEY = "state_dict_backbone"
CENTRES_KEY = "state_dict_softmax_fc"
BATCH_COUNTER = ".num_batches_tracked"

_STEM = {
    "conv1": "stem.0",
    "bn1": "stem.1",
    "prelu": "stem.2",
    "bn2": "neck.norm",
    "fc": "neck.embed",
    "features": "neck.embed_norm",
}
_BLOCK = {
    "bn1": "residual.0",
    "conv1": "residual.1",
    "bn2": "residual.2",
    "prelu": "residual.3",
    "conv2": "residual.4",
    "bn3": "residual.5",
    "downsample.0": "shortcut.0",
    "downsample.1": "shortcut.1",
}
_BLOCK_NAME = re.compile(r"layer([1-4])\.(\d+)\.(.+)\.([a-z_]+)")
_EXPECTED = "an IResNet of arcface_torch, depth " + ", ".join(map(str, BLOCKS))


@dataclass(frozen=True)
class ImportedBackbone:
    """A backbone read from a file."""

    config: IResNetConfig
    """The section that builds its network."""
    crop_px: int
    """Side of the crops it takes."""
    tensors: dict[str, Tensor]
    """Its `FaceModel`'s state dict, floating tensors in float32."""


def read_backbone(path: Path) -> ImportedBackbone:
    """Read `backbone.pth`, `model.pt`, the backbone inside a `checkpoint_gpu_N.pt`, or an .onnx file whose batch norms
    are not folded.

    Raises:
        UserError: not such a file, one that holds more than tensors, or a network that is none of the IResNets.
    """
    content = read_onnx(path, onnx_shapes(path)) if path.suffix == ".onnx" else _load(path)
    state = content.get(BACKBONE_KEY, content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(path, f"holds {_describe(content)}", "a state dict", "save it with model.state_dict()")
    # saved from inside DistributedDataParallel
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    depth = _depth(state, path)
    embedding_dim, crop_px = _sizes(state, path)
    config = IResNetConfig(depth=depth, embedding_dim=embedding_dim)
    expected = build_without_memory(config, crop_px).state_dict()
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        ours = _our_name(name, depth)
        if ours is None or ours not in expected:
            raise UserError(path, f"has a tensor {name!r}, which is no part of IResNet-{depth}", _EXPECTED)
        if value.shape != expected[ours].shape:
            raise UserError(path, f"{name!r} has shape {tuple(value.shape)}", f"{tuple(expected[ours].shape)}")
        tensors[ours] = value.to(expected[ours].dtype)
    if path.suffix == ".onnx":  # which counts no batches, and nothing reads the counters
        tensors |= {name: torch.zeros((), dtype=torch.int64) for name in expected if name.endswith(BATCH_COUNTER)}
    missing = sorted(expected.keys() - tensors.keys())
    if missing:
        theirs = sorted(_their_name(name, depth) for name in missing)
        raise UserError(path, f"lacks {len(theirs)} tensors of IResNet-{depth}, the first {theirs[0]!r}", _EXPECTED)
    return ImportedBackbone(config, crop_px, tensors)


def read_centres(directory: Path) -> Tensor:
    """Join the class centres of all ranks: [C, D] float32, in the order of arcface_torch's labels.

    Rank r of W holds C // W rows, and one more where r < C % W.

    Raises:
        UserError: no such files, files of two kinds, a rank's file missing, or rows not cut as W ranks cut them.
    """
    files = _centre_files(directory)
    parts: list[Tensor] = []
    for path in files:
        content = _load(path)
        if isinstance(content, dict):
            content = content.get(CENTRES_KEY, content)
        weight = content.get("weight") if isinstance(content, dict) else content
        if not isinstance(weight, Tensor) or weight.ndim != 2:
            raise UserError(path, f"holds {_describe(content)}", "class centres [rows, D] under 'weight'")
        if parts and weight.shape[1] != parts[0].shape[1]:
            raise UserError(
                path, f"centres of {weight.shape[1]} dimensions", f"{parts[0].shape[1]} as in {files[0].name}"
            )
        parts.append(weight.to(torch.float32))
    counts = [len(part) for part in parts]
    each, rest = divmod(sum(counts), len(counts))
    expected = [each + (rank < rest) for rank in range(len(counts))]
    if counts != expected:
        wrong = next(rank for rank, count in enumerate(counts) if count != expected[rank])
        raise UserError(
            files[wrong],
            f"holds {counts[wrong]} rows of {sum(counts)}",
            f"{expected[wrong]}, as {len(counts)} ranks cut them",
            "are these all the ranks' files, and of one run?",
        )
    return torch.cat(parts)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(path, f"cannot be read ({error.strerror or error})", "a file of arcface_torch") from error
    except pickle.UnpicklingError as error:
        reason = re.search(r"(?:GLOBAL|global|class) `?([\w.]+)`?", str(error))
        more = f" ({reason[1]})" if reason else ""
        raise UserError(
            path,
            f"is no file of tensors alone{more}, and loading it could run code",
            "a state dict",
            "save it anew where it was made: torch.save(model.state_dict(), FILE)",
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            path, f"is no PyTorch file ({str(error).splitlines()[0]})", "a file of arcface_torch"
        ) from error


def _centre_files(directory: Path) -> list[Path]:
    """The ranks' files in order of ranks."""
    if not directory.is_dir():
        raise UserError(directory, "no such directory", "the output directory of arcface_torch")
    found: dict[str, dict[int, Path]] = {}
    for path in directory.iterdir():
        for kind, pattern in CENTRE_FILES.items():
            if match := pattern.fullmatch(path.name):
                found.setdefault(kind, {})[int(match[1])] = path
    if len(found) != 1:
        what = " and ".join(sorted(found)) or "no class centres"
        raise UserError(
            directory, f"holds {what}", f"one of {', '.join(CENTRE_FILES)}", "leave files of one kind there"
        )
    (kind, by_rank), *_ = found.items()
    missing = sorted(set(range(max(by_rank) + 1)) - by_rank.keys())
    if missing:
        names = ", ".join(kind.replace("N", str(rank)) for rank in missing[:5])
        raise UserError(directory, f"lacks {names}", f"a file of each of at least {max(by_rank) + 1} ranks")
    return [by_rank[rank] for rank in sorted(by_rank)]


def _depth(state: dict[str, Tensor], path: Path) -> int:
    blocks = {(m[1], m[2]) for name in state if (m := _BLOCK_NAME.fullmatch(name))}
    by_layer = Counter(layer for layer, _ in blocks)
    counts = tuple(by_layer[layer] for layer in "1234")
    depth = next((depth for depth, expected in BLOCKS.items() if expected == counts), None)
    if depth is None or "features.weight" not in state:
        shown = "-".join(map(str, counts)) if any(counts) else "no"
        first = ", ".join(list(state)[:3])
        raise UserError(path, f"another network ({shown} blocks; its first tensors are {first})", _EXPECTED)
    return depth


def _sizes(state: dict[str, Tensor], path: Path) -> tuple[int, int]:
    """Embedding dimension and crop side, from the last layer."""
    weight = state.get("fc.weight")
    if weight is None or weight.ndim != 2:
        raise UserError(path, "has no 'fc.weight' of two dimensions", _EXPECTED)
    embedding_dim, inputs = weight.shape
    side = math.isqrt(inputs // CHANNELS[-1])
    if side < 1 or side * side * CHANNELS[-1] != inputs:
        raise UserError(
            path, f"'fc.weight' takes {inputs} inputs", f"{CHANNELS[-1]} channels of a square map", _EXPECTED
        )
    return embedding_dim, 16 * side


def _our_name(name: str, depth: int) -> str | None:
    if match := _BLOCK_NAME.fullmatch(name):
        layer, block, module, tensor = int(match[1]), int(match[2]), match[3], match[4]
        first = sum(BLOCKS[depth][: layer - 1])
        return f"backbone.blocks.{first + block}.{_BLOCK[module]}.{tensor}" if module in _BLOCK else None
    module, _, tensor = name.rpartition(".")
    return f"backbone.{_STEM[module]}.{tensor}" if module in _STEM else None


def _their_name(name: str, depth: int) -> str:
    """The name in arcface_torch of one of our tensors, for messages."""
    module, _, tensor = name.removeprefix(NETWORK_PREFIX).rpartition(".")
    if module.startswith("blocks."):
        _, number, rest = module.split(".", 2)
        layer, block = 0, int(number)
        while block >= BLOCKS[depth][layer]:
            block -= BLOCKS[depth][layer]
            layer += 1
        theirs = next(key for key, value in _BLOCK.items() if value == rest)
        return f"layer{layer + 1}.{block}.{theirs}.{tensor}"
    return f"{next(key for key, value in _STEM.items() if value == module)}.{tensor}"


def _describe(content: Any) -> str:
    if isinstance(content, Tensor):
        return f"a tensor {tuple(content.shape)}"
    if isinstance(content, dict):
        return f"a dict with {', '.join(repr(key) for key in list(content)[:4]) or 'nothing'}"
    return f"a {type(content).__name__}"
