"""Centre loss: values by hand, the rule of the centres, corners, precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.config.errors import UserError
from pipeline.config.heads import CentreConfig
from pipeline.model.centre import CentreHead
from pipeline.model.head import HeadOutput, build_head


def head(num_classes: int = 3, dim: int = 2, **options: object) -> CentreHead:
    built = build_head(CentreConfig(**{"strength": 2.0, **options}), num_classes, dim, seed=0)
    assert isinstance(built, CentreHead)
    return built.double()


def call(centre: CentreHead, embeddings: Tensor, labels: list[int], valid: list[bool] | None = None) -> HeadOutput:
    ids = torch.arange(100, 100 + len(labels))
    return centre(embeddings, torch.tensor(labels), ids, torch.tensor(valid or [True] * len(labels)), 0)


def test_values_by_hand() -> None:
    centre = head(centre_rate=0.5)
    centre.centres[1] = torch.tensor([1.0, 0.0])
    embeddings = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 4.0]], dtype=torch.float64, requires_grad=True)
    output = call(centre, embeddings, [1, 1, 2])
    # squared distances 4, 4 and 16; λ/2 is 1
    assert output.loss.item() == pytest.approx(24 / 3)
    assert output.metrics["centre_distance"].item() == pytest.approx((2 + 2 + 4) / 3)
    output.loss.backward()
    assert embeddings.grad is not None
    expected = 2 / 3 * torch.tensor([[0.0, 2.0], [2.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(embeddings.grad, expected)
    # class 1: sum of c − x is (−2, −2), over 1 + 2, times a half; class 2: (0, −4) over 1 + 1; class 0 rests
    torch.testing.assert_close(centre.centres, torch.tensor([[0, 0], [1 + 1 / 3, 1 / 3], [0, 1]], dtype=torch.float64))


def test_centres_start_at_zero_and_rest_in_eval_mode() -> None:
    centre = head()
    assert torch.equal(centre.centres, torch.zeros(3, 2, dtype=torch.float64))
    centre.eval()
    output = call(centre, torch.ones(2, 2, dtype=torch.float64), [0, 1])
    assert output.loss.item() == pytest.approx(2.0)
    assert not centre.centres.any()


def test_centres_are_a_buffer_that_checkpoints_hold_by_rows() -> None:
    centre = head()
    assert list(centre.parameters()) == []
    assert centre.sharded_tensors() == {"centres": (centre.centres, 3)}
    assert centre.sharded_tensors()["centres"][0] is dict(centre.named_buffers())["centres"]
    assert "centres" in centre.state_dict()


def test_the_loss_is_a_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    once = call(head(), embeddings, [0, 1, 2, 2]).loss
    twice = call(head(), embeddings.repeat(2, 1), [0, 1, 2, 2] * 2).loss
    assert once.item() == pytest.approx(twice.item())


def test_a_centre_converges_to_its_samples_mean() -> None:
    centre = head(num_classes=1)
    samples = torch.tensor([[3.0, 1.0], [5.0, -1.0]], dtype=torch.float64)
    for _ in range(60):
        call(centre, samples, [0, 0])
    torch.testing.assert_close(centre.centres, torch.tensor([[4.0, 0.0]], dtype=torch.float64))


@pytest.mark.parametrize("normalise", [False, True])
def test_gradcheck(normalise: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    centre = head(dim=4, normalise=normalise).eval()  # in training mode every call would see other centres
    centre.centres.copy_(torch.randn(3, 4, generator=generator, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: call(centre, x, [0, 0, 1, 2, 2, 2]).loss, [embeddings])


def test_normalised_embeddings_have_no_gradient_along_themselves() -> None:
    centre = head(normalise=True)
    embeddings = torch.tensor([[3.0, 4.0], [0.0, 0.5]], dtype=torch.float64, requires_grad=True)
    centre.centres[0] = torch.tensor([1.0, 0.0])
    call(centre, embeddings, [0, 1]).loss.backward()
    assert embeddings.grad is not None
    assert embeddings.grad[0].norm() > 0.1
    assert (embeddings.grad * embeddings.detach()).sum(1).abs().max() < 1e-15
    assert centre.centres[1].tolist() == [0.0, 0.25], "the unit vector counts, not its length"


def test_masked_slots_hold_anything() -> None:
    bare, masked = head(), head()
    embeddings = torch.tensor([[1.0, 2.0], [3.0, 0.0]], dtype=torch.float64)
    filled = torch.cat([embeddings, torch.full((2, 2), torch.nan, dtype=torch.float64)]).requires_grad_()
    output = call(masked, filled, [1, 2, -7, 2], [True, True, False, False])
    expected = call(bare, embeddings.requires_grad_(), [1, 2])
    output.loss.backward()
    expected.loss.backward()
    assert output.loss.item() == expected.loss.item() > 0
    assert torch.equal(bare.centres, masked.centres)
    assert filled.grad is not None
    assert embeddings.grad is not None
    assert torch.equal(filled.grad[:2], embeddings.grad)
    assert torch.equal(filled.grad[2:], torch.zeros(2, 2, dtype=torch.float64))


def test_nothing_valid_is_a_zero_loss_with_a_graph() -> None:
    centre = head()
    embeddings = torch.full((2, 2), torch.nan, dtype=torch.float64, requires_grad=True)
    output = call(centre, embeddings, [0, 1], [False, False])
    output.loss.backward()
    assert output.loss.item() == output.metrics["centre_distance"].item() == 0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()
    assert not centre.centres.any()


def test_one_sample_of_one_class() -> None:
    centre = head(num_classes=1, dim=3)
    embeddings = torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64, requires_grad=True)
    output = call(centre, embeddings, [0])
    output.loss.backward()
    assert output.loss.item() == pytest.approx(9.0)
    assert centre.centres.tolist() == [[0.25, 0.5, 0.5]]


def test_a_label_out_of_range_names_the_sample_and_moves_nothing() -> None:
    centre = head()
    with pytest.raises(UserError, match="sample 101 has label 3; expected 0 to 2"):
        call(centre, torch.ones(2, 2), [0, 3])
    with pytest.raises(UserError, match="sample 100 has label -1, sample 101 has label -2"):
        call(centre, torch.ones(2, 2), [-1, -2])
    assert not centre.centres.any()


def test_float32_whatever_autocast_says() -> None:
    generator = torch.Generator().manual_seed(2)
    narrow = torch.randn(8, 16, generator=generator).bfloat16()
    results = []
    for embeddings, enabled in ((narrow, True), (narrow.float(), False)):
        centre = build_head(CentreConfig(), 4, 16, seed=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = centre(embeddings, torch.arange(8) % 4, torch.arange(8), torch.ones(8, dtype=torch.bool), 0)
        results.append((output.loss, centre.get_buffer("centres")))
    assert results[0][0].dtype == torch.float32
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
