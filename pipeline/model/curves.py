"""Draw what each margin does to the target's logit, and how hard it pulls, over the angle to the class centre.

    python -m pipeline.model.curves docs/images

Every margin that a configuration can name is drawn with its default keys, in a panel of its own with all others in grey
behind it: `target-logits.png` as figure 3 of the ArcFace paper (Deng et al. 2019, arXiv:1801.07698) does, and
`effective-gradients.png`. What depends on the embedding's length is drawn for three lengths, what is drawn at random
for some samples.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config.errors import UserError, run_command
from pipeline.config.margins import MarginConfig
from pipeline.model.margins.base import GlobalBatch, Margin, build_margin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = npt.NDArray[np.float64]

NUM_CLASSES = 10_001
NEGATIVE_LSE = math.log(NUM_CLASSES - 1)
"""Log-sum-exp of the other classes' logits where their centres stand at 90°."""
NORMS = (10.0, 40.0, 110.0)
"""Short, middling and long embeddings."""
NUM_DRAWS = 8
STEP = 200_000
"""Optimizer updates done: what is annealed has reached its end."""
_SETTLING_STEPS = 1000

# Okabe and Ito's palette, which colour-blind people can tell apart
_BY_NORM = ("#0072B2", "#E69F00", "#D55E00")
_ONE = "#0072B2"
_OTHERS = "#D5D5D5"
_COLUMNS = 4


@dataclass(frozen=True)
class Curve:
    """One margin at one length of the embedding, or for one draw, over n angles."""

    kind: str
    name: str
    """What tells it from the margin's other curves; empty where there is but one."""
    theta: Floats
    """[n] radians, to the target's centre."""
    scale: float
    """Factor from cosines to logits: s, or the embedding's length where it is not normalised."""
    phi: Floats
    """[n], the target's logit divided by the scale."""
    pull: Floats
    """[n], −dφ/dθ, per radian."""
    loss_slope: Floats
    """[n], dL/dθ of the loss at `NEGATIVE_LSE`, divided by the scale, per radian."""


def margin_sections() -> list[type[Any]]:
    """The configuration sections of all margins."""
    return list(get_args(get_args(MarginConfig)[0]))


