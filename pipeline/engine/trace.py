"""A torch profiler trace of some steps of a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from pipeline import dist
from pipeline.config.watching import ProfileConfig

FOLDER = "profile"
_NUM_ROWS = 40


class StepTrace:
    """Traces the steps that the configuration names, each rank for itself. Not collective.

    Leaves `profile/steps-A-B-rank-N.json.gz`, to be opened in Perfetto or `chrome://tracing`, and `….txt`, a table of
    the operations that took longest. What a step does begins with waiting for its batch.

    Args:
        config: which steps; None for none.
        output: the run's directory.
        device: where this rank computes.
        say: called with lines to show.
    """

    def __init__(
        self, config: ProfileConfig | None, output: Path, device: torch.device, say: Callable[[str], None]
    ) -> None:
        self._config, self._folder, self._device, self._say = config, output / FOLDER, device, say
        self._profile: profile | None = None

    def begin(self, step: int) -> None:
        """Hear that a run begins with `step` updates done."""
        if self._config is not None and step >= self._config.start_step:
            self._say(f"nothing to trace: step {self._config.start_step} (profile.start_step) is over")
        self.after_step(step)

    def after_step(self, step: int) -> None:
        """Hear that `step` updates are done."""
        if self._config is None:
            return
        if self._profile is not None and step >= self._config.start_step + self._config.num_steps - 1:
            self._write(step)
        elif step == self._config.start_step - 1:
            activities = [ProfilerActivity.CPU]
            if self._device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            else:
                # the library under the profiler calls it an error that there is no GPU; where there is one it may speak
                os.environ.setdefault("KINETO_LOG_LEVEL", "99")
            self._profile = profile(activities=activities)
            self._profile.start()

    def end(self, step: int) -> None:
        """Hear that the run ends after `step` updates: what was traced until then is written."""
        if self._profile is not None:
            self._write(step)

    def _write(self, step: int) -> None:
        assert self._config is not None
        assert self._profile is not None
        self._profile.stop()
        self._folder.mkdir(exist_ok=True)
        name = f"steps-{self._config.start_step}-{step}-rank-{dist.rank()}"
        self._profile.export_chrome_trace(str(self._folder / f"{name}.json.gz"))
        order = "self_device_time_total" if self._device.type == "cuda" else "self_cpu_time_total"
        table = self._profile.key_averages().table(sort_by=order, row_limit=_NUM_ROWS)
        (self._folder / f"{name}.txt").write_text(table)
        self._profile = None
        self._say(f"traced steps {self._config.start_step} to {step}: {self._folder}")
