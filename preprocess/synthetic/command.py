"""What `preprocess synth` shows while `write_photos` works: a bar on a terminal, one line a stage elsewhere."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from preprocess.synthetic.write import ANNOTATIONS, write_photos


def run_synth(
    out: Path, num_identities: int, photos_per_identity: int, seed: int, size_px: int, quality: int, workers: int
) -> None:
    """Render to `out` and report; arguments as in `write_photos`."""
    console = Console(stderr=True)
    total = num_identities * photos_per_identity
    if not console.is_terminal:
        staff = "1 worker" if workers == 1 else f"{workers} workers"
        console.print(f"rendering {total:,} photos of {num_identities:,} identities with {staff}", soft_wrap=True)
    columns = (
        TextColumn("rendering"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, rate="")

        def advance(done: int, rendered: int) -> None:
            elapsed_s = bar.tasks[0].elapsed or 0.0
            bar.update(task, completed=done, rate=f"{rendered / elapsed_s:.0f} photos/s" if elapsed_s else "")

        summary = write_photos(
            out, num_identities, photos_per_identity, seed, size_px, quality, workers, progress=advance
        )
    rate = f", {summary.num_rendered / summary.elapsed_s:.0f} photos/s" if summary.num_rendered else ""
    console.print(
        f"{summary.num_photos:,} photos of {summary.num_identities:,} identities, {summary.num_bytes / 1e6:.1f} MB, "
        f"{summary.num_rendered:,} rendered now in {summary.elapsed_s:.1f} s{rate}",
        soft_wrap=True,
        highlight=False,
    )
    console.print(f"next: preprocess shard {out / ANNOTATIONS} DATASET", soft_wrap=True, highlight=False)
