"""What heads made of other heads have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from torch import Tensor

from pipeline.model.head import ActiveRows, Head
from pipeline.model.teacher import Teacher


class HeadGroup(Head):
    """A head whose parameters and buffers are those of its members, under `PREFIX + name`.

    Before the first `begin_step` it needs what any member needs.

    Args:
        members: heads by name; names and order equal on all ranks.
    """

    PREFIX: str
    """Before a member's name in the names of its parameters and buffers: a module cannot hold one called `type`."""

    def __init__(self, members: Mapping[str, Head]) -> None:
        super().__init__()
        self._names = list(members)
        for name, head in members.items():
            self.add_module(self.PREFIX + name, head)
        self._ask_for_needs(self._names)

    def part(self, name: str) -> Head:
        """The member of that name."""
        return cast(Head, self.get_submodule(self.PREFIX + name))

    def attach_teacher(self, teacher: Teacher) -> None:
        for name in self._names:
            if self.part(name).needs_teacher:
                self.part(name).attach_teacher(teacher)

    def sharded_tensors(self) -> dict[str, tuple[Tensor, int]]:
        return {
            f"{self.PREFIX}{name}.{key}": value
            for name in self._names
            for key, value in self.part(name).sharded_tensors().items()
        }

    def row_sparse(self) -> frozenset[str]:
        return frozenset(f"{self.PREFIX}{name}.{key}" for name in self._names for key in self.part(name).row_sparse())

    def active_rows(self) -> dict[str, ActiveRows]:
        return {
            f"{self.PREFIX}{name}.{key}": rows
            for name in self._working()
            for key, rows in self.part(name).active_rows().items()
        }

    def _working(self) -> list[str]:
        """Members that take part in the step begun last."""
        return self._names

    def _ask_for_needs(self, names: Iterable[str]) -> None:
        members = [self.part(name) for name in names]
        self.needs_whole_batch = any(head.needs_whole_batch for head in members)
        self.needs_teacher = any(head.needs_teacher for head in members)
