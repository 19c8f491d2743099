"""Models side by side: what evaluations leave to be compared, verdicts, report, mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pipeline.config.errors import UserError
from pipeline.evaluate import comparison, result, verification
from pipeline.evaluate.comparison import Difference, McNemar
from pipeline.evaluate.comparison_report import Column, render_comparison
from pipeline.evaluate.comparison_result import Comparison
from pipeline.evaluate.evaluated import open_folder, open_folders
from pipeline.evaluate.intervals import Interval
from pipeline.evaluate.scores import write_scores
from pipeline.evaluate.side_by_side import compare, judge, put_in_words
from tests.evaluations import NUM_PAIRS, PAIRS, distances_of, make_pairs, write_evaluation
from tests.html_pages import check_self_contained
from tests.scripts import load_script

COMPARE = Path(__file__).parents[2] / "launch" / "compare.py"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A poor and a good model on the same set."""
    root = tmp_path_factory.mktemp("evaluations")
    return [
        write_evaluation(root / "old", distances_of(0.5), has_intervals=True),
        write_evaluation(root / "new", distances_of(0.25), model="build/new", has_intervals=True),
    ]


@pytest.fixture
def launch() -> ModuleType:
    return load_script(COMPARE)


def test_holm_by_hand() -> None:
    """0.01 x 3; 0.03 x 2 = 0.06; 0.04 x 1 would be below the one before it."""
    assert comparison.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert comparison.holm([0.9, 0.8]) == [1.0, 1.0]
    assert comparison.holm([0.02, 0.02]) == pytest.approx([0.04, 0.04])
    assert comparison.holm([0.2]) == [0.2]
    assert comparison.holm([]) == []


def test_a_clearly_better_model(folders: list[Path]) -> None:
    found = compare(open_folders(folders))
    assert (found.baseline, found.num_tests, found.notes) == ("old", 1, [])
    assert [model.name for model in found.models] == ["old", "new"]
    assert (found.models[0].multiply_adds, found.models[0].embedding_ms) == (54_900_000, 6.25)
    (one,) = found.sets
    assert (one.name, one.num_pairs, one.num_same, one.num_pairs_left_out) == ("faces", 600, 300, 0)
    assert one.unit == "identity"
    (test,) = one.tests
    assert test.verdict == "better"
    assert test.sentence.startswith("new is better than old on faces: ")
    assert test.mcnemar.corrected_p_value == test.mcnemar.p_value < 0.05
    best = {model.model: {name for name, f in model.figures.items() if f.is_clearly_best} for model in one.models}
    assert best["old"] == set()
    # less is better in EER, and so is it in nothing else
    assert {"accuracy", "auc", "eer", "d_prime"} <= best["new"]
    assert test.differences["eer"].value is not None
    assert test.differences["eer"].value < 0
    assert test.differences["eer"].is_clear


def test_figures_are_those_of_the_evaluations(folders: list[Path]) -> None:
    """All of a model's figures and intervals, for no pair is missing, and the differences are those of the figures."""
    (one,) = compare(open_folders(folders)).sets
    accuracies = []
    for model, folder in zip(one.models, folders, strict=True):
        figures = open_folder(folder).evaluation.verification
        expected = {
            "accuracy": figures.accuracy.mean,
            "auc": figures.auc,
            "eer": figures.eer,
            "d_prime": figures.d_prime,
        }
        expected |= {f"tar_at_far.{name}": p.tar for name, p in figures.tar_at_far.items() if p.tar is not None}
        assert {name: figure.value for name, figure in model.figures.items()} == pytest.approx(expected)
        assert model.accuracy_std == pytest.approx(figures.accuracy.std)
        assert figures.intervals is not None
        assert {name: figure.interval for name, figure in model.figures.items()} == figures.intervals.figures
        assert (model.roc.far, model.roc.tar) == (figures.roc.far, figures.roc.tar)
        accuracies.append(figures.accuracy.mean)
    assert one.tests[0].differences["accuracy"].value == pytest.approx(accuracies[1] - accuracies[0])


def test_mcnemar_judges_each_fold_at_the_threshold_of_the_others(folders: list[Path]) -> None:
    fold = np.array([pair.fold for pair in PAIRS])
    same = np.array([pair.same for pair in PAIRS])
    right = []
    for distances in (distances_of(0.5), distances_of(0.25)):
        is_right = np.empty(NUM_PAIRS, bool)
        for number in range(10):
            others = fold != number
            threshold, _ = verification.best_threshold(distances[others], same[others])
            is_right[~others] = (distances[~others] < threshold) == same[~others]
        right.append(is_right)
    test = compare(open_folders(folders), num_resamples=20).sets[0].tests[0].mcnemar
    assert test.only_baseline == np.count_nonzero(right[0] & ~right[1])
    assert test.only_model == np.count_nonzero(right[1] & ~right[0]) > 0


