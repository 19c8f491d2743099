"""See the package's text."""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.run import READERS, fuzz, memory_limit


def main() -> None:
    """Print a line a reader; exit code 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--inputs", type=int, default=100_000, help="over all readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=READERS)
    parser.add_argument("--number", type=int, help="of one input, with --only")
    options = parser.parse_args()
    readers = [options.only] if options.only else list(READERS)
    count = -(-options.inputs // len(readers))
    numbers = range(count) if options.number is None else range(options.number, options.number + 1)
    failed = False
    with tempfile.TemporaryDirectory() as name:
        for reader in readers:
            fuzz(reader, range(20), options.seed, Path(name))  # what is imported or allotted once does not count
            start_s, before_kib = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with memory_limit():
                outcome = fuzz(reader, numbers, options.seed, Path(name))
            grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024
            refused = ", ".join(f"{each:,} {error}" for error, each in outcome.refused.items())
            print(
                f"{reader}: {len(numbers):,} inputs in {time.monotonic() - start_s:,.0f} s, {outcome.num_read:,} read, "
                f"{refused or 'none refused'}; memory grew by {grown_mib:.0f} MiB; {len(outcome.failures)} failures"
            )
            for failure in outcome.failures[:10]:
                print(failure, file=sys.stderr)
            failed |= bool(outcome.failures)
    sys.exit(failed)


if __name__ == "__main__":
    main()
