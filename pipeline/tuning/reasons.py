"""Why a trial failed, in a line, and whether another attempt may help."""

from __future__ import annotations


def last_line(error: BaseException) -> str:
    """What an error says last, which is the point of it where it quotes a traceback; its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def in_a_line(error: BaseException) -> str:
    """Why a worker failed."""
    return f"out of memory: {last_line(error)}" if is_memory(error) else last_line(error)


def is_memory(error: BaseException) -> bool:
    """Whether memory did not suffice: torch says so with a `RuntimeError` of its own on each device."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def reason_of(error: BaseException) -> str:
    """Why a trial failed, as Tune tells it."""
    return last_line(_cause(error))


def is_death(error: BaseException | None) -> bool:
    """Whether a trial ended because its driver's process died, not because of what the driver said."""
    import ray

    return error is not None and isinstance(_cause(error), ray.exceptions.RayActorError)


def _cause(error: BaseException) -> BaseException:
    """What a task raised, where Ray has put it into an error of its own."""
    return getattr(error, "cause", None) or error
