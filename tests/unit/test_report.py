"""The command from a checkpoint to its files, and what the report holds."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from rich.console import Console

from pipeline.config.errors import UserError
from pipeline.data.manifest import Dataset, open_dataset
from pipeline.evaluate.evaluated import open_folders
from pipeline.evaluate.page import one_option_a_line
from pipeline.evaluate.pairs import Photo, format_pairs, parse_pairs, read_pairs
from pipeline.evaluate.result import Evaluation, write_text
from pipeline.evaluate.run import environment
from pipeline.evaluate.scores import read_scores
from pipeline.evaluate.side_by_side import compare
from pipeline.evaluate.verification import fold_accuracy
from preprocess.drivers import DriverOptions
from preprocess.import_bin import write_pair_folder
from preprocess.run import check_options, shard
from tests.datasets import encode_jpeg, make_dataset, random_image
from tests.evaluation_command import EVALUATE, Command, load_command, make_run
from tests.html_pages import check_self_contained

CROP_PX = 32


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Ten people, six photos each: 60 crops of which every two of a person are alike."""
    root = tmp_path_factory.mktemp("data") / "set"
    return open_dataset(make_dataset(root, num_samples=60, num_identities=10, crop_px=CROP_PX))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data: Dataset) -> Path:
    """A run directory with an untrained checkpoint and a metrics file."""
    return make_run(tmp_path_factory.mktemp("run"), data)


@pytest.fixture
def evaluate(tmp_path: Path, run: Path, data: Dataset) -> Command:
    """Call `launch/evaluate.py` with options over defaults; gives the output directory."""
    return load_command(model=run, data=data.root, output=tmp_path / "out", device="cpu")


