"""A teacher from a checkpoint: whole, frozen, its class centres by rows on any number of ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline import checkpoint, dist
from pipeline.checkpoint_writer import save as save_checkpoint
from pipeline.config.load import validate_config
from pipeline.data.dataset_format import CropInfo
from pipeline.engine.teacher import load_teacher, plan_teacher
from pipeline.model.backbones import build_backbone
from tests.checkpoints import make_info
from tests.distributed.processes import run_ranks

NUM_CLASSES, DIM, CROP_PX = 5, 16, 32
CROP = CropInfo(size_px=CROP_PX, template=[1.0] * 10)
COSFACE = {"kind": "margin_softmax", "margin": {"kind": "cosface", "scale": 8}}
SOFTMAX = {"kind": "margin_softmax", "margin": {"kind": "softmax"}}
HEADS = {
    "alone": (COSFACE, "head/"),
    "with-bias": (SOFTMAX, "head/"),
    "part": ({"kind": "sum", "parts": {"a": {"head": {"kind": "centre"}}, "b": {"head": SOFTMAX}}}, "head/part_b."),
}


def run_config(head: dict[str, object]) -> dict[str, object]:
    return {
        "output": "run",
        "data": {"path": "data"},
        "training": {"epochs": 1, "global_batch": 8, "local_batch": 4},
        "backbone": {"kind": "iresnet", "depth": 18, "width": 0.125, "embedding_dim": DIM},
        "head": head,
    }


def write_teacher(directory: Path, name: str) -> dict[str, Tensor]:
    """Save a checkpoint of a made-up run; gives its tensors."""
    head, prefix = HEADS[name]
    config = validate_config(run_config(head))
    generator = torch.Generator().manual_seed(0)
    model = build_backbone(config.backbone, CROP_PX, seed=9)
    tensors = {checkpoint.BACKBONE_PREFIX + key: value for key, value in model.state_dict().items()}
    tensors[prefix + "class_centres"] = torch.randn(NUM_CLASSES, DIM, generator=generator)
    if head != COSFACE:
        tensors[prefix + "bias"] = torch.randn(NUM_CLASSES, generator=generator)
    info = make_info(
        7,
        num_classes=NUM_CLASSES,
        label_map_sha256="labels",
        config=config.model_dump(mode="json"),
        dataset={"crop": CROP.model_dump(), "digest": "0"},
    )
    save_checkpoint(directory, tensors, info, keep=1)
    return tensors


def loaded(directory: Path, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Embeddings, this rank's class centres and biases, and the queries of the embeddings."""
    head = {"kind": "distillation", "teacher": {"checkpoint": str(directory)}, "target": {"kind": "logits"}}
    plan = plan_teacher(validate_config(run_config(head)), CROP, "labels")
    assert plan is not None
    device = torch.device("cpu")
    teacher = load_teacher(plan, device, checkpoint.rank_mesh(device))
    assert not teacher.module.training
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert teacher.teacher.embedding_dim == DIM
    classes = teacher.teacher.classes
    assert classes is not None
    rows = dist.partition(NUM_CLASSES, dist.rank(), dist.world_size())
    assert len(classes.centres) == rows[1] - rows[0]
    embeddings = teacher.module(images)
    return embeddings, classes.centres, classes.bias, classes.queries(embeddings)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("world_size", [1, 4])
def test_class_centres_come_by_rows(tmp_path: Path, name: str, world_size: int) -> None:
    saved = write_teacher(tmp_path, name)
    images = torch.randint(0, 256, (3, 3, CROP_PX, CROP_PX), dtype=torch.uint8)
    ranks = [loaded(tmp_path, images)] if world_size == 1 else run_ranks(loaded, world_size, tmp_path, images)
    prefix = HEADS[name][1]
    model = build_backbone(validate_config(run_config(COSFACE)).backbone, CROP_PX, seed=9).eval()
    expected = model(images).detach()
    centres = torch.cat([rank[1] for rank in ranks])
    for embeddings, _, _, queries in ranks:
        torch.testing.assert_close(embeddings, expected)
        if name == "alone":
            torch.testing.assert_close(queries.norm(dim=1), torch.full((3,), 8.0))
        else:
            assert torch.equal(queries, embeddings)
    stored = saved[prefix + "class_centres"]
    if name == "alone":
        stored = torch.nn.functional.normalize(stored)
        assert all(rank[2] is None for rank in ranks)
    else:
        assert torch.equal(torch.cat([rank[2] for rank in ranks if rank[2] is not None]), saved[prefix + "bias"])
    torch.testing.assert_close(centres, stored)
