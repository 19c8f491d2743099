"""The prediction of step time and memory: hand-computed, of the right shape, and as published for Partial FC."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.config.errors import UserError
from pipeline.config.heads import MarginSoftmaxConfig
from pipeline.engine.predict import MACHINES, Machine, Shares, Workload, fit_shares, least_bytes, predict, sent_bytes
from pipeline.model.head import build_head

UNIT = Machine(1e3, 1e2, 1e1, 1e4, 1e4)
R50 = Workload(
    num_classes=1,
    num_ranks=8,
    local_batch=128,
    multiply_adds=6_309_330_944,
    num_parameters=43_590_848,
    activation_bytes=35_400_192,
)
PUBLISHED = {125_000: 5004, 1_000_000: 4803, 5_500_000: 3975, 8_000_000: 3565, 29_000_000: 1855}
PUBLISHED_RATE_1 = {125_000: 4824, 1_400_000: 3043, 5_500_000: 1389}


def test_two_ranks_by_hand() -> None:
    work = Workload(7, 2, 3, multiply_adds=50, num_parameters=10, activation_bytes=9, num_statistics=5, embedding_dim=2)
    found = predict(work, UNIT, Shares(0.5, 0.25, hop_s=0.0))
    # 6 FLOPs a multiply-add, 3 photos; 4 centres on the larger rank meet 6 embeddings, 3 times, the logits being kept
    assert found.seconds["backbone"] == pytest.approx(6 * 50 * 3 / 500)
    assert found.seconds["head"] == pytest.approx(3 * 2 * 6 * 4 * 2 / 25)
    assert found.seconds["passes through memory"] == pytest.approx((8 * 4 * 10 + 12 * 4 * 4 * 2) / 10)
    assert sent_bytes(work) == pytest.approx(
        {
            "backbone's gradient": 40,
            "running statistics": 20,
            "embeddings": 24,
            "embeddings' gradients": 24,
            "labels": 3 * 24,
            "target logits": 24,
            "sums over classes": 48,
        }
    )
    # the gradient's 40 bytes hide behind two thirds of the backbone's time
    assert found.seconds["communication"] == pytest.approx((20 + 24 + 24 + 72 + 24 + 48) / 1e4)
    assert least_bytes(work) == pytest.approx(40 + 20 + 24 + 24 + 24 + 2 * 24)
    assert found.samples_per_s == pytest.approx(6 / found.step_s)
    assert found.memory == {
        "class centres and momentum": 2 * 32,
        "their gradient": 32,
        "backbone, gradient and momentum": 120,
        "activations": 27,
        "embeddings of all ranks": 3 * 48,
        "sums over classes": 2 * 4 * 6 * 2,
        "logits": 3 * 4 * 6 * 4,
    }


def test_sums_over_classes_do_not_grow_with_ranks() -> None:
    few, many = (Workload(10**6, ranks, 1024 // ranks) for ranks in (8, 512))
    shares = [sent_bytes(work)["sums over classes"] / (1 - 1 / work.num_ranks) for work in (few, many)]
    assert shares[0] == pytest.approx(shares[1])


def test_gradients_that_take_longer_than_the_backward_pass_show() -> None:
    work = Workload(1, 2, 3, multiply_adds=5, num_parameters=10_000)
    shown = predict(work, UNIT, Shares(1.0, 1.0, hop_s=0.0)).seconds["communication"]
    rest = sum(sent_bytes(work).values()) / 1e4
    assert shown == pytest.approx(rest - (6 * 5 * 3 / 1e3) * 2 / 3)


def test_a_node_shares_its_adapters() -> None:
    machine = replace(UNIT, gpus_per_node=2, network_bytes_per_s=1e3)
    inside, outside = (Workload(8, ranks, 3, num_statistics=10**6) for ranks in (2, 4))
    times = [predict(work, machine, Shares(hop_s=0.0)).seconds["communication"] for work in (inside, outside)]
    assert times[0] == pytest.approx(sum(sent_bytes(inside).values()) / 1e4)
    assert times[1] == pytest.approx(sum(sent_bytes(outside).values()) / 2e3)
    assert predict(replace(inside, num_ranks=1), machine, Shares()).seconds["communication"] == 0


def test_logits_that_are_not_kept_are_formed_twice() -> None:
    work = Workload(1000, 1, 10)
    assert [replace(work, keep_bytes=kept).num_products for kept in (0, 10_000, 40_000, 10**6)] == [4, 3.75, 3, 3]


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_more_classes_take_longer_and_more_memory(rate: float) -> None:
    found = [
        predict(replace(R50, num_classes=classes, sample_rate=rate), MACHINES["A100"], Shares())
        for classes in (10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)
    ]
    times, memory = [one.step_s for one in found], [one.memory_bytes for one in found]
    assert times == sorted(set(times))
    assert memory == sorted(set(memory))


def test_linear_in_classes_at_fixed_ranks() -> None:
    def step_s(num_classes: int) -> float:
        # nothing is kept, or the share that is would bend the line
        return predict(replace(R50, num_classes=num_classes, keep_bytes=0), MACHINES["H100"], Shares()).step_s

    first = step_s(2_000_000) - step_s(1_000_000)
    assert step_s(64_000_000) - step_s(32_000_000) == pytest.approx(32 * first)


def test_the_published_table_within_the_error_that_the_docs_state() -> None:
    def work(num_classes: int, rate: float) -> Workload:
        return replace(R50, num_classes=num_classes, sample_rate=rate, keep_bytes=2**62)

    machine = MACHINES["V100"]
    shares = fit_shares([(work(classes, 0.1), 1024 / speed) for classes, speed in PUBLISHED.items()], machine)
    assert (shares.backbone, shares.head) == pytest.approx((Shares.backbone, Shares.head), rel=0.01)
    for classes, speed in PUBLISHED.items():
        assert predict(work(classes, 0.1), machine, shares).samples_per_s == pytest.approx(speed, rel=0.026)
    # of these nothing was fitted
    for classes, speed in PUBLISHED_RATE_1.items():
        assert predict(work(classes, 1.0), machine, shares).samples_per_s == pytest.approx(speed, rel=0.13)


def test_fitting_finds_the_shares_that_made_the_times() -> None:
    made = Shares(0.4, 0.7)
    works = [replace(R50, num_classes=classes) for classes in (10**5, 10**6, 10**7)]
    found = fit_shares([(work, predict(work, MACHINES["A100"], made).step_s) for work in works], MACHINES["A100"])
    assert (found.backbone, found.head) == pytest.approx((0.4, 0.7))
    with pytest.raises(UserError, match="few and with many classes"):
        fit_shares([(works[0], 1.0), (works[0], 1.0)], MACHINES["A100"])


@pytest.mark.parametrize("changes", [{"num_ranks": 0}, {"sample_rate": 0.0}, {"sample_rate": 1.1}, {"num_classes": 0}])
def test_a_workload_that_is_none_is_refused(changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match="a sample rate in"):
        replace(R50, **changes)


def test_centres_are_those_that_a_head_has() -> None:
    head = build_head(MarginSoftmaxConfig(), 50, 16, 0)
    found = predict(Workload(50, 1, 4, embedding_dim=16), UNIT, Shares()).memory["class centres and momentum"]
    assert found == 2 * sum(p.nbytes for p in head.parameters())