def test_another_baseline_and_a_model_like_it(folders: list[Path], tmp_path: Path) -> None:
    twin = write_evaluation(tmp_path / "twin", distances_of(0.25), model="build/twin")
    found = compare(open_folders([*folders, twin]), baseline=1, num_resamples=100)
    assert found.baseline == "new"
    tests = {test.model: test for test in found.sets[0].tests}
    assert set(tests) == {"old", "twin"}
    assert tests["old"].verdict == "worse"
    assert tests["twin"].verdict == "no_difference"
    assert tests["twin"].mcnemar.p_value == tests["twin"].mcnemar.corrected_p_value == 1.0
    # two tests: the smaller p-value is doubled
    assert tests["old"].mcnemar.corrected_p_value == pytest.approx(2 * tests["old"].mcnemar.p_value)
    # neither twin is clearly better than the other
    assert not any(figure.is_clearly_best for model in found.sets[0].models for figure in model.figures.values())


def test_sets_that_not_all_models_were_tested_on(folders: list[Path], tmp_path: Path) -> None:
    others = make_pairs(1)
    further = [
        write_evaluation(
            tmp_path / model,
            distances_of(0.3, others),
            pairs=others,
            model=f"build/{model}",
            data="faces_emore/cfp_fp.bin",
            pairs_sha256="b" * 64,
            knows_people=False,
            notes=("Photos were resized.",),
        )
        for model in ("new", "third")
    ]
    found = compare(open_folders([*folders, *further]), num_resamples=20)
    assert [one.name for one in found.sets] == ["faces", "cfp_fp"]
    assert [model.model for model in found.sets[1].models] == ["new", "third"]
    assert found.sets[1].tests[0].baseline == "new"
    assert found.sets[1].unit == "pair"
    assert found.notes == [
        "cfp_fp: old was not tested on it; new stands in as the baseline.",
        "cfp_fp: Photos were resized.",
    ]


def test_pairs_left_out_are_said(folders: list[Path], tmp_path: Path) -> None:
    short = write_evaluation(
        tmp_path / "short", distances_of(0.25)[:-6], pairs=PAIRS[:-6], model="build/short", notes=("6 dropped.",)
    )
    found = compare(open_folders([folders[0], short]), num_resamples=20)
    assert (found.sets[0].num_pairs, found.sets[0].num_pairs_left_out) == (594, 6)
    assert found.notes[0].startswith("faces: 6 pairs were measured for some models only, and are left out for all")
    assert found.notes[1] == "faces, short: 6 dropped."


def test_a_set_with_one_kind_of_pairs_left_is_named(tmp_path: Path) -> None:
    """Two models share the same pairs only, though each has both kinds."""
    same = [pair for pair in PAIRS if pair.same]
    different = [pair for pair in PAIRS if not pair.same]
    made = []
    for name, pairs in (("one", [*same, *different[::2]]), ("two", [*same, *different[1::2]])):
        distances = np.where([pair.same for pair in pairs], 0.9, 1.7)
        made.append(write_evaluation(tmp_path / name, distances, pairs=pairs, model=name))
    message = (
        r"^faces: 300 same and 0 different pairs; expected at least one of each kind; "
        r"300 were measured for some models only and are left out for all$"
    )
    with pytest.raises(UserError, match=message):
        compare(open_folders(made), num_resamples=10)


def render(folders: list[Path]) -> str:
    """The report of evaluations."""
    found = compare(open_folders(folders), num_resamples=10)
    return render_comparison(
        Comparison(
            created_at="",
            command="",
            version="",
            level=0.95,
            num_resamples=10,
            correction="",
            baseline=found.baseline,
            models=found.models,
            sets=found.sets,
            notes=found.notes,
        )
    )


def test_what_models_cost_is_explained_where_it_was_measured(tmp_path: Path) -> None:
    few = [pair for pair in PAIRS if pair.fold < 2]
    stored = {"kind": "embeddings", "step": None, "multiply_adds": None, "num_parameters": None, "crop_px": None}
    made = [
        write_evaluation(
            tmp_path / name,
            distances_of(0.3, few),
            pairs=few,
            model=f"{name}.npz",
            described=stored,
            embedding_ms=None,
            device="none",
        )
        for name in ("a", "b")
    ]
    page = render(made)
    assert "What the models cost" in page
    assert "Multiply-adds of a forward pass" not in page
    assert "Milliseconds" not in page
    timed = write_evaluation(tmp_path / "c", distances_of(0.3, few), pairs=few, model="c", device="an abacus")
    page = " ".join(render([*made, timed]).split())
    assert "Multiply-adds of a forward pass, half the number of FLOPs. Milliseconds are those" in page
    assert "without reading and detection, on an abacus.</p>" in page


