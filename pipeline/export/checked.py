"""The check that exported files go through: photos and pairs opened once, the trained model measured once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint import LoadedBackbone
from pipeline.config.errors import UserError
from pipeline.config.load import validate_config
from pipeline.config.location import Location
from pipeline.data.dataset_format import DESCRIPTION
from pipeline.data.manifest import open_dataset
from pipeline.evaluate.console import embedding_progress
from pipeline.evaluate.embed import Embedder
from pipeline.evaluate.pairs import PairList
from pipeline.evaluate.photos import PhotoSource
from pipeline.evaluate.recogniser import Recogniser
from pipeline.export.card import TestData
from pipeline.export.parity import BOUNDS, Measured, Parity, compare, measure, require_parity, thin_drawn
from pipeline.inputs.test_sets import DEFAULT_SPLIT, Request, open_test_set


@dataclass(frozen=True)
class Check:
    """Photos, pairs, and what the trained model makes of them."""

    source: PhotoSource
    pairs: PairList
    trained: Measured
    test: TestData

    def require(self, exported: Embedder, precision: str, remedy: str) -> Parity:
        """Measure an exported file.

        Args:
            exported: the file, running.
            precision: a key of `BOUNDS`.
            remedy: what to do where it is refused.

        Raises:
            UserError: it differs from the trained model by more than the bounds of its precision.
        """
        with embedding_progress(len(self.pairs.photos())) as advance:
            measured = measure(exported, self.source, self.pairs, advance)
        parity = compare(exported, self.source, self.trained, measured, BOUNDS[precision])
        require_parity(parity, exported.where, remedy)
        return parity


def open_check(
    loaded: LoadedBackbone, recogniser: Recogniser, data: Path | None, pairs: Path | None, split: str | None
) -> Check:
    """Open photos and pairs as `launch/evaluate.py` does, fewer where they are drawn, and measure the trained model.

    Args:
        loaded: the trained model, on the CPU.
        recogniser: the same, as evaluation sees it.
        data: what `--data` names; None: what the run was trained on.
        pairs: a pair list; None: pairs are drawn.
        split: where pairs are drawn from; None: `val`.

    Raises:
        UserError: no photos, or no pairs.
    """
    if data is None:
        location = training_data(loaded, "--data")
        if pairs is None and split is None and DEFAULT_SPLIT not in open_dataset(location).info.splits:
            found = f"missing, and the run's training data {location} hold out no split {DEFAULT_SPLIT!r}"
            raise UserError("--data", found, "photos to check the file on", "--data DATA, or --split NAME")
        data = Path(str(location))
    tests = open_test_set(data, recogniser, Request(pairs=pairs, split=split))
    chosen = thin_drawn(tests.pairs) if tests.pairs_file is None else tests.pairs
    with embedding_progress(len(chosen.photos())) as advance:
        trained = measure(recogniser.embedder, tests.source, chosen, advance)
    how = f"drawn from split {tests.split}" if tests.pairs_file is None else f"of `{tests.pairs_file}`"
    num_dropped = len(chosen.pairs) - trained.num_pairs
    dropped = (
        [f"{num_dropped:,} of {len(chosen.pairs):,} pairs were dropped: photos are missing."] if num_dropped else []
    )
    digest = None if tests.dataset is None else tests.dataset.info.digest
    return Check(tests.source, chosen, trained, TestData(str(data), digest, how, tests.notes + dropped))


def training_data(loaded: LoadedBackbone, option: str) -> Location:
    """The data set that a run was trained on; of a mix its first.

    Args:
        loaded: the run's model.
        option: what to say in its place.

    Raises:
        UserError: it is not there any more.
    """
    section = validate_config(loaded.config, "the run's configuration").data
    location = section.path if section.mix is None else next(iter(section.mix.sets.values())).path
    assert location is not None
    if isinstance(location, Path) and not (location / DESCRIPTION).is_file():
        found = f"missing, and the run's training data {location} are not there any more"
        raise UserError(option, found, "a data set with crops of the model's size", f"{option} DATA")
    return location
