"""Where, inside a backward pass, ranks begin to wait for each other; a hook tells, and changes no value."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pipeline import dist
from pipeline.progress import PROGRESS, Stage


@contextmanager
def wait_for_ranks(model: nn.Module, is_last: bool) -> Iterator[None]:
    """Count what comes after this rank's own gradients, in the backward pass that exchanges them, as communication.

    The gradient of the first layer is the last to come: what is left of the pass is the part of the exchange that
    nothing hides, and waiting for ranks that come later.
    """
    first = next((parameter for parameter in model.parameters() if parameter.requires_grad), None)
    if first is None or not is_last or dist.world_size() == 1:
        yield
        return
    hook = first.register_post_accumulate_grad_hook(lambda parameter: _enter(Stage.COMMUNICATION))
    try:
        yield
    finally:
        hook.remove()


def _enter(stage: Stage) -> None:
    PROGRESS.enter(stage)