def test_drawn_pairs_to_report(evaluate: Command, run: Path, data: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    out = evaluate(split="train")
    content = json.loads((out / "evaluation.json").read_text())
    assert Evaluation.model_validate(content).schema_version == 3
    figures = content["verification"]
    # 10 people x 15 same pairs.
    assert (figures["num_same"], figures["num_different"]) == (150, 150)
    assert len(figures["accuracy"]["per_fold"]) == 10
    assert figures["accuracy"]["mean"] == pytest.approx(np.mean(figures["accuracy"]["per_fold"]))
    assert figures["tar_at_far"]["1e-1"]["tar"] is not None
    refused = {"tar": None, "far": None, "threshold": None, "num_different_needed": 300}
    assert figures["tar_at_far"]["1e-2"] == refused
    assert figures["tar_at_far"]["1e-6"]["num_different_needed"] == 3_000_000
    assert figures["d_prime"] > 0
    assert figures["fixed_threshold"]["squared_distance"] == 1.1
    assert figures["fixed_threshold"]["cosine"] == pytest.approx(0.45)
    intervals = figures["intervals"]
    assert (intervals["unit"], intervals["level"], intervals["num_resamples"]) == ("identity", 0.95, 1000)
    assert set(intervals["figures"]) == {"accuracy", "auc", "eer", "d_prime", "tar_at_far.1e-1"}
    for name, value in (("auc", figures["auc"]), ("tar_at_far.1e-1", figures["tar_at_far"]["1e-1"]["tar"])):
        assert intervals["figures"][name]["low"] <= value <= intervals["figures"][name]["high"]
    assert figures["missing"] == []
    assert content["model"]["step"] == 7
    assert content["model"]["num_samples"] == 28
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    digest = hashlib.sha256((checkpoint / "checkpoint.json").read_bytes()).hexdigest()
    assert content["model"]["dataset"]["digest"] == content["data"]["digest"] == data.info.digest
    assert content["model"]["num_parameters"] > 1000
    assert content["model"]["multiply_adds"] > 1_000_000
    assert content["speed"]["embedding_ms"] > 0
    assert (content["speed"]["num_photos"], content["speed"]["batch"]) == (60, 256)
    scores = read_scores(out / "scores.parquet")
    assert scores.pairs_sha256 == content["data"]["pairs_sha256"]
    assert content["scores_sha256"] == hashlib.sha256((out / "scores.parquet").read_bytes()).hexdigest()
    assert open_folders([out])[0].scores.table == scores.table
    assert fold_accuracy(scores.distances, scores.same, scores.fold).mean == figures["accuracy"]["mean"]
    assert scores.has_identities
    assert content["notes"] == ["The model was trained on 10 of the 10 people in the pairs."]
    assert len(read_pairs(out / "pairs.txt").pairs) == 300
    page = (out / "report.html").read_text()
    tags = check_self_contained(page)
    assert sum(tag == "img" for tag, _ in tags.tags) == 48
    # ROC, histogram, loss, learning rate; no chart for metrics that were not recorded.
    assert sum(tag == "svg" for tag, _ in tags.tags) == 4
    assert "Training loss" in page
    assert '1 in 100 <span class="soft extra">(FAR 1e-2)' in page
    assert f"{100 * figures['accuracy']['mean']:.2f} %" in page
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == f"report: {out / 'report.html'}"
    assert f"{figures['d_prime']:.3f}" in printed
    assert "95% intervals over people" in printed
    assert "needs 300 different pairs" in printed
    assert "1e-3" not in printed
    assert sorted(path.name for path in out.iterdir()) == [
        "evaluation.json",
        "pairs.txt",
        "report.html",
        "scores.parquet",
    ]

    # The list that was written gives the same figures again, from the checkpoint itself.
    (out / "pairs.txt").rename(out.parent / "list.txt")
    again = evaluate(pairs=out.parent / "list.txt", model=next((run / "checkpoints").glob("step-*")))
    content_again = json.loads((again / "evaluation.json").read_text())
    assert content_again["verification"] == figures
    assert content_again["model"]["sha256"] == content["model"]["sha256"]
    assert content["model"]["sha256"] == digest
    assert "Training loss" in (again / "report.html").read_text()


def test_identification_of_a_splits_people(
    evaluate: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = json.loads((evaluate(split="train") / "evaluation.json").read_text())
    assert plain["identification"] is None
    content = json.loads((evaluate("--identify", split="train") / "evaluation.json").read_text())
    # All photos are embedded once; the figures of pairs are the same but for rounding in other batches.
    assert content["verification"]["num_pairs"] == 300
    assert content["verification"]["auc"] == pytest.approx(plain["verification"]["auc"], abs=1e-3)
    found = content["identification"]
    page = (tmp_path / "out" / "report.html").read_text()
    check_self_contained(page)
    assert "Finding a person" in page
    assert f"{100 * found['rank']['1']:.2f} %" in page
    assert (found["num_gallery"], found["num_probes"], found["num_missing"]) == (10, 50, 0)
    assert set(found["rank"]) == {"1", "5", "10"}
    assert found["rank"]["10"] == 1.0
    assert found["rank_intervals"]["10"] == {"low": 1.0, "high": 1.0}
    assert found["rank_intervals"]["1"]["low"] <= found["rank"]["1"] <= found["rank_intervals"]["1"]["high"]
    assert (len(found["cmc"]), found["cmc"][0], found["cmc"][4]) == (10, found["rank"]["1"], found["rank"]["5"])
    one = found["open_set"]
    # Five people of six photos: five first photos enrolled.
    assert (one["num_gallery"], one["num_mated"], one["num_unmated"]) == (5, 25, 30)
    assert one["tpir_at_fpir"]["1e-1"]["fpir"] <= 0.1
    refused = {"tpir": None, "fpir": None, "threshold": None, "num_unmated_needed": 300}
    assert one["tpir_at_fpir"]["1e-2"] == refused
    printed = capsys.readouterr().out
    assert "Identification, 50 photos among 10 people" in printed
    assert "needs 300 photos of others" in printed


def test_a_threshold_is_carried_over_from_another_set(
    evaluate: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = evaluate(split="train") / "evaluation.json"
    other = tmp_path / "other.json"
    content = json.loads(first.read_text())
    assert content["verification"]["carried_threshold"] is None
    threshold = content["verification"]["best_threshold"]
    first.rename(other)
    capsys.readouterr()
    found = json.loads((evaluate("--threshold-from", str(other), split="train") / "evaluation.json").read_text())
    carried = found["verification"]["carried_threshold"]
    # Carried to the very pairs that it was chosen on, it does what it did there.
    assert {name: carried[name] for name in threshold} == threshold
    right = carried["tar"] * 150 + (1 - carried["far"]) * 150
    assert carried["accuracy"] == pytest.approx(right / 300)
    assert f"accuracy at cosine {carried['cosine']:.3f}" in capsys.readouterr().out
    for text, message in (
        ("{", "no best threshold in it"),
        ("[]", "no best threshold in it"),
        ('{"verification": {"best_threshold": {"squared_distance": 5}}}', "a best threshold of 5"),
    ):
        other.write_text(text)
        with pytest.raises(UserError, match=f"other.json: {message}; expected an evaluation.json"):
            evaluate("--threshold-from", str(other), split="train")
    with pytest.raises(UserError, match=r"unreadable \(No such file"):
        evaluate("--threshold-from", str(tmp_path / "none.json"), split="train")


def test_missing_photos_are_said_loudly(
    evaluate: Command, data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "<script>alert(1)</script>"
    lines = ["2\t1", "person001\t1\t2", f"person001\t1\t{name}\t3", "person002\t1\t2", "person002\t1\tperson003\t1"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    out = evaluate("--no-flip", pairs=tmp_path / "list.txt")
    figures = json.loads((out / "evaluation.json").read_text())["verification"]
    assert (figures["num_pairs"], figures["num_pairs_dropped"], figures["flip"]) == (3, 1, False)
    assert figures["missing"] == [{"photo": f"{name}_0003", "reason": "not in the data set"}]
    page = (out / "report.html").read_text()
    check_self_contained(page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;_0003" in page
    assert "1 of 4 pairs were dropped because 1 photos are missing" in capsys.readouterr().out.replace("\n", " ")


def test_names_in_galleries_are_escaped(evaluate: Command, run: Path, tmp_path: Path) -> None:
    """Folder names come from users: one of them is an attack, another breaks out of an attribute."""
    rng = np.random.default_rng(0)
    for name in ("<script>alert(1)<", '"><img src=x onerror=alert(1)>', "[bold]&amp;"):
        for number in (1, 2):
            path = tmp_path / "photos" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), rng.integers(0, 256, (CROP_PX, CROP_PX, 3), dtype=np.uint8))
    names = sorted(path.name for path in (tmp_path / "photos").iterdir())
    pairs = ["2\t1", f"{names[0]}\t1\t2", f"{names[0]}\t1\t{names[1]}\t1", f"{names[1]}\t1\t2"]
    (tmp_path / "list.txt").write_text("\n".join([*pairs, f"{names[2]}\t1\t{names[1]}\t2"]))
    out = evaluate(data=tmp_path / "photos", pairs=tmp_path / "list.txt", detector="none")
    page = (out / "report.html").read_text()
    tags = check_self_contained(page)
    assert all("onerror" not in attributes for _, attributes in tags.tags)
    assert "&lt;script&gt;alert(1)&lt;_0001" in page
    assert json.loads((out / "evaluation.json").read_text())["data"]["kind"] == "photos"


@pytest.mark.parametrize("num_folds", [3, 2])
def test_the_number_of_folds_is_that_of_the_folds_with_pairs(
    evaluate: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], num_folds: int
) -> None:
    """Of three folds, the last needs photos that are not there in one of the cases."""
    last = "person003" if num_folds == 3 else "nobody"
    folds = [f"{name}\t1\t2\n{name}\t1\tperson009\t1" for name in ("person001", "person002", last)]
    (tmp_path / "list.txt").write_text("\n".join(["3\t1", *folds]))
    out = evaluate(pairs=tmp_path / "list.txt")
    figures = json.loads((out / "evaluation.json").read_text())["verification"]
    assert len(figures["accuracy"]["folds"]) == num_folds
    assert figures["protocol"] == f"{num_folds}-fold, unshuffled, squared distance < threshold of 0 to 4 by 0.01"
    page = (out / "report.html").read_text()
    assert f"The mean of {num_folds} parts" in page
    assert f"<footer>{num_folds}-fold, unshuffled" in page
    assert "10-fold" not in page
    assert f"accuracy, {num_folds} folds" in capsys.readouterr().out


def test_a_folder_and_its_shards_number_photos_alike(evaluate: Command, tmp_path: Path) -> None:
    """Hidden files, other files, deeper folders, links that lead nowhere and damaged photos shift no number."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    for name in ("Ann/b.png", "Ann/2019/a.png", "Ann/Ann_0001.png", "Bo/Bo_0003.png", "Bo/Bo_0001.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((CROP_PX, CROP_PX, 3), rng.integers(0, 256, 3), dtype=np.uint8)  # JPEG keeps even colours
        cv2.imwrite(str(folder / name), pixels)
    (folder / "Ann" / "._b.png").write_bytes(b"hidden")
    (folder / "Ann" / "a.txt").write_bytes(b"no photo")
    (folder / "Ann" / "aa.png").write_bytes(b"damaged")
    (folder / "Ann" / "a.png").symlink_to("nowhere.png")
    (tmp_path / "list.txt").write_text("2\t1\nAnn\t1\t5\nAnn\t2\tBo\t3\nBo\t1\t3\nAnn\t3\tBo\t1\n")
    crop = {"detector": "none", "size_px": CROP_PX, "face": "largest", "min_score": 0.7, "min_face_px": 20}
    options = check_options(crop=crop, quality=95, samples_per_shard=4, val_identities=0.5, seed=0, licence="")
    shard(folder, "auto", tmp_path / "shards", options, None, 1, 1.0, DriverOptions(), None, Console(quiet=True))

    found = [
        json.loads((evaluate(pairs=tmp_path / "list.txt", **given) / "evaluation.json").read_text())
        for given in ({"data": folder, "detector": "none"}, {"data": tmp_path / "shards"})
    ]
    assert found[0]["notes"][1:-1] == [
        "The photos were taken as aligned (--detector none) and scaled to 32 px.",
        "In the folder of photos, passed over 1 files: hidden.",
        "In the folder of photos, passed over 1 files: not a photo's suffix.",
    ]
    for content in found:
        assert content["verification"]["missing"] == [{"photo": "Ann_0003", "reason": "unreadable"}]
        assert content["data"]["num_photos"] == 5
        assert "Photos of 1 of the 2 people in the pairs go by their place" in content["notes"][-1]
    thresholds = [content["verification"]["best_threshold"]["squared_distance"] for content in found]
    assert thresholds[0] == pytest.approx(thresholds[1], abs=0.03)


def test_one_block_is_dealt_into_folds(evaluate: Command, tmp_path: Path) -> None:
    same = [f"person{n:03d}\t2\t3" for n in range(10)]
    different = [f"person{n:03d}\t2\tperson{(n + 1) % 10:03d}\t3" for n in range(10)]
    (tmp_path / "list.txt").write_text("\n".join(["10", *same, *different]))
    content = json.loads((evaluate(pairs=tmp_path / "list.txt") / "evaluation.json").read_text())
    assert [fold["num_pairs"] for fold in content["verification"]["accuracy"]["folds"]] == [2] * 10
    assert "one block; 20 of its 20 pairs were dealt into ten folds" in content["notes"][0]


def write_pair_bin(path: Path, side_px: int, broken: int | None = None) -> None:
    """Twenty same and twenty different pairs in turn; of one image, where asked, the bytes are no image."""
    rng = np.random.default_rng(0)
    images = []
    for number in range(40):
        left = random_image(rng, side_px)
        right = cv2.GaussianBlur(left, (0, 0), 3) if number % 2 else random_image(rng, side_px)
        images += [encode_jpeg(left), encode_jpeg(right)]
    if broken is not None:
        images[broken] = b"none"
    path.write_bytes(pickle.dumps((images, [bool(number % 2) for number in range(40)]), 2))


def test_a_verification_set_gives_the_figures_of_its_shards_and_pair_list(evaluate: Command, tmp_path: Path) -> None:
    path, folder, shards = tmp_path / "lfw.bin", tmp_path / "lfw", tmp_path / "shards"
    write_pair_bin(path, CROP_PX)
    write_pair_folder(path, folder)
    options = check_options(crop={"detector": "none", "size_px": CROP_PX}, keep_jpegs=True)
    shard(folder, "folders", shards, options, None, 1, 0.5, DriverOptions(), None, Console(quiet=True))
    expected = json.loads((evaluate(data=shards, pairs=folder / "pairs.txt") / "evaluation.json").read_text())
    out = evaluate(data=path)
    found = json.loads((out / "evaluation.json").read_text())
    for key in ("accuracy", "auc", "eer", "tar_at_far", "num_pairs"):
        assert found["verification"][key] == expected["verification"][key]
    assert (found["data"]["kind"], found["data"]["num_photos"]) == ("pair_bin", 80)
    assert found["data"]["num_identities"] is None
    assert found["verification"]["intervals"]["unit"] == "pair"
    assert not read_scores(out / "scores.parquet").has_identities
    assert found["data"]["pairs"] == str(path)
    assert found["data"]["pairs_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (found["data"]["split"], found["data"]["detector"]["name"], found["notes"]) == (None, "none", [])
    page = (out / "report.html").read_text()
    check_self_contained(page)
    assert "pairs of 80 photos</span>" in page
    assert not (out / "pairs.txt").exists()


def test_a_verification_set_of_another_size_is_resized_and_says_so(evaluate: Command, tmp_path: Path) -> None:
    write_pair_bin(tmp_path / "x.bin", 40, broken=7)
    found = json.loads((evaluate(data=tmp_path / "x.bin") / "evaluation.json").read_text())
    assert found["verification"]["missing"] == [{"photo": "pair_00003_0002", "reason": "not_an_image"}]
    assert found["verification"]["num_pairs"] == 39
    assert "The photos of x.bin (40 px) were resized to the model's 32 px." in found["notes"]
    for option, value in (("pairs", tmp_path / "list.txt"), ("split", "val"), ("detector", "mtcnn")):
        with pytest.raises(UserError, match=f"--{option}: given with x.bin, whose photos are aligned and paired"):
            evaluate(data=tmp_path / "x.bin", **{option: value})
    with pytest.raises(UserError, match=r"--identify: given with x\.bin; expected a data set"):
        evaluate("--identify", data=tmp_path / "x.bin")
    (tmp_path / "x.bin").write_bytes(pickle.dumps(print))
    with pytest.raises(UserError, match=r"a pickle that calls \S*print"):
        evaluate(data=tmp_path / "x.bin")


def test_users_mistakes(evaluate: Command, tmp_path: Path) -> None:
    pairs = tmp_path / "list.txt"
    pairs.write_text("2\t1\n" + "x\t1\t2\nx\t1\ty\t1\n" * 2)
    (tmp_path / "photos" / "x").mkdir(parents=True)
    (tmp_path / "photos" / "x" / "1.jpg").write_bytes(b"no photo")
    (tmp_path / "begun" / "commits").mkdir(parents=True)
    other = make_dataset(tmp_path / "other", num_samples=8, num_identities=2, crop_px=48)
    for options, message in (
        ({"data": tmp_path / "none"}, "none: no such directory"),
        ({"data": pairs}, "list.txt: not a directory; expected a data set"),
        ({"data": tmp_path / "begun"}, "dataset.json is missing"),
        ({"data": other}, r"crops of 48 px; expected 32 px, as the model takes"),
        ({"model": tmp_path}, "no checkpoint in it"),
        ({"model": tmp_path / "none"}, "none: no such directory; expected a run directory"),
        ({"model": pairs}, r"list.txt: a file of another kind; expected a run directory, .*FILE\.onnx"),
        ({"pairs": tmp_path / "none.txt"}, "none.txt: unreadable"),
        ({"pairs": tmp_path}, r"unreadable \(Is a directory\)"),
        ({"pairs": pairs}, "none of 4 pairs has both photos"),
        ({"pairs": pairs, "split": "train"}, "--split: given with --pairs"),
        ({"split": None}, "no split 'val' to draw pairs from; it has train"),
        ({"data": tmp_path / "photos"}, "not a data set, and no --pairs"),
        ({"data": tmp_path / "photos", "pairs": pairs}, "--detector: missing, and the training photos came already"),
        ({"data": tmp_path / "photos", "pairs": pairs, "detector": "none"}, r"x_0001 \(not_an_image\)"),
        ({"detector": "mtcnn", "pairs": pairs}, "--detector: given with a data set"),
        ({"pairs": pairs, "identify": ""}, "--identify: given with --pairs"),
    ):
        flags = ["--identify"] if options.pop("identify", None) is not None else []
        with pytest.raises(UserError, match=message) as caught:
            evaluate(*flags, **options)
        assert "\n" not in str(caught.value)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device: cuda, but this machine offers none"):
            evaluate(device="cuda")


def test_evaluations_of_a_model_with_and_without_mirror_images_compare(
    evaluate: Command, data: Dataset, tmp_path: Path
) -> None:
    evaluate(split="train", output=tmp_path / "flip")
    evaluate("--no-flip", split="train", output=tmp_path / "plain")
    found = compare(open_folders([tmp_path / "flip", tmp_path / "plain"]), num_resamples=20)
    assert [model.name.rpartition(", ")[2] for model in found.models] == ["with mirror image", "without mirror image"]
    (one,) = found.sets
    assert one.name == f"{data.folder.name} (train)"
    assert (one.num_pairs, one.num_pairs_left_out, len(one.tests)) == (300, 0, 1)


def test_help_keeps_its_lines_on_a_narrow_terminal() -> None:
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb"}
    command = [sys.executable, str(EVALUATE), "--help"]
    page = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout
    lines = [line.strip() for line in page.splitlines()]
    examples = [line for line in lines if line.startswith("python launch/evaluate.py --model ")]
    assert [line.split(" --data ")[1] for line in examples] == [
        "build/data",
        "build/data --identify",
        "DATA --pairs pairs.txt",
        "PHOTOS --pairs pairs.txt",
        "faces_emore/lfw.bin",
        "cfp-dataset --protocol cfp-ff",
        "faces_emore/lfw.bin",
    ]
    # Prose fills its lines: no line ends early because the source broke there.
    start, end = lines.index("Measure a face model on pairs of photos.") + 1, lines.index(examples[0])
    prose = [line for line in lines[start:end] if line]
    assert all(len(line) > 60 for line in prose[:-1]), page


def test_an_output_that_cannot_be_written_is_named_before_any_work(
    evaluate: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pipeline.evaluate.embed.extract_embeddings", lambda *_, **__: pytest.fail("embedding had begun")
    )
    (tmp_path / "file").write_text("")
    for output, message in (
        (tmp_path / "file", r"file: not a folder to write to \(File exists\)"),
        (tmp_path / "file" / "deeper", r"deeper: not a folder to write to \(Not a directory\)"),
        (Path("/proc/evaluation"), r"evaluation: not a folder to write to \("),
        (Path("/proc"), r"proc: not a folder to write to \("),
    ):
        with pytest.raises(UserError, match=message) as caught:
            evaluate(split="train", output=output)
        assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_written_is_a_users_error(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match=r"report.html: cannot be written \(Is a directory\)"):
        write_text(tmp_path / "report.html", "text")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"pairs.txt: cannot be written \(File exists\)"):
        write_text(tmp_path / "file" / "pairs.txt", "text")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "report.html"]


def test_command_is_the_same_on_several_lines() -> None:
    command = shlex.join(["python", "launch/evaluate.py", "--data", "my photos", "--pairs", "a'b --c.txt", "--no-flip"])
    lines = one_option_a_line(command)
    assert lines.count("\n") == 3
    assert shlex.split(lines.replace("\\\n", "")) == shlex.split(command)


def test_list_round_trip_through_awkward_names() -> None:
    text = "1\t1\n[red]é x\t1\t2\n[red]é x\t1\ty\t1\n"
    assert format_pairs(parse_pairs(text, "p")) == text
    assert str(Photo("[red]", 3)) == "[red]_0003"


def test_environment_names_versions() -> None:
    found = environment(torch.device("cpu"))
    assert {"facemill", "python", "torch", "numpy"} <= set(found.versions)
    assert found.num_cores >= 1
