"""What several cases of a session share, kept in memory: the latest of it, up to a limit."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from gauntlet.guard import forbid_players

__all__ = ["Memory"]

T = TypeVar("T")


@dataclass(eq=False)
class Memory:
    """limit: bytes in all; most: values. What was used last stays longest; the newest value stays whatever its size.

    The values are the engine's: nobody may change one in place. They may be test images, so that asking for one as
    attacker or defender raises LeakError (trap T3).
    """

    limit: int = 48 << 20
    most: int = 1024
    _kept: OrderedDict[Hashable, tuple[Any, int]] = field(default_factory=OrderedDict, repr=False)

    def get(self, name: Hashable, make: Callable[[], T], tensors: Callable[[T], Iterable[Tensor]] | None = None) -> T:
        """The value of that name, made when it isn't there. tensors: those in it that take memory of their own."""
        forbid_players("what the evaluator keeps in memory")
        if name in self._kept:
            self._kept.move_to_end(name)
            found: T = self._kept[name][0]
            return found
        value = make()
        self.put(name, value, () if tensors is None else tensors(value))
        return value

    def put(self, name: Hashable, value: object, tensors: Iterable[Tensor] = ()) -> None:
        """Keep a value under a name that may have held another."""
        self._kept.pop(name, None)
        self._kept[name] = (value, sum(tensor.nbytes for tensor in tensors))
        while len(self._kept) > 1 and (len(self._kept) > self.most or self.size > self.limit):
            self._kept.popitem(last=False)

    def find(self, name: Hashable) -> Any:
        """The value of that name, or None."""
        forbid_players("what the evaluator keeps in memory")
        if name not in self._kept:
            return None
        self._kept.move_to_end(name)
        return self._kept[name][0]

    def clear(self) -> None:
        """Forget everything."""
        forbid_players("what the evaluator keeps in memory")
        self._kept.clear()

    @property
    def size(self) -> int:
        """Bytes of all tensors in it."""
        return sum(size for _, size in self._kept.values())
