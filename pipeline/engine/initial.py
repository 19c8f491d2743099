"""Begins a run from an earlier model's weights: strict about names and shapes, and telling what was taken."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pipeline import checkpoint
from pipeline.config.errors import UserError
from pipeline.config.initial import InitConfig
from pipeline.model.backbones.build import NETWORK_PREFIX

_BATCH_COUNTER = ".num_batches_tracked"
_NUM_NAMED = 4


@dataclass(frozen=True)
class Initial:
    """A source of weights, opened and matched with a network; its tensors are not read yet."""

    config: InitConfig
    described: str
    """What it is, for the report."""
    taken: dict[str, str]
    """Names of the network's tensors to their names in the source."""
    left: list[str]
    """Of the source's backbone, what nobody takes."""
    fresh: list[str]
    """Of the network, what begins anew."""
    read: Callable[[Collection[str]], dict[str, Tensor]]
    checkpoint: Path | None
    """Where the source is one."""

    def fill_backbone(self, model: nn.Module) -> str:
        """Put the weights into the network; gives a line that says what was taken and what was left. Not collective."""
        tensors = model.state_dict()
        values = self.read(set(self.taken.values()))
        with torch.no_grad():
            for name, theirs in self.taken.items():
                tensors[name].copy_(values[theirs])
        line = f"began from {self.described}: {len(self.taken):,} tensors of the backbone taken"
        for names, what in ((self.left, "left there"), (self.fresh, "begun anew")):
            line += f"; {what}: {_shortened(names)}" if names else ""
        return line

    def fill_head(self, tensors: Mapping[str, Tensor]) -> str:
        """Fill the head's tensors, each rank its rows, where the configuration asks for it. Collective on all ranks.

        Args:
            tensors: what `state.head_tensors` gives.

        Returns:
            What to add to the line of `fill_backbone`.

        Raises:
            UserError: a head of another kind or shape.
        """
        if self.config.parts != "all":
            return ""
        assert self.checkpoint is not None
        prefix = checkpoint.HEAD_PREFIX
        checkpoint.load_into(self.checkpoint, tensors)
        stored = {name for name in checkpoint.stored_shapes(self.checkpoint) if name.startswith(prefix)}
        left = sorted(name.removeprefix(prefix) for name in stored - tensors.keys())
        return f"; {len(tensors):,} of the head" + (f"; left there: {_shortened(left)}" if left else "")


def open_initial(config: InitConfig, model: nn.Module, label_map: str) -> Initial:
    """Open a source and match it with a network, which may be on the meta device. Not collective.

    Args:
        config: see there.
        model: as `build_backbone` gives it.
        label_map: the run's, as a hash.

    Raises:
        UserError: no such source, a damaged one, tensors that do not fit, or a head over other people.
    """
    described, shapes, read, found = _open(config, label_map)
    prefix = _common_prefix(shapes)
    theirs = {name.removeprefix(prefix): name for name in shapes}
    ours = {name.removeprefix(NETWORK_PREFIX): name for name in model.state_dict()}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for number, pattern in enumerate(config.leave):
        if not any(fnmatchcase(name, pattern) for name in theirs.keys() | ours.keys()):
            raise UserError(
                f"init_from.leave.{number}", f"{pattern!r} names no tensor of {config.path} or the backbone"
            )

    def is_left(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in config.leave)

    taken = sorted(name for name in theirs.keys() & ours.keys() if not is_left(name))
    # files from before batch norms counted their batches lack the counters, which nothing reads
    fresh = sorted(n for n in ours.keys() - set(taken) if is_left(n) or n.endswith(_BATCH_COUNTER))
    left = sorted(name for name in theirs if is_left(name))
    wrong = [
        f"{name} has shape {shapes[theirs[name]]}, the backbone's {wanted[ours[name]]}"
        for name in taken
        if shapes[theirs[name]] != wanted[ours[name]]
    ]
    wrong += [f"{name} is missing" for name in sorted(ours.keys() - set(taken) - set(fresh))]
    wrong += [f"{name} has no place in the backbone" for name in sorted(theirs.keys() - ours.keys() - set(left))]
    if wrong:
        more = f" and {len(wrong) - 2:,} more" if len(wrong) > 2 else ""
        raise UserError(
            config.path,
            f"does not fit the backbone: {', '.join(wrong[:2])}{more}",
            "the same names and shapes",
            "choose the `backbone` it was trained with; init_from.leave=[PATTERN] lets tensors begin anew",
        )
    return Initial(config, described, {ours[n]: theirs[n] for n in taken}, left, fresh, read, found)


