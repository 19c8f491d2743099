"""Files of arcface_torch: the same embeddings, all ranks' centres in order, and one line for every wrong file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.config.errors import UserError
from pipeline.interop.arcface_torch import read_backbone, read_centres
from pipeline.interop.imported import evaluation_model, rows_of_labels
from tests.arcface_torch_reference import saved, scaled, trained_looking


def refusal(path: Path, reader: object = read_backbone) -> str:
    with pytest.raises(UserError) as caught:
        reader(path)  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("depth", [18, 50])
def test_an_imported_backbone_gives_the_same_embeddings(tmp_path: Path, depth: int) -> None:
    reference = trained_looking(depth, seed=depth)
    torch.save(saved(reference), tmp_path / "backbone.pth")
    imported = read_backbone(tmp_path / "backbone.pth")
    assert (imported.config.depth, imported.crop_px, imported.config.embedding_dim) == (depth, 112, 512)
    crops = torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    model = evaluation_model(imported)
    with torch.no_grad():
        expected, ours = reference(scaled(crops)), model(crops)
        exact, ours_exact = (network.double()(scaled(crops).double()) for network in (reference, model.backbone))
    assert (expected[0] - expected[1]).abs().max() > 0.1 * expected.std(), "the comparison would say nothing"
    assert (ours - expected).abs().max() < 3e-5 * expected.std()
    # what float32 rounds depends on the processor; that no weight is at another place does not
    assert (ours_exact - exact).abs().max() < 1e-12 * exact.std()


@pytest.fixture(scope="module")
def small() -> dict[str, torch.Tensor]:
    return saved(trained_looking(18, seed=0, embedding_dim=16))


@pytest.mark.parametrize("wrap", ["ddp", "checkpoint", "half"])
def test_other_ways_in_which_backbones_were_saved(tmp_path: Path, small: dict[str, torch.Tensor], wrap: str) -> None:
    content: dict[str, object] = dict(small)
    if wrap == "ddp":
        content = {f"module.{name}": value for name, value in small.items()}
    elif wrap == "checkpoint":
        centres = {"weight": torch.zeros(3, 16)}
        content = {"epoch": 2, "state_dict_backbone": small, "state_dict_softmax_fc": centres, "state_optimizer": {}}
    elif wrap == "half":
        content = {name: value.half() if value.is_floating_point() else value for name, value in small.items()}
    torch.save(content, tmp_path / "model.pt")
    imported = read_backbone(tmp_path / "model.pt")
    weight = imported.tensors["backbone.blocks.7.residual.4.weight"]
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, small["layer4.1.conv2.weight"], rtol=1e-3 if wrap == "half" else 0, atol=1e-4)


def test_wrong_backbone_files_are_one_line(tmp_path: Path, small: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "file.pt"

    def says(content: object) -> str:
        torch.save(content, path)
        return refusal(path)

    assert "another network (6-26-60-6 blocks" in says(
        {f"layer{layer}.{n}.bn1.weight": torch.ones(1) for layer, m in enumerate((6, 26, 60, 6), 1) for n in range(m)}
    )
    resnet = {"conv1.weight": torch.zeros(64, 3, 7, 7), "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}
    assert "another network" in says(resnet)
    lacking = {name: value for name, value in small.items() if name != "layer3.0.downsample.1.running_var"}
    assert "lacks 1 tensors of IResNet-18, the first 'layer3.0.downsample.1.running_var'" in says(lacking)
    assert "'layer2.0.se.weight', which is no part" in says(small | {"layer2.0.se.weight": torch.ones(1)})
    assert "'conv1.weight' has shape (64, 3, 5, 5)" in says(small | {"conv1.weight": torch.zeros(64, 3, 5, 5)})
    assert "takes 25000 inputs" in says(small | {"fc.weight": torch.zeros(16, 25000)})
    assert "a dict with 'epoch'; expected a state dict" in says({"epoch": 3})
    assert "a tensor (3,)" in says(torch.zeros(3))
    path.write_bytes(b"no model at all")
    assert "is no" in refusal(path)
    assert "cannot be read (No such file" in refusal(tmp_path / "nowhere.pth")


def test_a_pickle_that_could_run_code_is_refused_unopened(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")  # a whole module, as some repositories save it
    text = refusal(tmp_path / "model.pt")
    assert "loading it could run code" in text
    assert "torch.nn.modules.linear.Linear" in text
    assert "state_dict()" in text


def write_centres(directory: Path, centres: torch.Tensor, ranks: int, kind: str) -> None:
    """Cut and save centres as `ranks` ranks of arcface_torch do."""
    directory.mkdir()
    first = 0
    for rank in range(ranks):
        rows = len(centres) // ranks + (rank < len(centres) % ranks)
        part = centres[first : first + rows].clone()
        first += rows
        if kind == "checkpoint":
            content = {"epoch": 1, "state_dict_backbone": {}, "state_dict_softmax_fc": {"weight": part}}
            torch.save(content, directory / f"checkpoint_gpu_{rank}.pt")
        elif kind == "state dict":
            torch.save({"weight": torch.nn.Parameter(part)}, directory / f"softmax_fc_gpu_{rank}.pt")
        else:
            torch.save(part, directory / f"rank_{rank}_softmax_weight.pt")
            torch.save(part, directory / f"rank_{rank}_softmax_weight_mom.pt")


@pytest.mark.parametrize("kind", ["checkpoint", "state dict", "tensor"])
@pytest.mark.parametrize("ranks", [1, 3, 12])
def test_centres_of_all_ranks_are_joined_in_order(tmp_path: Path, kind: str, ranks: int) -> None:
    centres = torch.randn(13, 4)
    write_centres(tmp_path / "run", centres, ranks, kind)
    assert torch.equal(read_centres(tmp_path / "run"), centres)


def test_centres_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    centres = torch.randn(11, 4)
    write_centres(tmp_path / "gap", centres, 4, "state dict")
    (tmp_path / "gap" / "softmax_fc_gpu_1.pt").unlink()
    assert "lacks softmax_fc_gpu_1.pt; expected a file of each of at least 4 ranks" in refusal(
        tmp_path / "gap", read_centres
    )
    write_centres(tmp_path / "mixed", centres, 2, "state dict")
    torch.save(centres[:6], tmp_path / "mixed" / "rank_0_softmax_weight.pt")
    assert "rank_N_softmax_weight.pt and softmax_fc_gpu_N.pt" in refusal(tmp_path / "mixed", read_centres)
    write_centres(tmp_path / "uneven", centres, 2, "tensor")
    torch.save(centres[:4], tmp_path / "uneven" / "rank_0_softmax_weight.pt")
    assert "rank_0_softmax_weight.pt: holds 4 rows of 9; expected 5" in refusal(tmp_path / "uneven", read_centres)
    torch.save(torch.randn(6, 3), tmp_path / "uneven" / "rank_0_softmax_weight.pt")
    assert "4 dimensions; expected 3" in refusal(tmp_path / "uneven", read_centres)
    torch.save({"weigth": centres}, tmp_path / "uneven" / "rank_0_softmax_weight.pt")
    assert "expected class centres" in refusal(tmp_path / "uneven", read_centres)
    (tmp_path / "empty").mkdir()
    assert "holds no class centres" in refusal(tmp_path / "empty", read_centres)
    assert "no such directory" in refusal(tmp_path / "nowhere", read_centres)


def test_rows_follow_numbers_where_people_are_numbered() -> None:
    where = Path("centres")
    assert rows_of_labels(["Ann", "Bob", "Cem"], 3, where).tolist() == [0, 1, 2]
    # sorted as text, as labels are; person 1 is not in the data set any more
    assert rows_of_labels(["0", "10", "2", "3"], 11, where).tolist() == [0, 10, 2, 3]
    assert rows_of_labels(["0000", "0001"], 2, where).tolist() == [0, 1]
    with pytest.raises(UserError, match="11 class centres, while people bear 3 numbers up to 11"):
        rows_of_labels(["0", "11", "2"], 11, where)
    with pytest.raises(UserError, match="expected 3, one a person"):
        rows_of_labels(["Ann", "Bob", "7"], 4, where)
