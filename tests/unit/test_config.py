"""The configuration tree: overrides, and one-line errors for what a user mistypes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline.config.errors import UserError
from pipeline.config.heads import CentreConfig, HeadPart, MarginSoftmaxConfig, single_heads, with_teacher
from pipeline.config.load import config_fields, load_config, validate_config
from pipeline.config.margins import ArcFaceMargin, CosFaceMargin
from pipeline.config.metric_heads import TripletConfig
from pipeline.config.optim import AdamWConfig

REPOSITORY = Path(__file__).parents[2]
MINIMAL = {"output": "run", "data": {"path": "data"}, "training": {"epochs": 1, "global_batch": 8, "local_batch": 4}}


def write(tmp_path: Path, tree: object) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return path


@pytest.mark.parametrize("recipe", sorted((REPOSITORY / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(recipe: Path) -> None:
    load_config(recipe)


def examples(page: str) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", (REPOSITORY / "docs" / page).read_text(), flags=re.DOTALL)


def test_the_examples_of_the_heads_page_load(tmp_path: Path) -> None:
    found = [load_config(write(tmp_path, MINIMAL | yaml.safe_load(example))).head for example in examples("heads.md")]
    kinds = {head.kind for config in found for head in single_heads(config).values()}
    assert {"centre", "distillation", "harmonic", "triplet", "margin_softmax"} <= kinds
    assert any(config.kind == "sum" for config in found)


def test_overrides_reach_nested_keys_and_switch_unions(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, MINIMAL),
        [
            "training.epochs=3",
            "head.margin.kind=cosface",
            "head.margin.margin=0.4",
            "optim.backbone.kind=adamw",
            "optim.backbone.lr=3e-4",
        ],
    )
    assert config.training.epochs == 3
    assert config.head.margin == CosFaceMargin(margin=0.4)
    assert config.optim.backbone == AdamWConfig(lr=3e-4)


def test_override_of_kind_drops_the_other_members_fields(tmp_path: Path) -> None:
    tree = MINIMAL | {"optim": {"backbone": {"kind": "sgd", "momentum": 0.5}}}
    config = load_config(write(tmp_path, tree), ["optim.backbone.kind=adamw"])
    assert config.optim.backbone == AdamWConfig()


def test_override_of_kind_drops_the_fields_of_a_member_that_goes_unnamed(tmp_path: Path) -> None:
    tree = MINIMAL | {"head": {"margin": {"kind": "cosface"}, "block_bytes": 4096}}
    config = load_config(write(tmp_path, tree), ["head.kind=triplet"])
    assert config.head == TripletConfig()


@pytest.mark.parametrize("is_kind_first", [True, False])
def test_overrides_mean_the_same_in_any_order(tmp_path: Path, is_kind_first: bool) -> None:
    overrides = ["head.margin.kind=cosface", "head.margin.scale=30"]
    config = load_config(write(tmp_path, MINIMAL), overrides if is_kind_first else overrides[::-1])
    assert config.head.margin == CosFaceMargin(scale=30)


@pytest.mark.parametrize(
    ("override", "where", "said"),
    [
        ("training.epoch=3", "training.epoch", "did you mean 'epochs'?"),
        ("head.margin.scael=3", "head.margin.scael", "did you mean 'scale'?"),
        ("optim.head.momentun=0.1", "optim.head.momentun", "did you mean 'momentum'?"),
        ("traning.epochs=3", "traning", "did you mean 'training'?"),
        ("training.epochs=-1", "training.epochs", "-1: input should be greater than 0"),
        ("training.epochs=many", "training.epochs", "'many': input should be a valid number"),
        ("training.global_batch=10", "training", "not a multiple of local_batch 4"),
        ("backbone.kind=resnet", "backbone.kind", "'resnet'"),
        ("training.epochs=.inf", "training.epochs", "inf: input should be a finite number"),
        ("training.local_batch=1", "training.local_batch", "greater than or equal to 2"),
        ("seed=100000000000000000000", "seed", "less than 9223372036854775808"),
        ("training.epochs", "training.epochs", "key.path=value"),
        ("output.deeper=1", "output.deeper", "'output' is a value"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, override: str, where: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, MINIMAL), [override])
    assert caught.value.where == where
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


SUM = {
    "kind": "sum",
    "parts": {
        "softmax": {"head": {"kind": "margin_softmax", "margin": {"kind": "softmax"}}},
        "centre": {"weight": 0.5, "head": {"kind": "centre"}},
    },
}


def test_overrides_reach_into_named_sections(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, MINIMAL | {"head": SUM}),
        [
            "head.parts.centre.weight=[[0, 0], [2.5, 1]]",
            "head.parts.softmax.weight=1e-1",
            "head.parts.softmax.head.margin.scale=30",
            "head.parts.softmax.head.margin.kind=cosface",
            "head.parts.third.head.strength=2",
            "head.parts.third.head.kind=centre",
        ],
    )
    assert config.head.parts == {
        "softmax": HeadPart(weight=0.1, head=MarginSoftmaxConfig(margin=CosFaceMargin(scale=30))),
        "centre": HeadPart(weight=[(0, 0), (2.5, 1)], head=CentreConfig()),
        "third": HeadPart(head=CentreConfig(strength=2)),
    }
    # what a run writes down and a checkpoint keeps is read back the same
    assert validate_config(config.model_dump(mode="json")) == config


def test_default_kinds_are_filled_in_named_sections(tmp_path: Path) -> None:
    tree = {"kind": "sum", "parts": {"a": {"head": {"kind": "margin_softmax", "margin": {"margin": 0.3}}}}}
    head = load_config(write(tmp_path, MINIMAL | {"head": tree})).head
    assert head.parts["a"].head.margin == ArcFaceMargin(margin=0.3)


@pytest.mark.parametrize(
    ("override", "where", "said"),
    [
        ("head.parts.centre.wieght=1", "head.parts.centre.wieght", "did you mean 'weight'?"),
        ("head.parts.centre.head.stength=1", "head.parts.centre.head.stength", "did you mean 'strength'?"),
        ("head.parts.softmax.head.margin.x=1", "head.parts.softmax.head.margin.x", "unknown key"),
        ("head.parts.centr.weight=1", "head.parts.centr.head", "missing; expected a value; did you mean 'centre'?"),
        ("head.parts.other.weight=1", "head.parts.other.head", "missing; expected a value; set it in"),
        ("head.parts.centre.head.kind=center", "head.parts.centre.head.kind", "did you mean 'centre'?"),
        ("head.parts.other.head.strength=1", "head.parts.other.head.kind", "missing; expected one of margin_softmax,"),
        ("head.parts.centre.head.kind=sum", "head.parts.centre.head.kind", "'sum'; expected one of margin_softmax,"),
        ("head.parts.centre.weight=-1", "head.parts.centre.weight", "greater than or equal to 0"),
        ("head.parts.centre.weight=[]", "head.parts.centre.weight", "at least 1 item"),
        ("head.parts.centre.weight=[[0,1],[2,-1]]", "head.parts.centre.weight.1.1", "greater than or equal to 0"),
        ("head.parts.centre.weight=[[2,1],[0,1]]", "head.parts.centre", "must ascend"),
        ("head.parts.centre.weight=[[1,1],[1,2],[1,3]]", "head.parts.centre", "at most two at one"),
        ("head.parts.centre=3", "head.parts.centre", "3: input should be a valid dictionary"),
        ("head.parts.Centre={}", "head.parts.Centre", "string should match pattern"),
        ("head.parts={}", "head.parts", "at least 1 item"),
        ("head.parts.centre.head={kind: harmonic}", "head.parts.centre.head.teacher", "missing"),
    ],
)
def test_mistakes_in_named_sections_are_one_line(tmp_path: Path, override: str, where: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, MINIMAL | {"head": SUM}), [override])
    assert caught.value.where == where
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "where", "said"),
    [
        ("data.augment=[{kind: flip, probabilty: 1}]", "data.augment.0.probabilty", "did you mean 'probability'?"),
        ("data.augment=[{kind: flip}, {kind: blurr}]", "data.augment.1.kind", "did you mean 'blur'?"),
        ("data.augment=[{kind: jpeg, quality: [0, 5]}]", "data.augment.0.quality.0", "greater than or equal to 1"),
        (
            "data.augment=[{kind: one_of, operations: [{kind: grey}, {kind: erase, fill: 999}]}]",
            "data.augment.0.operations.1.fill",
            "less than or equal to 255",
        ),
        ("data.augment=[{kind: blur, sigma_px: [2, 1]}]", "data.augment.0", "sigma_px: 2.0 to 1.0 is no range"),
        (
            "data.augment=[{kind: one_of, operations: [{kind: grey}, {kind: flip}], weights: [1, 2, 3]}]",
            "data.augment.0",
            "weights: 3 for 2 operations",
        ),
        (
            "data.augment=[{kind: one_of, operations: [{kind: grey}, {kind: flip}], weights: [1, 0]}]",
            "data.augment.0.weights.1",
            "greater than 0",
        ),
        ("data.augment=flip", "data.augment", "valid tuple"),
    ],
)
def test_mistakes_in_lists_of_sections_are_one_line(tmp_path: Path, override: str, where: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, MINIMAL), [override])
    assert caught.value.where == where
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("softmax", "centre", "epoch"),
    [
        ("[[0, 1], [5, 0]]", "[[5, 0], [6, 1]]", "5"),
        ("[[0, 1], [5, 1], [5, 0]]", "[[5, 0], [6, 1]]", "5"),
        ("[[0, 1], [5, 0]]", "[[0, 1], [3, 0]]", "5"),
        ("[[2, 0], [3, 1]]", "[[2, 0], [3, 1]]", "0"),
        ("[[0, 1], [2, 1], [2, 0], [4, 0], [4, 1]]", "0", "2"),
        ("0", "0", "0"),
    ],
)
def test_some_part_has_a_weight_at_all_times(tmp_path: Path, softmax: str, centre: str, epoch: str) -> None:
    overrides = [f"head.parts.softmax.weight={softmax}", f"head.parts.centre.weight={centre}"]
    with pytest.raises(UserError, match=f"head: no part has a weight at epoch {epoch}$"):
        load_config(write(tmp_path, MINIMAL | {"head": SUM}), overrides)


def test_a_jump_from_one_part_to_another_is_no_gap(tmp_path: Path) -> None:
    overrides = [
        "head.parts.softmax.weight=[[0, 1], [5, 1], [5, 0]]",
        "head.parts.centre.weight=[[5, 0], [5, 1]]",
    ]
    load_config(write(tmp_path, MINIMAL | {"head": SUM}), overrides)


def test_one_sum_has_one_teacher(tmp_path: Path) -> None:
    parts = {
        "a": {"head": {"kind": "distillation", "teacher": {"checkpoint": "one"}}},
        "b": {"head": {"kind": "harmonic", "teacher": {"checkpoint": "one"}}},
    }
    recipe = write(tmp_path, MINIMAL | {"head": {"kind": "sum", "parts": parts}})
    config = load_config(recipe)
    moved = with_teacher(config.head, Path("two"))
    assert [str(head.teacher.checkpoint) for head in single_heads(moved).values()] == ["two", "two"]
    with pytest.raises(UserError, match=r"head: parts name several teachers \(one, three\)"):
        load_config(recipe, ["head.parts.b.head.teacher.checkpoint=three"])


def test_named_sections_are_described() -> None:
    described = {key: (default, description) for key, default, description in config_fields()}
    assert described["head[sum].parts"][0] == "required"
    assert described["head[sum].parts.NAME.weight"][0] == "1.0"
    assert described["head[sum].parts.NAME.head[centre].strength"][0] == "0.003"


def test_missing_key_is_named() -> None:
    with pytest.raises(UserError, match=r"training\.epochs: missing"):
        validate_config(MINIMAL | {"training": {"global_batch": 8, "local_batch": 4}})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: &x [1, 2]\nb: *x\n", "alias"),
        ("a: [1", "not valid YAML"),
        ("- 1\n", "holds a list"),
        ("a: !!python/object/apply:os.system [id]\n", "not valid YAML"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", "a YAML alias"),
        ("a: &a\n  <<: *a\n", "a YAML alias"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("a: " + "{b: " * 3000 + "}" * 3000, "nested too deeply"),
        ("a: " + "x" * (1 << 20), "larger than 1048576 bytes"),
    ],
)
def test_hostile_yaml_is_refused(tmp_path: Path, content: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config(write(tmp_path, content))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=[&a [1], *a, *a]", "seed: a YAML alias"),
        ("seed=" + "[" * 3000 + "]" * 3000, "seed: YAML nested too deeply"),
        ("seed=!!python/object/apply:os.system [id]", "seed: value .* is not valid YAML"),
    ],
)
def test_hostile_overrides_are_refused(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config(write(tmp_path, MINIMAL), [override])


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml: cannot be read"):
        load_config(tmp_path / "nothing.yaml")


def test_the_tree_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        validate_config(MINIMAL).seed = 3  # type: ignore[misc]


def test_every_field_has_a_description() -> None:
    missing = [key for key, _, description in config_fields() if not description and not key.endswith("kind")]
    assert missing == []


def test_checking_a_configuration_needs_no_torch() -> None:
    code = "import sys, pipeline.config.load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_user_errors_survive_pickling() -> None:
    import pickle

    error = UserError("where", "found", "expected", "remedy")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
