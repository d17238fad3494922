"""Three witnesses of a step on tensors of ``cuda:0`` that hold no numbers, and the trace that they write.

Functions of torch by which the host reads a tensor (`Reads`), ATen operators (`Operators`: kernels, copies, memory),
and launches of Triton's kernels (`Launches`), which are noted and not carried out. They know no plan and no worker.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Protocol
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from semipd_engine.model.stage import Work

READS = {"item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__"}
"""Functions by which the host waits for a tensor's numbers, beside `tolist`."""
NO_KERNEL = {"aten.empty", "aten.empty_like", "aten.new_empty", "aten.empty_strided", "aten.detach", "aten.lift_fresh"}
PIECE = 512
"""Bytes of which torch's allocator makes multiples."""
SPARSE = {"aten.index_select", "aten.index", "aten.embedding", "aten.gather"}
"""Of their first argument they read what they write, not all."""


@dataclass(frozen=True)
class Launch:
    stage: int
    """Index into `Trace.stages`; -1: outside of all, in sampling."""
    name: str
    flops: int
    nbytes: int
    """Of its tensors, each read or written once. Of Triton's kernels 0: a launch does not say what it reads."""


@dataclass
class Trace:
    launches: list[Launch] = field(default_factory=list)
    stages: list[tuple[str, Work]] = field(default_factory=list)
    """Kind and cost of each stage that ran, in order."""
    uploads: list[int] = field(default_factory=list)
    """Bytes of each copy to the device."""
    waits: list[str] = field(default_factory=list)
    """What the host waited for: a copy to it, a scalar, a size that depends on numbers, an event, the queue's end."""
    fetched: list[int] = field(default_factory=list)
    """Bytes of each copy to the host that is queued, and that an event is behind."""
    events: list[int] = field(default_factory=list)
    """How many such copies had been queued when each was recorded."""
    masked: list[str] = field(default_factory=list)
    """Calls of torch's attention with a mask, which takes its slow kernel."""
    live: int = 0
    peak: int = 0
    """Bytes on the device at once beyond weights and cache: buffers that stay, and what a kernel's caller makes."""

    def kernels(self, name: str = "") -> Counter[str]:
        """By name, of the stages of this kind; all by default."""
        wanted = [i for i, (kind, _) in enumerate(self.stages) if kind == name]
        return Counter(one.name for one in self.launches if not name or one.stage in wanted)

    def spans(self) -> list[range]:
        """The stages of each layer: two norms begin its two blocks."""
        begins = [i for i, (kind, _) in enumerate(self.stages) if kind == "Norm"][::2]  # the last is the model's own
        return [range(*ends) for ends in pairwise(begins)]

    def layers(self) -> list[int]:
        """Kernels of each layer."""
        return [sum(one.stage in span for one in self.launches) for span in self.spans()]


class Recording(Protocol):
    """Whose step is seen."""

    @property
    def record(self) -> Trace: ...


class Reads(TorchFunctionMode):
    """The host's reads: each is noted, and gets numbers that let the step go on."""

    def __init__(self, worker: Recording) -> None:
        super().__init__()
        self._worker = worker

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS and args and isinstance(args[0], FakeTensor) and args[0].device.type == "cuda":
            self._worker.record.waits.append(name)
            return numbers(args[0], name)
        if name == "scaled_dot_product_attention" and (kwargs or {}).get("attn_mask") is not None:
            self._worker.record.masked.append(str((kwargs or {})["attn_mask"]))
        return func(*args, **(kwargs or {}))


