"""A mining round: embed part of the split with the network as it stands, and list its hardest examples.

FaceNet (Schroff et al. 2015, arXiv:1503.03832, section 3.2) names the two ways: offline, every n steps over a subset
with the most recent network, and online, within a batch. Here the first fills part of the batches in which a metric
head then does the second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import dist
from pipeline.config.errors import DataError, UserError
from pipeline.config.mining import MiningConfig
from pipeline.config.schema import Config
from pipeline.data.loader import Loader
from pipeline.data.manifest import SplitIndex
from pipeline.data.mined_list import MinedList, make_list
from pipeline.data.mined_order import ListedOrder
from pipeline.data.mining_subset import draw_subset
from pipeline.data.reader import allowed_bad_samples
from pipeline.engine.backend import Backend
from pipeline.model.metric.distances import distance
from pipeline.model.metric.hardest import HardestExamples, hardest_examples
from pipeline.progress import PROGRESS, Stage


class Miner:
    """Makes mined lists. A list follows from weights, seed and number of the round alone, not from the ranks.

    Args:
        config: of the run; it has a `mining` section.
        split: the samples.
        crop_px: side of their crops.
        backend: owner of the network.
        device: where it is.
    """

    def __init__(
        self, config: Config, split: SplitIndex, *, crop_px: int, backend: Backend, device: torch.device
    ) -> None:
        assert config.mining is not None
        self._config, self._mining = config, config.mining
        self._split, self._crop_px = split, crop_px
        self._backend, self._device = backend, device

    def mine(self, number: int, *, say: Callable[[str], None], is_stop_asked: Callable[[], bool]) -> MinedList | None:
        """Do one round. Collective on all ranks; the same list on all, None if any of them was asked to stop.

        The network is left as it was: no gradient, no running statistics, no random numbers.

        Args:
            number: of the round, from 1.
            say: called with a line about the round.
            is_stop_asked: whether this rank was asked to stop; asked again and again.

        Raises:
            UserError: too many photos could not be read, embeddings are not finite, or nobody has two photos.
        """
        with PROGRESS.during(Stage.MINING):
            return self._mine(number, say, is_stop_asked)

    def _mine(self, number: int, say: Callable[[str], None], is_stop_asked: Callable[[], bool]) -> MinedList | None:
        began = time.monotonic()
        config = self._mining
        rows = draw_subset(
            self._split.label,
            seed=self._config.seed,
            number=number,
            size=config.subset,
            photos_per_person=config.photos_per_person,
        )
        embedded = self._embed(rows, is_stop_asked)
        if embedded is None:
            return None
        unit, valid = embedded
        # withdrawn photos are no faults, and no photos of a list either
        num_bad = len(rows) - int(valid.sum()) - int(np.isin(rows, self._split.withdrawn).sum())
        self._check(unit, valid, num_bad)
        rows = rows[valid.cpu().numpy()]
        labels = torch.from_numpy(self._split.label[rows].astype(np.int64)).to(self._device)
        found = hardest_examples(unit[valid], labels, config.negatives)
        if not len(found.members):
            raise UserError(
                "mining.subset",
                f"no anchor with a positive and {config.negatives} negatives among {len(rows)} photos",
                "more of them",
                "set a larger mining.subset or fewer mining.negatives",
            )
        mined = _list_of(found, rows, number, num_bad, config, self._config.training.global_batch)
        say(_describe(mined, len(rows), num_bad, time.monotonic() - began))
        return mined

    def _embed(self, rows: npt.NDArray[np.int64], is_stop_asked: Callable[[], bool]) -> tuple[Tensor, Tensor] | None:
        """Unit embeddings [S, D] float32 of all rows, 0 where a photo could not be read, and which were [S] bool."""
        config = self._config
        # every rank embeds one micro-batch at a time; where they go past the end, the first rows stand in
        local_batch, world_size = config.training.local_batch, dist.world_size()
        num_padded = -(-len(rows) // (local_batch * world_size)) * local_batch * world_size
        loader = Loader(
            self._split,
            seed=config.seed,
            global_batch=local_batch * world_size,
            local_batch=local_batch,
            rank=dist.rank(),
            world_size=world_size,
            start=0,
            stop=num_padded,
            decoder=config.data.decoder,
            augment=(),
            device=self._device,
            crop_px=self._crop_px,
            order=ListedOrder(np.resize(rows, num_padded)),
            prefetch_steps=config.data.prefetch_steps,
            num_threads=config.data.num_threads,
        )
        unit = torch.empty(num_padded, config.backbone.embedding_dim, device=self._device)
        valid = torch.empty(num_padded, dtype=torch.bool, device=self._device)
        with loader, _evaluating(self._backend.model), torch.no_grad():
            for batch in loader:
                (micro,) = batch.micro_batches
                # a masked slot's pixels are 0; nothing crosses slots in eval mode
                embeddings = F.normalize(self._backend.forward(micro.images).float()) * micro.valid[:, None]
                part = slice(batch.step_position, batch.step_position + local_batch * world_size)
                unit[part] = dist.all_gather_rows(embeddings)
                flags = torch.stack([micro.valid, torch.full_like(micro.valid, is_stop_asked())], 1)
                flags = dist.all_gather_rows(flags.to(torch.uint8)).bool()
                valid[part] = flags[:, 0]
                if flags[:, 1].any():
                    return None
        return unit[: len(rows)], valid[: len(rows)]

    def _check(self, unit: Tensor, valid: Tensor, num_bad: int) -> None:
        if num_bad > allowed_bad_samples(len(valid), self._config.data.max_bad_share):
            raise DataError(
                self._split.name,
                f"{num_bad} of {len(valid)} samples of a mining round could not be read",
                f"at most {self._config.data.max_bad_share:.2%} (data.max_bad_share)",
                "preprocess verify DATA",
            )
        if not unit[valid].isfinite().all():
            raise UserError("mining", "embeddings that are not finite", "finite ones", "lower optim.backbone.lr")


def _list_of(
    found: HardestExamples,
    rows: npt.NDArray[np.int64],
    number: int,
    num_bad: int,
    config: MiningConfig,
    global_batch: int,
) -> MinedList:
    """The anchors that violate the margin; where they would not fill a batch, the hardest of all."""
    members = rows[found.members.cpu().numpy()]
    positive, negative = found.positive_cosine.cpu(), found.negative_cosine.cpu()
    # d² = 2 − 2c
    excess = (2 * (negative.double() - positive.double()) + config.margin).numpy()
    num_violating = int((excess > 0).sum())
    num_wanted = max(num_violating, config.mined_slots(global_batch) // config.group_size)
    kept = np.sort(np.argsort(-excess, kind="stable")[:num_wanted])
    positive_distance, negative_distance = distance(positive).numpy(), distance(negative).numpy()
    metrics = {
        "mined_round": float(number),
        "mined_positive_distance": float(positive_distance.mean(dtype=np.float64)),
        "mined_negative_distance": float(negative_distance.mean(dtype=np.float64)),
        "mined_violating_share": num_violating / len(excess),
        "mined_bad_samples": float(num_bad),
    }
    return make_list(number, members[kept], positive_distance[kept], negative_distance[kept], metrics)


def _describe(mined: MinedList, num_photos: int, num_bad: int, elapsed_s: float) -> str:
    metrics = mined.metrics
    return (
        f"mined round {mined.number}: {num_photos:,} photos, {len(mined.rows):,} anchors listed, "
        f"{metrics['mined_violating_share']:.1%} within the margin, hardest positive at "
        f"{metrics['mined_positive_distance']:.3f}, nearest negative at {metrics['mined_negative_distance']:.3f}, "
        f"{num_bad} unreadable, {elapsed_s:.1f} s"
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into eval mode, and each of its modules back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
