"""Networks written as ONNX files, as torch's exporter writes them."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn


def export(network: nn.Module, example: Tensor, path: Path, keeps_batch_norms: bool) -> None:
    """Export a network in eval mode; otherwise with batch norms folded, as for inference.

    `keeps_batch_norms` gives each parameter under its name, which is what training needs.
    """
    network.eval()
    options = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False} if keeps_batch_norms else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces another exporter, and traces shapes as constants
        torch.onnx.export(network, (example,), str(path), dynamo=False, **options)