_Opened = tuple[str, dict[str, tuple[int, ...]], Callable[[Collection[str]], dict[str, Tensor]], Path | None]
"""A source's description, shapes by its names, how to read some of them, and its path where it is a checkpoint."""


def _open(config: InitConfig, label_map: str) -> _Opened:
    path = config.path
    if path.is_dir():
        return _open_checkpoint(config, label_map)
    if config.parts == "all":
        raise UserError("init_from.parts", f"all, but {path} is no checkpoint", "a run directory", "set parts=backbone")
    if not path.is_file():
        raise UserError(path, "no such file or directory", "a run, a .safetensors, .onnx or torchvision's .pth file")
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in (".pth", ".pt"):
        return _open_torch(path)
    if path.suffix == ".onnx":
        from pipeline.onnx_weights import onnx_shapes, read_onnx  # onnx is slow to import

        return str(path), onnx_shapes(path), lambda names: read_onnx(path, names), None
    raise UserError(path, f"a file of type {path.suffix!r}", "a run directory, .safetensors, .onnx or .pth")


def _open_checkpoint(config: InitConfig, label_map: str) -> _Opened:
    path = checkpoint.find_checkpoint(config.path)
    info = checkpoint.read_info(path)
    if config.parts == "all" and info.label_map_sha256 != label_map:
        raise UserError(
            "init_from.parts",
            f"all, but {path} was trained on other people ({info.num_classes:,} of them)",
            "the same label map",
            "launch/extend_head.py moves a head to other people; parts=backbone begins with a new one",
        )
    stored = checkpoint.stored_shapes(path)
    is_averaged = checkpoint.has_ema(path)
    prefix = checkpoint.EMA_PREFIX if is_averaged else checkpoint.BACKBONE_PREFIX
    shapes = {name: shape for name, shape in stored.items() if name.startswith(prefix)}
    described = f"{path}, {'the average of its weights' if is_averaged else 'its weights'}"
    return described, shapes, lambda names: checkpoint.read_tensors(path, names), path


def _open_safetensors(path: Path) -> _Opened:
    def read(names: Collection[str]) -> dict[str, Tensor]:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in names}

    try:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(path, f"cannot be read ({error})", "a .safetensors file") from error
    return str(path), shapes, read, None


def _open_torch(path: Path) -> _Opened:
    expected = "a flat mapping of names to tensors, as torchvision's weights are"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(path, f"cannot be read weights-only ({reason})", expected) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        keys = f" with {_shortened([str(key) for key in content])}" if isinstance(content, dict) else ""
        raise UserError(path, f"holds a {type(content).__name__}{keys}", expected)
    tensors = {str(name): value for name, value in content.items()}
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    return str(path), shapes, lambda names: {name: tensors[name] for name in names}, None


def _common_prefix(names: Collection[str]) -> str:
    """What our own files put before a network's names; empty for others."""
    for prefix in (checkpoint.EMA_PREFIX + NETWORK_PREFIX, checkpoint.BACKBONE_PREFIX + NETWORK_PREFIX, NETWORK_PREFIX):
        if names and all(name.startswith(prefix) for name in names):
            return prefix
    return ""


def _shortened(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NUM_NAMED])
    return shown if len(names) <= _NUM_NAMED else f"{shown} and {len(names) - _NUM_NAMED:,} more"