def numbers(tensor: Tensor, name: str) -> Any:
    """What the host is given: rising indices where one may be meant, else zeros."""
    whole = tensor.dtype in (torch.int32, torch.int64) and tensor.dim() == 1
    values = np.arange(len(tensor)) if whole else np.zeros(tensor.shape)
    match name:
        case "tolist":
            return values.tolist()
        case "numpy":
            return values
        case "cpu":
            return torch.zeros(tensor.shape, dtype=tensor.dtype)
        case "__bool__" | "__contains__":
            return False
        case "__float__":
            return 0.0
    return 0


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, worker: Recording) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._worker = worker

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs, record = kwargs or {}, self._worker.record
        if func.namespace != "aten":
            return func(*args, **kwargs)
        name = f"aten.{func.overloadpacket.__name__}"
        if (made := _bynumbers(name, args, kwargs)) is not None:
            record.waits.append(name)
            record.launches.append(Launch(-1, name, 0, 0))
            return made
        with self:  # what is made of other operators, as inference mode leaves it
            whole = func.decompose(*args, **kwargs)
        if whole is not NotImplemented:
            return whole
        out = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if tensor.device.type == "cuda"]
        if not there:
            return out
        if any(one.alias_info is not None and not one.alias_info.is_write for one in func._schema.returns):
            return out  # a view
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in outputs:
            self._held(tensor)
        if name in NO_KERNEL:
            return out
        if name in ("aten.copy_", "aten._to_copy") and len({tensor.device.type for tensor in tensors}) > 1:
            moved = outputs[0]
            if moved.device.type == "cuda":
                record.uploads.append(moved.nbytes)
            elif name == "aten.copy_" and (kwargs.get("non_blocking") or args[2:] == (True,)):
                record.fetched.append(moved.nbytes)
            else:
                record.waits.append(name)
            return out
        rule = flop_registry.get(func.overloadpacket)
        flops = rule(*args, **kwargs, out_val=out) if rule is not None else 0
        read = [tensor for tensor in there if not (name in SPARSE and tensor is args[0])]
        distinct = {id(tensor): tensor for tensor in read}
        record.launches.append(Launch(-1, name, int(flops), sum(tensor.nbytes for tensor in distinct.values())))
        return out

    def _held(self, tensor: Tensor) -> None:
        """Count its memory until nobody holds it."""
        if tensor.device.type != "cuda" or counted(tensor):
            return
        storage = tensor.untyped_storage()
        nbytes, worker = -(-storage.nbytes() // PIECE) * PIECE, self._worker

        def freed() -> None:
            worker.record.live -= nbytes

        worker.record.live += nbytes
        worker.record.peak = max(worker.record.peak, worker.record.live)
        weakref.finalize(storage, freed)


def counted(tensor: Tensor) -> bool:
    """Was its memory seen before? From now on it was."""
    storage = tensor.untyped_storage()
    before = hasattr(storage, "_semipd_counted")
    storage._semipd_counted = True  # type: ignore[attr-defined]
    return before


def _bynumbers(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """What an operator gives whose size only the numbers say, so that a device is waited for; None for others."""
    if not args or not isinstance(args[0], FakeTensor) or args[0].device.type != "cuda":
        return None
    first = args[0]
    match name:
        case "aten.nonzero":  # all of them
            return first.new_empty((first.numel(), first.dim()), dtype=torch.int64)
        case "aten.bincount":
            return first.new_empty(kwargs.get("minlength", args[2] if len(args) > 2 else 0))
        case "aten.index" if any(getattr(one, "dtype", None) == torch.bool for one in args[1]):  # none of them
            return first.new_empty((0, *first.shape[1:]))
    return None


class Launches:
    """Notes what is started of Triton's kernels."""

    def __init__(self, worker: Recording) -> None:
        self._worker = worker
        self._stack = ExitStack()

    def __enter__(self) -> None:
        from semipd_engine.kernels.gpu import rows

        def chosen(kernel: Any, grid: tuple[int, ...]) -> Callable[..., None]:
            return partial(self._note, kernel.fn.__name__, grid)

        self._stack.enter_context(patch.object(type(rows._rms_norm), "__getitem__", chosen))

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _note(self, name: str, grid: tuple[int, ...], *arguments: object, **options: object) -> None:
        if all(grid):
            self._worker.record.launches.append(Launch(-1, f"triton.{name}", 0, 0))
