"""Python callables as models: `module:function`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config.errors import UserError
from pipeline.evaluate.recogniser import Recogniser
from pipeline.inputs.models import open_model

MODULE = """
import numpy as np
import torch

def channels(crops):
    assert crops.dtype == torch.uint8 and crops.is_contiguous()
    return crops.float().mean((2, 3))

def array(crops):
    return channels(crops).numpy().astype(np.float64)

class Net:
    def __call__(self, crops):
        return channels(crops)

class nets:
    net = Net()

def flat(crops):
    return crops.float().mean()

def of_one(crops):
    return channels(crops)[:1]

def whole(crops):
    return crops.sum((2, 3))

def centred(crops):
    return channels(crops) - channels(crops).mean(0)

def shorter(crops):
    return channels(crops)[:, : len(crops)]

def broken(crops):
    raise RuntimeError("no weights\\nat all")

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"module_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    return name


def open_callable(name: str, declared: str | None = "size=20x16") -> Recogniser:
    return open_model(name, torch.device("cpu"), declared=declared)


@pytest.mark.parametrize("function", ["channels", "array", "nets.net"])
def test_gets_the_centre_of_crops_and_gives_rows(module: str, function: str) -> None:
    found = open_callable(f"{module}:{function}")
    crops = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 3)).astype(np.uint8)
    vectors = found.embedder.embed(torch.from_numpy(crops).permute(0, 3, 1, 2))
    np.testing.assert_allclose(vectors.numpy(), crops[:, :, 2:18].mean((1, 2)), rtol=1e-5)
    told = found.description
    assert (told.kind, told.checkpoint, told.crop_px, told.embedding_dim) == ("python", f"{module}:{function}", 20, 3)
    assert (told.num_parameters, told.step) == (None, None)


@pytest.mark.parametrize(
    ("function", "declared", "message"),
    [
        ("channels", None, "does not say which crops it takes; expected --input size=112"),
        ("channels", "size=20 colour=BGR", "--input: colour= given with"),
        ("missing", "size=20", "has no 'missing'"),
        ("number", "size=20", "number is a int; expected a function"),
        ("flat", "size=20", r"its output for 3 photos is float32 \[\]; expected floats \[3, D\]"),
        ("of_one", "size=20", r"its output for 3 photos is float32 \[1, 3\]"),
        ("whole", "size=20", r"its output for 3 photos is int64 \[3, 3\]"),
        ("centred", "size=20", "the embedding of a photo changes with the other photos of its batch"),
        ("shorter", "size=20", "embeddings of 3 numbers for 3 photos, of 1 for one"),
        ("broken", "size=20", r"fails on uint8 \[3, 3, 20, 20\] \(RuntimeError: no weights\)"),
    ],
)
def test_what_cannot_be_a_model_is_named_in_one_line(
    module: str, function: str, declared: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_callable(f"{module}:{function}", declared)
    assert module in str(caught.value)
    assert "\n" not in str(caught.value)


def test_modules_that_cannot_be_imported_are_named_in_one_line(module: str) -> None:
    Path("faulty_module.py").write_text("import sys\nsys.exit('go away')\n")
    Path("wrong_module.py").write_text("def f(:\n")
    for name, message in (
        ("no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("faulty_module", "SystemExit: go away"),
        ("wrong_module", "SyntaxError"),
    ):
        with pytest.raises(UserError, match=rf"{name}:f: cannot be imported \({message}") as caught:
            open_callable(f"{name}:f")
        assert "\n" not in str(caught.value)


def test_the_current_directory_comes_first(module: str, tmp_path: Path) -> None:
    """Also where it stands on the path already, behind another."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / f"{module}.py").write_text("number = 3\n")
    sys.path[:0] = [str(tmp_path / "other"), str(tmp_path)]
    assert open_callable(f"{module}:channels").description.embedding_dim == 3
