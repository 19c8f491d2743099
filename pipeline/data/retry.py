"""How often and how patiently a store is asked again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Answer = TypeVar("Answer")


class TransientError(Exception):
    """A request that may well succeed when it is repeated.

    Args:
        cause: what went wrong, in a few words.
        wait_s: how long the server asks to wait; 0 when it does not say.
    """

    def __init__(self, cause: str, wait_s: float = 0.0) -> None:
        super().__init__(cause)
        self.wait_s = wait_s


class FetchError(Exception):
    """A request that failed for good: names the URL, the attempts and the last cause."""


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with full jitter, so that ranks which failed together do not come back together."""

    attempts: int = 6
    """Requests made at most, the first included."""
    first_wait_s: float = 0.2
    """The first pause is a random part of this; each further bound is twice the one before."""
    max_wait_s: float = 20.0
    connect_timeout_s: float = 10.0
    stall_timeout_s: float = 30.0
    """Longest time without a byte."""
    least_bytes_per_s: int = 128 << 10
    """A request may take `stall_timeout_s`, and a second more for so many bytes."""

    def timeout_s(self, num_bytes: int) -> float:
        """Longest time of a request for so many bytes."""
        return self.connect_timeout_s + self.stall_timeout_s + num_bytes / self.least_bytes_per_s


def retry(
    url: str,
    policy: RetryPolicy,
    request: Callable[[], Answer],
    on_retry: Callable[[], None],
    stop: threading.Event | None = None,
) -> Answer:
    """Give what `request` gives, asking again when it raises `TransientError`.

    Args:
        url: for the message.
        policy: how often.
        request: one attempt.
        on_retry: called before each further attempt.
        stop: when it is set, nothing is asked again.

    Raises:
        FetchError: all attempts failed, or `stop` is set.
    """
    began = time.monotonic()
    bound_s = policy.first_wait_s
    for attempt in range(1, policy.attempts + 1):
        try:
            return request()
        except TransientError as error:
            if attempt == policy.attempts:
                spent_s = time.monotonic() - began
                raise FetchError(f"{url}: {attempt} attempts in {spent_s:.1f} s, last: {error}") from error
            pause_s = min(policy.max_wait_s, max(error.wait_s, random.uniform(0, bound_s)))
            if (stop or threading.Event()).wait(pause_s):
                raise FetchError(f"{url}: given up after {attempt} attempts, last: {error}") from error
        on_retry()
        bound_s = min(policy.max_wait_s, 2 * bound_s)
    raise AssertionError("a policy has at least one attempt")
