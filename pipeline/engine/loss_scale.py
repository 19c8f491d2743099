"""The scale that keeps fp16 gradients from vanishing, and the verdict on steps in which they overflowed.

Only the backbone computes in fp16, so only its gradients are scaled, between the head and the backbone: the head's own
need no unscaling, and a head that reads them sees them as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GROWTH, BACKOFF = 2.0, 0.5
GROWTH_INTERVAL = 2000
"""Steps without an overflow after which the scale is raised."""
INITIAL_SCALE = 2.0**16
LEAST_SCALE = 1.0


class LossScale:
    """Dynamic loss scaling (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2), of one run.

    All scales are powers of two, so that scaling and unscaling round nothing. The state is the same on all ranks.
    """

    def __init__(self) -> None:
        self._scale = torch.tensor(INITIAL_SCALE)
        self._clean_steps = torch.zeros((), dtype=torch.int64)

    @property
    def value(self) -> float:
        """The factor on the gradient that the backbone gets."""
        return self._scale.item()

    def unscale(self, gradients: list[Tensor]) -> None:
        """Take the factor out of the backbone's gradients, in place."""
        torch._foreach_mul_(gradients, 1 / self.value)

    def tensors(self) -> dict[str, Tensor]:
        """The state, live: scalars on the CPU."""
        return {"scale": self._scale, "clean_steps": self._clean_steps}

    def leaves_out(self, norm: Tensor) -> bool:
        """Whether this step's gradients overflowed; lowers the scale where they did, and raises it in due time.

        Args:
            norm: of the backbone's averaged gradient, the same on all ranks: so is the verdict.

        Returns:
            True where all ranks leave the step out, of both parts. False where the norm is finite, and where it is not
            at the least scale: then it was no overflow that a scale can mend.
        """
        if math.isfinite(norm.item()):
            self._clean_steps += 1
            if self._clean_steps >= GROWTH_INTERVAL:
                self._scale *= GROWTH
                self._clean_steps.zero_()
            return False
        if self.value <= LEAST_SCALE:
            return False
        self._scale *= BACKOFF
        self._clean_steps.zero_()
        return True