def margin_curves(config: MarginConfig, theta: Floats) -> list[Curve]:
    """All curves of a margin over angles [n], radians."""
    margin = build_margin(config, NUM_CLASSES).double()
    _settle(margin)
    middle = NORMS[len(NORMS) // 2]
    base = _curve(margin, config.kind, "", theta, middle, sample=0)
    by_norm = [_curve(margin, config.kind, f"|x| = {norm:.0f}", theta, norm, sample=0) for norm in NORMS]
    if not all(np.allclose(curve.phi, base.phi, atol=1e-9) for curve in by_norm):
        return by_norm
    draws = [_curve(margin, config.kind, f"sample {number}", theta, middle, number) for number in range(NUM_DRAWS)]
    if not all(np.allclose(curve.phi, base.phi, atol=1e-9) for curve in draws):
        return draws
    return [base]


def draw(directory: Path) -> list[Path]:
    """Write both pictures; gives their paths.

    Raises:
        UserError: the directory cannot be written to.
    """
    # not the ends themselves: there sin θ is 0, and autograd's derivative by θ with it
    theta = np.radians(np.linspace(0.25, 179.75, 719))
    curves = {section.model_fields["kind"].default: margin_curves(section(), theta) for section in margin_sections()}
    pictures = {
        "target-logits.png": _draw_logits(curves),
        "effective-gradients.png": _draw_gradients(curves),
    }
    written = []
    for name, figure in pictures.items():
        try:
            directory.mkdir(parents=True, exist_ok=True)
            figure.savefig(directory / name, dpi=110, metadata={"Software": ""})
        except OSError as error:
            raise UserError(directory, f"cannot be written to ({error.strerror})", "a directory") from error
        written.append(directory / name)
    return written


def _settle(margin: Margin) -> None:
    """Let moving statistics come to rest on a batch of all lengths at 60°."""
    norm = torch.tensor(NORMS, dtype=torch.float64)
    similarity = torch.full_like(norm, 0.5)
    for _ in range(_SETTLING_STEPS):
        margin.observe(similarity, _batch(norm, sample=0))


def _batch(norm: Tensor, sample: int) -> GlobalBatch:
    return GlobalBatch(
        norm=norm,
        sample_ids=torch.full(norm.shape, sample, dtype=torch.int64),
        valid=torch.ones(norm.shape, dtype=torch.bool),
        step=STEP,
        seed=0,
        centre_norm=torch.ones_like(norm),
    )


def _curve(margin: Margin, kind: str, name: str, theta: Floats, norm: float, sample: int) -> Curve:
    """Differentiate as training does: by autograd, through the margin's own code."""
    norms = torch.full((len(theta),), norm, dtype=torch.float64)
    batch = _batch(norms, sample)
    angle = torch.from_numpy(theta).requires_grad_()
    scale = float(torch.as_tensor(margin.logit_scale(norms)).detach().reshape(-1)[0])
    if not margin.is_cosine:  # W·x, with W of length 1
        scale *= norm
    cosine = angle.cos()
    logit = margin.target_logit(cosine if margin.is_cosine else cosine * norm, batch)
    loss = margin.sample_loss(logit, torch.full_like(logit, NEGATIVE_LSE), batch)
    (slope,) = torch.autograd.grad(logit.sum(), angle, retain_graph=True)
    (loss_slope,) = torch.autograd.grad(loss.sum(), angle)
    phi, pull, loss_pull = ((value / scale).detach().numpy() for value in (logit, -slope, loss_slope))
    return Curve(kind, name, theta, scale, phi, pull, loss_pull)


def _draw_logits(curves: dict[str, list[Curve]]) -> Any:
    figure, panels = _panels(
        len(curves),
        "Target logit over the angle to the class centre",
        "target logit / scale",
        "dotted: cos θ, no margin · grey: the other margins",
    )
    for axes, (kind, own) in zip(panels, curves.items(), strict=True):
        for other in _middle_curves(curves, without=kind):
            axes.plot(np.degrees(other.theta), other.phi, color=_OTHERS, linewidth=0.8)
        axes.plot(np.degrees(own[0].theta), np.cos(own[0].theta), color="black", linewidth=0.9, linestyle=":")
        for curve, color, width in _styles(own):
            axes.plot(np.degrees(curve.theta), curve.phi, color=color, linewidth=width, label=curve.name)
        _title(axes, own)
        _label(axes, own, "lower left")
    return figure


def _draw_gradients(curves: dict[str, list[Curve]]) -> Any:
    figure, panels = _panels(
        len(curves),
        "How hard each margin pulls the embedding towards its class centre",
        "gradient / scale, per radian",
        "solid: of the target logit, −dφ/dθ · dashed: of the loss, dL/dθ, where the other "
        f"{NUM_CLASSES - 1:,} centres stand at 90° (their log-sum-exp is {NEGATIVE_LSE:.1f})",
    )
    for axes, (kind, own) in zip(panels, curves.items(), strict=True):
        for other in _middle_curves(curves, without=kind):
            axes.plot(np.degrees(other.theta), other.pull, color=_OTHERS, linewidth=0.8)
        for curve, color, width in _styles(own):
            axes.plot(np.degrees(curve.theta), curve.pull, color=color, linewidth=width, label=curve.name)
            axes.plot(np.degrees(curve.theta), curve.loss_slope, color=color, linewidth=width, linestyle=(0, (4, 2)))
        _title(axes, own)
        _label(axes, own, "upper right")
    return figure


def _panels(count: int, title: str, quantity: str, note: str) -> tuple[Any, list[Axes]]:
    from matplotlib.figure import Figure

    rows = -(-count // _COLUMNS)
    figure = Figure(figsize=(3.1 * _COLUMNS, 2.35 * rows + 1.0))
    grid = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).ravel()
    height = figure.get_figheight()
    figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - 0.75 / height))
    figure.text(0.5, 1 - 0.12 / height, title, ha="center", va="top", fontsize=14, fontweight="bold")
    figure.text(0.5, 1 - 0.42 / height, note, ha="center", va="top", fontsize=10, color="#444444")
    figure.supxlabel("θ, angle between embedding and class centre, degrees", fontsize=11)
    figure.supylabel(quantity, fontsize=11)
    for axes in grid[:count]:
        axes.set_xlim(0, 180)
        axes.set_xticks(range(0, 181, 45))
        axes.grid(color="#EEEEEE", linewidth=0.6)
        axes.tick_params(labelsize=9, labelbottom=True)
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, list(grid[:count])


def _middle_curves(curves: dict[str, list[Curve]], without: str) -> list[Curve]:
    return [own[len(own) // 2] for kind, own in curves.items() if kind != without]


def _styles(own: Sequence[Curve]) -> list[tuple[Curve, str, float]]:
    if len(own) == len(NORMS):
        return [(curve, color, 1.8) for curve, color in zip(own, _BY_NORM, strict=True)]
    return [(curve, _ONE, 1.8 if len(own) == 1 else 0.9) for curve in own]


def _title(axes: Axes, own: Sequence[Curve]) -> None:
    axes.set_title(own[0].kind, fontsize=11, loc="left", fontweight="bold")
    axes.set_title(f"scale {own[len(own) // 2].scale:.3g}", fontsize=9, loc="right", color="#444444")


def _label(axes: Axes, own: Sequence[Curve], place: str) -> None:
    if len(own) == len(NORMS):
        axes.legend(fontsize=8, loc=place, frameon=False, handlelength=1.2)
    elif len(own) > 1:
        at = {"lower left": (0.03, 0.05, "left", "bottom"), "upper right": (0.97, 0.95, "right", "top")}[place]
        axes.text(*at[:2], f"{len(own)} draws", transform=axes.transAxes, ha=at[2], va=at[3], fontsize=8, color=_ONE)


def main() -> None:
    """Entry point."""
    arguments = sys.argv[1:]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stdout.write(__doc__ or "")
        return
    for path in draw(Path(arguments[0])):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    run_command(main)
