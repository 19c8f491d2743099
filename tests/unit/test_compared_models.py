"""What makes two evaluations those of one model, and what models and test sets are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluate.evaluated import name_models, name_sets, open_folder, open_folders
from pipeline.evaluate.side_by_side import compare
from pipeline.input_spec import InputSpec
from tests.evaluations import PAIRS, distances_of, write_evaluation


def test_names_tell_models_and_sets_apart(tmp_path: Path) -> None:
    few = [pair for pair in PAIRS if pair.fold < 2]

    def opened(**changes: str) -> list[object]:
        folder = write_evaluation(
            tmp_path / str(len(list(tmp_path.iterdir()))), distances_of(0.3, few), pairs=few, **changes
        )
        return [open_folder(folder)]

    a, b, c = (opened(model=name)[0] for name in ("x/run", "y/run", "build/other/checkpoints/step-00000100"))
    assert name_models([a]) == ["run"]
    assert name_models([a, c]) == ["run", "other"]
    assert name_models([a, b, c]) == ["run, x/run", "run, y/run", "other"]
    one, two, three = (
        opened(data=data, pairs_sha256=sha * 64)[0]
        for data, sha in (("x/lfw.bin", "1"), ("y/cfp", "2"), ("y/cfp", "3"))
    )
    assert name_sets([one, two]) == ["lfw", "cfp"]
    assert name_sets([one, two, three]) == ["lfw", "cfp, sha256 22222222", "cfp, sha256 33333333"]


FOREIGN: dict[str, Any] = {
    "kind": "onnx",
    "sha256": "f" * 64,
    "step": None,
    "input": InputSpec(height_px=112, width_px=112, template=[38.3, 51.7, *[1.0] * 8]),
    "output": "embedding",
}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "net.onnx"),
        ({"sha256": "e" * 64}, "net.onnx, sha256 eeeeeeee"),
        ({"height_px": 128}, "net.onnx, 128x112 px"),
        ({"layout": "NHWC"}, "net.onnx, NHWC"),
        ({"colour": "BGR"}, "net.onnx, BGR"),
        ({"dtype": "float16"}, "net.onnx, float16"),
        ({"mean": (0.0, 1.0, 2.5)}, "net.onnx, less 0, 1, 2.5"),
        ({"std": (128.0, 128.0, 128.0)}, "net.onnx, divided by 128, 128, 128"),
        ({"template": None}, "net.onnx, template not known"),
        ({"template": [40.0, 51.7, *[1.0] * 8]}, "net.onnx, template from 40, 51.7"),
        ({"template": [38.3, 51.7, *[2.0] * 8]}, "net.onnx, FOLDER"),
        ({"output": "sum"}, "net.onnx, output sum"),
    ],
)
def test_names_tell_foreign_models_apart(changes: dict[str, Any], name: str, tmp_path: Path) -> None:
    """Whatever differs of what is measured makes another model, and a name of its own."""
    few = [pair for pair in PAIRS if pair.fold < 2]
    spec = {key: value for key, value in changes.items() if key in InputSpec.model_fields}
    other = FOREIGN | {key: value for key, value in changes.items() if key not in spec}
    other["input"] = FOREIGN["input"].model_copy(update=spec)
    made = [
        write_evaluation(
            tmp_path / number, distances_of(0.3, few), pairs=few, model="x/net.onnx", described=one, pairs_sha256=sha
        )
        for number, one, sha in (("0", FOREIGN, "a" * 64), ("1", other, "b" * 64))
    ]
    opened = [open_folder(folder) for folder in made]
    if changes:
        assert opened[0].model_key != opened[1].model_key
        assert name_models(opened)[1] == name.replace("FOLDER", str(made[1]))
    else:
        assert opened[0].model_key == opened[1].model_key
        assert name_models(opened[:1]) == [name]


def test_models_of_one_file_are_compared(tmp_path: Path) -> None:
    few = [pair for pair in PAIRS if pair.fold < 2]
    made = [
        write_evaluation(
            tmp_path / output,
            distances_of(noise, few),
            pairs=few,
            model="net.onnx",
            described=FOREIGN | {"output": output},
        )
        for output, noise in (("embedding", 0.3), ("sum", 0.6))
    ]
    (one,) = compare(open_folders(made), num_resamples=10).sets
    assert [model.model for model in one.models] == ["net.onnx, output embedding", "net.onnx, output sum"]
    assert one.models[0].figures["accuracy"].value != one.models[1].figures["accuracy"].value


def test_a_checkpoint_is_one_model_by_whatever_path(tmp_path: Path) -> None:
    """And two runs in folders of one name are two."""
    few = [pair for pair in PAIRS if pair.fold < 2]
    opened = [
        open_folder(
            write_evaluation(
                tmp_path / str(number), distances_of(0.3, few), pairs=few, model=model, described={"sha256": sha * 64}
            )
        )
        for number, (model, sha) in enumerate(
            [("runs/a", "1"), ("runs/a/checkpoints/step-00000100", "1"), ("runs/a", "2")]
        )
    ]
    assert opened[0].model_key == opened[1].model_key
    assert opened[0].model_key != opened[2].model_key
    assert name_models([opened[0], opened[2]]) == ["a, sha256 11111111", "a, sha256 22222222"]


def test_functions_of_one_module_are_models_of_their_own(tmp_path: Path) -> None:
    few = [pair for pair in PAIRS if pair.fold < 2]
    described = {"kind": "python", "sha256": "3" * 64, "step": None}
    opened = [
        open_folder(
            write_evaluation(tmp_path / name[2:], distances_of(0.3, few), pairs=few, model=name, described=described)
        )
        for name in ("m:one", "m:two")
    ]
    assert opened[0].model_key != opened[1].model_key
    assert name_models(opened) == ["m:one", "m:two"]
