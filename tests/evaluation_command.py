"""`launch/evaluate.py` called in this process, and a run to call it with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pipeline import checkpoint
from pipeline.checkpoint_writer import save as save_checkpoint
from pipeline.config.load import validate_config
from pipeline.data.manifest import Dataset
from pipeline.model.backbones import build_backbone
from tests.checkpoints import make_info
from tests.scripts import load_script

EVALUATE = Path(__file__).parents[1] / "launch" / "evaluate.py"

Command = Callable[..., Path]
"""Takes flags, and options by name, over the defaults; gives the output directory."""


def make_run(root: Path, data: Dataset, **backbone: object) -> Path:
    """A run directory with an untrained checkpoint and a metrics file; gives `root`. `backbone`: further settings."""
    config = validate_config(
        {
            "output": str(root),
            "data": {"path": str(data.root)},
            "backbone": {"kind": "iresnet", "depth": 18, "width": 0.125, "embedding_dim": 16, **backbone},
            "training": {"epochs": 1, "global_batch": 4, "local_batch": 4},
        }
    )
    model = build_backbone(config.backbone, data.info.crop.size_px, 0)
    info = make_info(
        7,
        samples=28,
        num_classes=10,
        config=config.model_dump(mode="json"),
        dataset=data.info.model_dump(mode="json"),
    )
    tensors = {checkpoint.BACKBONE_PREFIX + name: value for name, value in model.state_dict().items()}
    save_checkpoint(root / "checkpoints", tensors, info, keep=1)
    records = [{"step": n, "samples": 4 * n, "loss": 9.0 / n, "lr": 0.1, "grad_norm": 1.0} for n in range(1, 8)]
    (root / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 8, "lo')
    return root


def load_command(**defaults: object) -> Command:
    """The command with these options where a call gives no others; an option of None is left out."""
    module = load_script(EVALUATE)

    def call(*extra: str, **options: object) -> Path:
        given = {**defaults, **options}
        words = [
            word
            for name, value in given.items()
            if value is not None
            for word in (f"--{name.replace('_', '-')}", str(value))
        ]
        module.app([*words, *extra], standalone_mode=False)
        return Path(str(given["output"]))

    return call
