"""The model card beside an exported file (Mitchell et al. 2019, arXiv:1810.03993): what it is, what it was made from,
how well it does, what it is for and what nobody has measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from pipeline.checkpoint import LoadedBackbone
from pipeline.export.description import Description
from pipeline.export.parity import Parity
from pipeline.input_spec import InputSpec

_WEIGHTS = {"ema": "the moving average of the weights", "raw": "the weights themselves"}


@dataclass(frozen=True)
class ExportedFile:
    """A file that is going to be written."""

    path: Path
    content: bytes
    format: str
    """In words."""
    description: Description
    """`input` may differ between formats."""
    parity: Parity | None = None
    """None where the tensors were compared bit by bit."""
    is_network: bool = True
    """Else it holds class centres."""


@dataclass(frozen=True)
class TestData:
    """What the parity was measured on."""

    data: str
    digest: str | None
    pairs: str
    """The list's path, or how pairs were drawn."""
    notes: Sequence[str]


def card_path(file: Path) -> Path:
    """`model.onnx` has its card at `model.onnx.md`."""
    return file.with_name(f"{file.name}.md")


def read_evaluation(run_directory: Path) -> dict[str, Any] | None:
    """The run's own evaluation, of any schema version, or None where there is none that can be read."""
    try:
        found = json.loads((run_directory / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "verification" in found else None


def model_card(
    file: ExportedFile,
    others: Sequence[ExportedFile],
    loaded: LoadedBackbone,
    test: TestData | None,
    evaluation: Mapping[str, Any] | None,
    command: str,
) -> str:
    """The card's text, Markdown.

    Args:
        file: whose card it is.
        others: written by the same command.
        loaded: the model it was made from.
        test: what the parity was measured on; None without one.
        evaluation: the content of the run's `evaluation.json`, or None.
        command: the command that wrote it.
    """
    description = file.description
    count = sum(parameter.numel() for parameter in loaded.module.parameters())
    sections = [
        f"# Model card: {file.path.name}\n\n"
        f"A face-recognition network: from an aligned crop of one face to an embedding of {description.embedding_dim} "
        f"numbers. The cosine of two embeddings says how likely they show one person. {count:,} parameters "
        f"({_WEIGHTS[loaded.weights]}, after {loaded.step:,} steps).",
        "## Files\n\n" + _files([file, *others]),
        "## Input and output\n\n" + _input(description.input),
        "## Same as the trained model?\n\n" + _parity(file, test),
        "## Scores\n\n" + _scores(evaluation, loaded),
        "## Training\n\n" + _training(loaded),
        "## Licence\n\n" + _licence(description, loaded),
        "## Intended use and limits\n\n" + _limits(),
        "## How to reproduce\n\n" + _reproduction(command),
    ]
    return "\n\n".join(sections) + "\n"


def centres_card(file: ExportedFile, others: Sequence[ExportedFile], loaded: LoadedBackbone, command: str) -> str:
    """The card of a file of class centres, Markdown; arguments as `model_card` has them."""
    sections = [
        f"# Model card: {file.path.name}\n\n"
        f"Class centres of a face-recognition network as they were trained, after {loaded.step:,} steps: "
        "row i is of label i. The metadata hold the hash of the label map, `label_map_sha256`.",
        "## Files\n\n" + _files([file, *others]),
        "## Training\n\n" + _training(loaded),
        "## Licence\n\n" + _licence(file.description, loaded),
        "## Intended use and limits\n\n"
        "To train on with the same people. Each centre stands for a person of the training data: it is biometric data, "
        "and in many countries its use needs a legal basis.",
        "## How to reproduce\n\n" + _reproduction(command),
    ]
    return "\n\n".join(sections) + "\n"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _files(files: Sequence[ExportedFile]) -> str:
    rows = [
        (f"`{each.path.name}`", each.format, f"{len(each.content):,}", f"`{sha256(each.content)}`") for each in files
    ]
    return _table(("file", "format", "bytes", "sha256"), rows)


def _input(spec: InputSpec) -> str:
    shape = f"[B, 3, {spec.height_px}, {spec.width_px}]"
    values = "pixels, 0 to 255; the network normalises them itself"
    if spec.dtype != "uint8":
        values = f"(pixel − {spec.mean[0]:g}) / {spec.std[0]:g} of pixels from 0 to 255"
    points = "not known"
    if spec.template is not None:
        pairs = zip(spec.template[::2], spec.template[1::2], strict=True)
        points = ", ".join(f"({x:.2f}, {y:.2f})" for x, y in pairs)
    rows = [
        ("input", f"`{spec.dtype}` {shape} ({spec.layout}), {spec.colour}, B free"),
        ("values", values),
        (
            "alignment",
            f"similarity transform of eyes, nose tip and mouth corners (the image's left first) to {points} px",
        ),
        ("output", "`float32` [B, D], not normalised: scale it to length 1 before comparing"),
    ]
    return _table(("", ""), rows) + "\n\nThe file says the same of itself in its metadata, under `facemill.input`."


def _parity(file: ExportedFile, test: TestData | None) -> str:
    parity = file.parity
    if parity is None or test is None:
        return "The tensors in the file equal the trained model's bit for bit."
    rows = [
        (
            "max 1 − cosine of a photo's two embeddings",
            f"{parity.max_cosine_distance:.3g}",
            f"{parity.bounds.cosine_distance:g}",
        ),
        ("mean", f"{parity.mean_cosine_distance:.3g}", ""),
        ("10-fold accuracy, exported", f"{parity.accuracy:.4f}", ""),
        (
            "10-fold accuracy, trained",
            f"{parity.trained_accuracy:.4f}",
            f"falls by at most {parity.bounds.accuracy:g}",
        ),
        ("ms a photo on the CPU, exported", f"{parity.ms_per_photo:.2f}", ""),
        ("ms a photo on the CPU, trained", f"{parity.trained_ms_per_photo:.2f}", ""),
    ]
    digest = f", digest `{test.digest}`" if test.digest else ""
    said = f"On {parity.num_photos:,} photos and {parity.num_pairs:,} pairs ({test.pairs}) of `{test.data}`{digest}:"
    notes = "".join(f"\n- {note}" for note in test.notes)
    return f"{said}\n\n{_table(('', 'measured', 'bound'), rows)}" + (f"\n{notes}" if notes else "")


def _scores(evaluation: Mapping[str, Any] | None, loaded: LoadedBackbone) -> str:
    if evaluation is None:
        return "The run has not been evaluated: `python launch/evaluate.py --model RUN --data DATA` before the export."
    try:
        figures, data = evaluation["verification"], evaluation["data"]
        bounds = (figures.get("intervals") or {}).get("figures", {})
        listed = [
            ("accuracy", (figures["accuracy"] or {"mean": None})["mean"], bounds.get("accuracy")),
            ("AUC", figures["auc"], bounds.get("auc")),
            ("EER", figures["eer"], bounds.get("eer")),
        ] + [
            (f"TAR at FAR {far}", point["tar"], bounds.get(f"tar_at_far.{far}"))
            for far, point in figures["tar_at_far"].items()
        ]
        rows = [
            (name, f"{value:.4f}", f"{interval['low']:.4f} to {interval['high']:.4f}" if interval else "not known")
            for name, value, interval in listed
            if value is not None
        ]
        step, which = (evaluation["model"].get(name) for name in ("step", "weights"))
        tested = f"{figures['num_pairs']:,} pairs of `{data['path']}` ({figures['protocol']})"
        said = f"Of the trained model at step {step}, on {tested}:"
    except (KeyError, TypeError, AttributeError, ValueError):
        return "The run's `evaluation.json` is of another version than this command knows, so its figures are not here."
    differing = [(f"at step {step}", f"step {loaded.step}")] if step != loaded.step else []
    if which is not None and which != loaded.weights:
        differing.append((f"with {_WEIGHTS.get(which, which)}", _WEIGHTS[loaded.weights]))
    if differing:
        evaluated, exported = (" and ".join(words) for words in zip(*differing, strict=True))
        said = f"**The run was evaluated {evaluated}, this file is of {exported}.** {said}"
    notes = "".join(f"\n- {note}" for note in evaluation.get("notes", []))
    return f"{said}\n\n{_table(('', 'value', '95 % interval'), rows)}" + (f"\n{notes}" if notes else "")


def _training(loaded: LoadedBackbone) -> str:
    sets = [(split, f"`{digest}`") for split, digest in loaded.trained_on]
    dataset = loaded.dataset
    detector = dataset.get("detector", {}).get("name", "not known")
    counts = ", ".join(
        f"{name}: {split['num_samples']:,} photos of {split['num_identities']:,} people"
        for name, split in sorted(dataset.get("splits", {}).items())
    )
    recipe = yaml.safe_dump(loaded.config, sort_keys=False, allow_unicode=True).rstrip()
    return (
        f"{_table(('split', 'digest of the data set'), sets)}\n\n"
        f"The {'first ' if len(sets) > 1 else ''}set has {counts}. Faces were found by {detector}. "
        f"{loaded.num_samples:,} samples seen, repeats counted.\n\n"
        f"The recipe, every value of it:\n\n```yaml\n{recipe}\n```"
    )


def _licence(description: Description, loaded: LoadedBackbone) -> str:
    data = loaded.dataset.get("licence") or "not stated"
    return f"Of the weights: {description.licence}.\n\nOf the training data, as its data set records it: {data}."


def _reproduction(command: str) -> str:
    return (
        f"    {command}\n\nTraining: the recipe above on data of the digest above. facemill {version('facemill')}, "
        f"torch {version('torch')}, onnx {version('onnx')}, onnxruntime {version('onnxruntime')}."
    )


def _limits() -> str:
    return "\n".join(
        [
            "- Made to compare faces of people who know of it and agree, in verification and in search among them.",
            "- A score is no proof of identity. Choose the threshold on photos like those it will see, for the false "
            "match rate that the use can bear, and let a person decide where a mistake does harm.",
            "- Differences between groups of people (age, sex, skin tone, origin): not measured. Measure them before "
            "use, and expect the groups that are rare in the training data to fare worse.",
            "- Photos unlike the training data (other cameras, profiles, masks, children, low resolution) and attempts "
            "to deceive (printed photos, replays): not measured. The network does not detect them.",
            "- Embeddings are biometric data: in many countries their use needs a legal basis.",
        ]
    )
