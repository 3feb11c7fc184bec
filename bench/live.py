"""Live bytes: what tensors hold at any moment, counted operation by operation.

On fake tensors, which have shapes and no contents, a training step of any size runs through the real
modules, the real backward pass and the real optimiser in seconds and without memory. The count is the
same, byte for byte, as on real tensors (a test compares the two).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class LiveBytes:
    """Counts the bytes of storages that operations make, until they are freed.

    now: bytes alive; peak: the most since `mark`. A storage shared by several tensors counts once.
    What was made before `watching` began must be told by `hold`, or would count as new as soon as an
    operation returns a view of it.
    """

    def __init__(self) -> None:
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def hold(self, *modules: Any) -> None:
        """Count the parameters and buffers of modules."""
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                self.add(tensor)

    def mark(self) -> None:
        """Forget earlier peaks."""
        self.peak = self.now

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, unless it already counts."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    @contextmanager
    def watching(self) -> Iterator[LiveBytes]:
        """Count what every operation returns while open."""
        from torch import Tensor
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        count = self.add

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(
                self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                output = operation(*args, **(kwargs or {}))
                for leaf in tree_leaves(output):
                    if isinstance(leaf, Tensor):
                        count(leaf)
                return output

        with Watch():
            yield self


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Make every tensor that is created while open a fake one on the CPU.

    The CPU's attention kernel keeps what those of GPUs keep (no matrix of all pairs), which the meta
    device's does not: it would overstate the memory of a step several times.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def make_fake(*modules: Any) -> None:
    """Exchange parameters and buffers of modules on the meta device for fake tensors, in place.

    What modules share stays shared. Call it within `fake_tensors`.
    """
    import torch

    made: dict[int, tuple[Any, Any]] = {}
    for module in (m for root in modules for m in root.modules()):
        for store in (module._parameters, module._buffers):
            for name, old in store.items():
                if old is None:
                    continue
                if id(old) not in made:
                    new = torch.empty_like(old, device="cpu")
                    if isinstance(old, torch.nn.Parameter):
                        new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
                    made[id(old)] = (new, old)  # the old one too, or its id might come again
                store[name] = made[id(old)][0]


@contextmanager
def norms_in_float32(*modules: Any) -> Iterator[None]:
    """Compute modules' group and layer norms in float32, as CUDA's autocast does and the CPU's does not.

    Their inputs and outputs are kept for the backward pass, so this counts in a step's memory.
    """
    import torch

    norms = (torch.nn.GroupNorm, torch.nn.LayerNorm)
    handles = [
        module.register_forward_pre_hook(lambda norm, inputs: tuple(t.float() for t in inputs))
        for root in modules
        for module in root.modules()
        if isinstance(module, norms)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def parameter_bytes(*modules: Any) -> int:
    """Return the bytes of the parameters and buffers of modules, shared ones once."""
    held = {id(t): t for m in modules for t in (*m.parameters(), *m.buffers())}
    return sum(t.numel() * t.element_size() for t in held.values())
