"""Which calls would make the host wait for a device, seen on any machine."""

from __future__ import annotations

from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"}
CHECKS = {"nonzero", "equal", "unique_consecutive", "unique_dim", "bincount", "masked_select"}


class _Reads(TorchFunctionMode):
    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READS:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Waits(TorchDispatchMode):
    """Names, in order, of what read from a tensor inside ``with Waits() as waits``."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._reads = _Reads(self.names)

    def __enter__(self) -> Waits:
        self._reads.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._reads.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in CHECKS or (name == "segment_reduce" and not (kwargs or {}).get("unsafe")):
            self.names.append(name)
        return func(*args, **(kwargs or {}))