@pytest.mark.parametrize(
    ("low", "high", "only_baseline", "only_model", "p", "verdict"),
    [
        (0.003, 0.015, 10, 30, 0.01, "better"),
        (-0.015, -0.003, 30, 10, 0.01, "worse"),
        (0.003, 0.015, 10, 30, 0.05, "unsettled"),
        (-0.001, 0.015, 10, 30, 0.01, "unsettled"),
        (-0.001, 0.015, 10, 30, 0.2, "no_difference"),
        (0.0, 0.0, 10, 10, 1.0, "no_difference"),
        # both rule chance out, and point different ways
        (0.003, 0.015, 30, 10, 0.01, "unsettled"),
        (-0.015, -0.003, 10, 30, 0.01, "unsettled"),
    ],
)
def test_a_verdict_takes_both_tests(
    low: float, high: float, only_baseline: int, only_model: int, p: float, verdict: str
) -> None:
    mcnemar = McNemar(only_baseline, only_model, p, "exact")
    assert judge(Difference((low + high) / 2, Interval(low, high)), mcnemar, p) == verdict


def test_a_difference_beyond_its_own_interval_is_not_settled() -> None:
    mcnemar = McNemar(10, 30, 0.01, "exact")
    assert judge(Difference(-0.001, Interval(0.003, 0.015)), mcnemar, 0.01) == "unsettled"


def test_verdicts_in_words() -> None:
    better = Difference(0.009, Interval(0.003, 0.015))
    assert put_in_words("B", "A", "LFW", "better", better) == (
        "B is better than A on LFW: 0.90 points, 95 % interval 0.30 to 1.50."
    )
    worse = Difference(-0.009, Interval(-0.015, -0.003))
    assert put_in_words("B", "A", "LFW", "worse", worse) == (
        "B is worse than A on LFW: 0.90 points, 95 % interval 0.30 to 1.50."
    )
    assert put_in_words("B", "A", "LFW", "no_difference", Difference(-0.00001, Interval(-0.003, 0.0004))) == (
        "B and A on LFW: no difference that could not be chance (0.00 points, 95 % interval −0.30 to 0.04)."
    )
    assert put_in_words("B", "A", "LFW", "unsettled", better) == (
        "B against A on LFW: not settled, the two tests do not agree (0.90 points, 95 % interval 0.30 to 1.50)."
    )
    assert "interval not defined" in put_in_words("B", "A", "LFW", "no_difference", Difference(0.0, None))


@pytest.mark.parametrize(("devices", "is_said"), [("ab", True), ("aa", False)])
def test_times_of_different_devices_do_not_compare(devices: str, is_said: bool, tmp_path: Path) -> None:
    few = [pair for pair in PAIRS if pair.fold < 2]
    made = [
        write_evaluation(tmp_path / f"{number}", distances_of(0.3, few), pairs=few, model=f"m{number}", device=device)
        for number, device in enumerate(devices)
    ]
    untimed = write_evaluation(
        tmp_path / "u", distances_of(0.3, few), pairs=few, model="u", device="c", embedding_ms=None
    )
    notes = compare(open_folders([*made, untimed]), num_resamples=10).notes
    assert notes == (["The models were timed on different devices: their times do not compare."] if is_said else [])


