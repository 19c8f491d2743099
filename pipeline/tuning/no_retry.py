"""Ends the workers of a trial that another attempt would not help."""

from __future__ import annotations

from ray.train import UserCallback

from pipeline.tuning.trial import TrialError


class NoRetry(UserCallback):
    """Tells Ray Train's controller which failures of workers are for good; it starts them again after the others.

    The controller then ends by itself, and its driver waits for that: one that dies with its driver while it starts
    workers again would leave their CPUs taken until the search is over.
    """

    def after_exception(self, run_context: object, worker_exceptions: dict[int, Exception]) -> None:
        """See `UserCallback`.

        Raises:
            TrialError: a worker raised one; what a callback raises ends the run in good order.
        """
        for error in worker_exceptions.values():
            if isinstance(error, TrialError):
                raise error
