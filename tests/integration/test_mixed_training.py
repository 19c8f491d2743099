"""Runs over a mix of data sets: resumed on other ranks, with one head and with one for each set."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipeline.checkpoint import read_info
from tests.datasets import make_dataset
from tests.integration import training


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, made = tmp_path_factory.mktemp("mix"), {}
    for number, (name, people) in enumerate({"large": 12, "small": 5}.items()):
        (folder / name).mkdir()
        made[name] = make_dataset(
            folder / name, num_samples=20 * people, num_identities=people, crop_px=training.CROP_PX, seed=number
        )
    return made


def write_recipe(path: Path, roots: dict[str, Path], output: Path, labels: str, weights: tuple[int, int]) -> Path:
    recipe = training.write_recipe(path, roots["large"], output, epochs=1, global_batch=32, local_batch=8)
    tree = yaml.safe_load(recipe.read_text())
    sets = {
        name: {"path": str(root), "weight": weight} for (name, root), weight in zip(roots.items(), weights, strict=True)
    }
    tree["data"] = {"num_threads": 1, "mix": {"labels": labels, "sets": sets}}
    recipe.write_text(yaml.safe_dump(tree))
    return recipe


@pytest.mark.parametrize(("labels", "num_people"), [("merged", 12), ("separate", 17)])
def test_resumed_on_two_ranks(tmp_path: Path, roots: dict[str, Path], labels: str, num_people: int) -> None:
    output = tmp_path / "run"
    recipe = write_recipe(tmp_path / "recipe.yaml", roots, output, labels, (1, 1))
    text = training.run(recipe, 1)
    assert f"340 samples of {num_people} identities" in text
    assert "large 50.0% of the slots, 0.708 times an epoch; small 50.0% of the slots, 1.7 times an epoch" in text
    straight = training.losses(output)
    assert len(straight) == 11
    middle = next(path for path in (output / "checkpoints").glob("step-*") if 2 < read_info(path).step < 8)
    (output / "checkpoints" / "latest").write_text(middle.name)
    info = read_info(middle)
    assert [one.name for one in info.mixed] == ["large", "small"]
    assert info.num_classes == num_people
    assert "1 → 2 ranks" in training.run(recipe, 2)
    resumed = training.losses(output)
    assert resumed.keys() == straight.keys()
    for step, loss in resumed.items():
        assert loss == pytest.approx(straight[step], rel=1e-4)


def test_what_may_not_change_at_a_resume(tmp_path: Path, roots: dict[str, Path]) -> None:
    output = tmp_path / "run"
    recipe = write_recipe(tmp_path / "recipe.yaml", roots, output, "merged", (3, 1))
    training.run(recipe, 1, ["training.epochs=0.5"])
    for override, said in {
        "data.mix.sets.small.weight=2": "data.mix.sets.small.weight: 2, but",
        "data.mix.labels=disjoint": "data.mix.labels: 'disjoint', but",
    }.items():
        process = training.start(recipe, 1, [override])
        assert said in training.finish(process)
        assert process.returncode == 2
    moved = tmp_path / "moved"
    roots["small"].rename(moved)
    try:
        text = training.run(recipe, 1, ["training.epochs=0.7", f"data.mix.sets.small.path={moved}"])
    finally:
        moved.rename(roots["small"])
    assert "changed data.mix.sets.small.path" in text
