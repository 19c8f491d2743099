"""TensorBoard events beside `metrics.jsonl`."""

from __future__ import annotations

from pipeline.monitor.sink import Record, RunStart


class ToTensorboard:
    """Writes into `tensorboard/`; a viewer drops what a resumed run does again."""

    is_remote = False
    opening_line = ""

    def __init__(self, start: RunStart) -> None:
        # imported late: it costs a second, and only rank 0 needs it
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(
            str(start.output / "tensorboard"), purge_step=start.step + 1 if start.step else None
        )

    def write(self, values: Record) -> None:
        for name, value in values.items():
            if name not in ("step", "samples"):
                self._writer.add_scalar(name, value, int(values["step"]))

    def close(self, is_failed: bool) -> None:
        self._writer.close()
