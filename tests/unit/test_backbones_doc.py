"""The page on backbones: its table is what the benchmark prints, and its examples load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from benchmarks import backbones as benchmark
from pipeline.config.load import validate_config
from pipeline.model.backbones.cost import backbone_cost

PAGE = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text()
MINIMAL = {"output": "run", "data": {"path": "data"}, "training": {"epochs": 1, "global_batch": 8, "local_batch": 4}}


@pytest.mark.parametrize(
    ("name", "config", "paper"), benchmark.PUBLISHED, ids=[name.replace("`", "") for name, _, _ in benchmark.PUBLISHED]
)
def test_the_table_is_up_to_date(name: str, config: benchmark.BackboneConfig, paper: str) -> None:
    assert benchmark.cost_row(name, backbone_cost(config, 112), paper) in PAGE


def test_its_examples_load() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    kinds = [validate_config(MINIMAL | yaml.safe_load(example)).backbone.kind for example in examples]
    assert kinds == ["timm", "iresnet"]


def test_variants_of_the_benchmark_can_be_built_at_its_size() -> None:
    costs = {name: backbone_cost(config, 64) for name, (config, _) in benchmark.VARIANTS.items()}
    assert all(1e7 < cost.multiply_adds < 5e8 for cost in costs.values()), costs
