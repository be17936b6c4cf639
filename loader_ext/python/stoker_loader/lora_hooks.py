"""What runs behind each module that an adapter changes, and the switch that all of them obey."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.utils.hooks import RemovableHandle


class Attached:
    """One adapter on one model. `enabled` may be set whenever nothing runs the model."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self.enabled = True
        self._handles: list[RemovableHandle] = []

    def detach(self) -> None:
        """Take the adapter off: the model is exactly as before. The second time does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def hold(self, handle: RemovableHandle) -> None:
        """Keep what takes one of the hooks off again."""
        self._handles.append(handle)


class LoraHook:
    """Adds scale * B(A(x)) to a module's output, computed in the factors' dtype."""

    def __init__(
        self,
        attached: Attached,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
        of_embedding: bool,
    ) -> None:
        self.attached = attached
        self._down = down
        self._up = up
        self._scale = scale
        self._of_embedding = of_embedding

    def __call__(
        self,
        module: torch.nn.Module,  # noqa: ARG002 - torch's signature
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        output: torch.Tensor,
    ) -> torch.Tensor | None:
        if not self.attached.enabled:
            return None
        from torch.nn import functional

        x = arguments[0] if arguments else keywords["input"]
        if self._of_embedding:
            inner = functional.embedding(x, self._down.T)
        else:
            inner = functional.linear(x.to(self._down.dtype), self._down)
        added = functional.linear(inner, self._up) * self._scale
        return (output + added).to(output.dtype)


def attached_to(model: torch.nn.Module) -> dict[str, Attached]:
    """The adapters on a model by name: its hooks are the only record of them."""
    return {
        hook.attached.name: hook.attached
        for module in model.modules()
        for hook in module._forward_hooks.values()  # torch has no public way to list them
        if isinstance(hook, LoraHook)
    }