def test_mistakes(folders: list[Path], tmp_path: Path) -> None:
    alone = write_evaluation(tmp_path / "alone", distances_of(0.3), model="build/third", pairs_sha256="c" * 64)
    again = write_evaluation(tmp_path / "again", distances_of(0.3))
    names = ("empty", "broken", "older", "bare", "nan", "mixed", "templates")
    empty, broken, older, bare, nan, mixed, templates = (tmp_path / name for name in names)
    empty.mkdir()
    content = json.loads((folders[0] / "evaluation.json").read_text())
    for folder, text in (
        (broken, '{"schema_'),
        (older, json.dumps({**content, "schema_version": 2})),
        (bare, json.dumps({**content, "speed": {"embedding_ms": "fast"}})),
        (nan, json.dumps({**content, "embedding_s": float("nan")})),
        (mixed, json.dumps(content)),
        (templates, json.dumps({**content, "verification": {**content["verification"], "unit": "template"}})),
    ):
        folder.mkdir()
        (folder / "evaluation.json").write_text(text)
    # another model on the same pairs, stopped before its evaluation.json was written
    write_scores(mixed / "scores.parquet", PAIRS, distances_of(0.3), "a" * 64)
    without = tmp_path / "without"
    without.mkdir()
    (without / "evaluation.json").write_text(json.dumps(content))
    for given, message in (
        ([tmp_path / "nowhere"], r"nowhere: no evaluation.json in it \(No such file or directory\)"),
        ([empty], "empty: no evaluation.json in it"),
        ([broken], r"evaluation.json: not JSON \("),
        ([older], "evaluation.json: schema version 2; expected version 3; evaluate again"),
        ([bare], r"evaluation.json: speed.embedding_ms: Input should be a valid number"),
        ([nan], r"evaluation.json: embedding_s: Input should be a finite number"),
        ([without], r"scores.parquet: cannot be read \(no such file\)"),
        ([mixed], "mixed: scores.parquet and evaluation.json are of two evaluations"),
        ([templates], "templates: pairs of templates; expected pairs of photos: those of templates are not compared"),
        ([folders[0], folders[1], folders[0] / ".." / folders[0].name], "given twice, as"),
        ([folders[0], folders[1], again], "again: the same model on the same pairs as .*old"),
        ([folders[0], alone], r"the other models were tested on different pairs \(here sha256 aaaaaaaa\)"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            open_folders(given)
        assert "\n" not in str(caught.value)


def test_command_writes_a_report(
    launch: ModuleType, folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = write_evaluation(tmp_path / "odd", distances_of(0.4), model="build/<b>[red]odd")
    out = tmp_path / "out"
    words = [*map(str, folders), str(odd), "--baseline", str(folders[1]), "--output", str(out)]
    launch.app(words, standalone_mode=False)
    found = Comparison.model_validate_json((out / "comparison.json").read_text())
    assert (found.schema_version, found.baseline) == (1, "new")
    assert found.correction == "Holm's method over 2 tests"
    page = (out / "comparison.html").read_text()
    check_self_contained(page)
    assert "old is worse than new on faces: " in page
    assert "&lt;b&gt;[red]odd" in page
    assert "54.9 million" in page
    printed = capsys.readouterr().out
    assert "<b>[red]odd" in printed
    assert "old is worse than new on faces: " in printed
    assert printed.rstrip().endswith(str(out / "comparison.html"))
    with pytest.raises(UserError, match=r"--baseline: .*odd, which is not compared"):
        launch.app([str(folders[0]), "--baseline", str(odd), "--output", str(out)], standalone_mode=False)


def test_one_model_on_several_sets(launch: ModuleType, folders: list[Path], tmp_path: Path) -> None:
    others = make_pairs(1)
    further = write_evaluation(
        tmp_path / "second", distances_of(0.3, others), pairs=others, data="build/<second>", pairs_sha256="b" * 64
    )
    launch.app([str(folders[0]), str(further), "--output", str(tmp_path / "out")], standalone_mode=False)
    found = Comparison.model_validate_json((tmp_path / "out" / "comparison.json").read_text())
    assert [one.tests for one in found.sets] == [[], []]
    page = (tmp_path / "out" / "comparison.html").read_text()
    check_self_contained(page)
    assert "1 model on 2 test sets" in page
    assert "McNemar" not in page
    assert "&lt;second&gt;" in page


def test_every_model_has_its_own_line(tmp_path: Path) -> None:
    """Colours and dashes come round again, but not together."""
    few = [pair for pair in PAIRS if pair.fold < 2]
    made = [
        write_evaluation(tmp_path / f"m{number}", distances_of(0.3 + number / 50, few), pairs=few, model=f"m{number}")
        for number in range(12)
    ]
    page = render(made)
    styles = re.findall(r"^\.line\.m\d+ \{ (stroke: .*) \}$", page, re.MULTILINE)
    assert len(styles) == len(set(styles)) == 12


def test_figures_as_text() -> None:
    column = Column("accuracy", "accuracy, %", 100.0, 2)
    assert column.write(0.98765) == "98.77"
    assert column.write(0.001, signed=True) == "+0.10"
    assert column.write(-0.001, signed=True) == "−0.10"
    assert column.write(-0.000001, signed=True) == "0.00"
    assert column.write(None) == "–"
    assert column.write_bounds(None) == ""
    assert column.write_bounds(result.Bounds(low=-0.01, high=0.02), signed=True) == "−1.00 to +2.00"
