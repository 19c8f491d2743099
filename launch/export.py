"""Write a trained model as files that need nothing of ours: ONNX, a `torch.export` program, safetensors.

ONNX files and programs are compared with the trained model on real crops before they get their names; one that differs
too much is not written. Beside each file stands its model card, `model.onnx.md` beside `model.onnx`.

    python launch/export.py build/demo/run --onnx build/demo/model.onnx

    python launch/export.py RUN --onnx small.onnx --precision int8 --data build/data --licence "CC BY-NC 4.0"

    python launch/export.py RUN/checkpoints/best --program model.pt2 --data photos/lfw --pairs pairs.txt

    python launch/export.py RUN --safetensors model.safetensors --centres centres.safetensors

A recipe begins from safetensors with `init_from.path=model.safetensors`.
"""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pipeline.config.errors import UserError, run_command

if TYPE_CHECKING:
    from pipeline.checkpoint import LoadedBackbone
    from pipeline.export.card import ExportedFile, TestData
    from pipeline.export.checked import Check
    from pipeline.export.description import Description

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


class Which(StrEnum):
    """Which of a backbone's weights."""

    ema = "ema"
    raw = "raw"


class Precision(StrEnum):
    """Of an ONNX file's weights and products."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


@app.command(help=__doc__)
def main(
    checkpoint: Annotated[Path, typer.Argument(help="a run directory, `checkpoints/best` or one checkpoint")],
    onnx: Annotated[Path | None, typer.Option(help="ONNX file of the network")] = None,
    program: Annotated[Path | None, typer.Option(help="torch.export file of the network (.pt2)")] = None,
    safetensors: Annotated[Path | None, typer.Option(help="file for the backbone's weights")] = None,
    centres: Annotated[Path | None, typer.Option(help="safetensors file for the class centres")] = None,
    weights: Annotated[Which | None, typer.Option(help="default: ema where the checkpoint has an average")] = None,
    precision: Annotated[Precision | None, typer.Option(help="of the ONNX file; default: fp32")] = None,
    opset: Annotated[int | None, typer.Option(min=13, max=20, help="of the ONNX file; default: 17")] = None,
    normalise_inside: Annotated[
        bool, typer.Option("--normalise-inside", help="take plain uint8 pixels instead of (pixel − 127.5) / 127.5")
    ] = False,
    data: Annotated[
        Path | None, typer.Option(help="photos to check the files on; default: what the run was trained on")
    ] = None,
    pairs: Annotated[Path | None, typer.Option(help="pair list in the format of LFW's pairs.txt")] = None,
    split: Annotated[str | None, typer.Option(help="draw pairs from this split; default: val")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="data set whose crops give int8 its ranges; default: what it was trained on")
    ] = None,
    licence: Annotated[str, typer.Option(help="of the weights, for metadata and model card")] = "",
) -> None:
    """Read a checkpoint, make files, check them, write them."""
    outputs = [path for path in (onnx, program, safetensors, centres) if path is not None]
    _require_outputs(outputs)
    for option, value in (("--precision", precision), ("--opset", opset)):
        if value is not None and onnx is None:
            raise UserError(option, "given without --onnx", "an ONNX file to write", f"leave {option} out")
    if onnx is None and program is None:
        for option, is_given in (
            ("--normalise-inside", normalise_inside),
            *((name, value is not None) for name, value in (("--data", data), ("--pairs", pairs), ("--split", split))),
        ):
            if is_given:
                found = "given without --onnx and --program"
                raise UserError(option, found, "a file that is checked on photos", f"leave {option} out")
    if calibration is not None and precision is not Precision.int8:
        raise UserError("--calibration", "given without --precision int8", "", "leave --calibration out")

    import torch

    from pipeline.checkpoint import find_checkpoint, load_backbone
    from pipeline.export.card import card_path, read_evaluation
    from pipeline.export.checked import open_check
    from pipeline.export.description import describe
    from pipeline.inputs.models import recognise

    for path in outputs:
        _try_out(path)
        _try_out(card_path(path))
    which: Literal["ema", "raw"] | None = None if weights is None else weights.value
    step = find_checkpoint(checkpoint)  # once: a run that goes on may have another one soon
    loaded = load_backbone(step, torch.device("cpu"), which)
    recogniser = recognise(loaded, step, step, torch.device("cpu"))
    description = describe(loaded, licence, normalise_inside)
    files: list[ExportedFile] = []
    check = None
    if onnx is not None or program is not None:
        check = open_check(loaded, recogniser, data, pairs, split)
    if onnx is not None:
        assert check is not None
        chosen = precision or Precision.fp32
        files.append(_make_onnx(onnx, loaded, description, check, chosen, opset, calibration))
    if program is not None:
        assert check is not None
        files.append(_make_program(program, loaded, description, check))
    if safetensors is not None:
        files.append(_make_safetensors(safetensors, loaded, describe(loaded, licence, is_normalised_inside=True)))
    # what can still be refused comes before the first file
    if centres is not None:
        files.append(_make_centres(centres, step, description))
    evaluation = None if recogniser.run_directory is None else read_evaluation(recogniser.run_directory)
    _write(loaded, files, None if check is None else check.test, evaluation)


def _require_outputs(outputs: list[Path]) -> None:
    if not outputs:
        raise UserError("export", "no file to write", "at least one of --onnx, --program, --safetensors, --centres")
    from pipeline.export.card import card_path

    names = [name for path in outputs for name in (path, card_path(path))]
    taken: set[Path] = set()
    for name in names:
        if name.resolve() in taken:
            raise UserError(name, "named twice, model cards counted", "a name for each file")
        taken.add(name.resolve())


def _try_out(path: Path) -> None:
    """Find out whether a file can be written before time is spent on what goes into it."""
    import tempfile

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(path, f"cannot be written ({error.strerror})") from None
    if path.is_dir():
        raise UserError(path, "cannot be written (a folder)", "the name of a file")


def _make_onnx(
    path: Path,
    loaded: LoadedBackbone,
    description: Description,
    check: Check,
    precision: Precision,
    opset: int | None,
    calibration: Path | None,
) -> ExportedFile:
    from pipeline.config.location import parse_location
    from pipeline.export.calibration import calibration_inputs
    from pipeline.export.card import ExportedFile
    from pipeline.export.checked import training_data
    from pipeline.export.precision import to_float16, to_int8
    from pipeline.export.running import onnx_embedder
    from pipeline.export.to_onnx import DEFAULT_OPSET, float_model, serialise

    opset = opset or DEFAULT_OPSET
    model = float_model(loaded.module, description, opset)
    said = f"ONNX, opset {opset}, {precision.value}"
    if precision is Precision.fp16:
        model = to_float16(model)
    if precision is Precision.int8:
        location = training_data(loaded, "--calibration") if calibration is None else parse_location(calibration)
        inputs = calibration_inputs(location, loaded.trained_on[0][0], description.input)
        model = to_int8(model, inputs)
        said += f" (ranges of {len(inputs):,} crops)"
    content = serialise(model, description.metadata(precision=precision.value))
    embedder = onnx_embedder(content, description.input, path)
    remedy = "a larger --precision" if precision is not Precision.fp32 else "another --opset, or --program"
    return ExportedFile(path, content, said, description, check.require(embedder, precision.value, remedy))


def _make_program(path: Path, loaded: LoadedBackbone, description: Description, check: Check) -> ExportedFile:
    from pipeline.export.card import ExportedFile
    from pipeline.export.running import program_embedder
    from pipeline.export.to_program import program_bytes

    content = program_bytes(loaded.module, description)
    embedder = program_embedder(content, description.input, path)
    return ExportedFile(
        path, content, "torch.export program", description, check.require(embedder, "fp32", "take --onnx")
    )


def _make_safetensors(path: Path, loaded: LoadedBackbone, description: Description) -> ExportedFile:
    from pipeline.export.card import ExportedFile
    from pipeline.export.to_safetensors import backbone_bytes, require_same_tensors

    content = backbone_bytes(loaded.module, description)
    require_same_tensors(content, loaded.module, path)
    return ExportedFile(path, content, "safetensors", description)


def _make_centres(path: Path, checkpoint: Path, description: Description) -> ExportedFile:
    from pipeline.export.card import ExportedFile
    from pipeline.export.to_safetensors import centres_bytes

    content, shape = centres_bytes(checkpoint, description)
    said = f"class centres {' × '.join(f'{size:,}' for size in shape)}"
    return ExportedFile(path, content, said, description, is_network=False)


def _write(
    loaded: LoadedBackbone, files: list[ExportedFile], test: TestData | None, evaluation: dict[str, Any] | None
) -> None:
    from pipeline.evaluate.result import write_bytes, write_text
    from pipeline.export.card import card_path, centres_card, model_card

    command = shlex.join(["python", *sys.argv])
    count = sum(parameter.numel() for parameter in loaded.module.parameters())
    for file in files:
        others = [each for each in files if each is not file]
        if file.is_network:
            card = model_card(file, others, loaded, test, evaluation, command)
            said = f"{file.format}, {count:,} parameters ({loaded.weights}), step {loaded.step:,}"
        else:
            card = centres_card(file, others, loaded, command)
            said = f"{file.format}, step {loaded.step:,}"
        write_bytes(file.path, file.content, remedy="")
        write_text(card_path(file.path), card, remedy="")
        typer.echo(f"{file.path}: {said}, {len(file.content):,} bytes, model card {card_path(file.path).name}")
        if file.parity is not None:
            typer.echo(f"{file.path}: {file.parity.sentence()}")


if __name__ == "__main__":
    run_command(app)
