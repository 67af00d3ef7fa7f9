"""An adapter in a transformer is switched on for the time of an edit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers import CogVideoXTransformer3DModel

from ddim_lightning.network.adapters import EDIT_ADAPTER, has_adapter


class EditAdapter:
    """An `EditAdapter` is LoRA in the layers of a transformer that acts while an edit is made, and at no other time.

    It was trained for what an edit does, not for inversion or plain sampling: outside of edits the layers compute with
    the transformer's own weights, and give the bytes of one that never had it.

    Args:
        transformer: Has an adapter that peft calls `EDIT_ADAPTER`, which is switched off here, and no other.
        name: Of its file, for messages.
        digest: Of its content.
        scale: How strongly it acts; 1 is as it was trained.
    """

    def __init__(self, transformer: CogVideoXTransformer3DModel, name: str, digest: str, scale: float) -> None:
        self.transformer = transformer
        self.name, self.digest, self.scale = name, digest, scale
        self._layers = [layer for layer in transformer.modules() if has_adapter(layer)]
        self._acts = False
        self.prepare()

    def describe(self) -> dict[str, object]:
        """Return its file, the digest of its content and its scale, JSON-ready."""
        return {"file": self.name, "digest": self.digest, "scale": self.scale}

    def prepare(self) -> None:
        """Switch it as it should be now, whoever switched it meanwhile.

        Raises:
            ValueError: Other adapters in the transformer, which switching would change, too.
        """
        if (found := list(getattr(self.transformer, "peft_config", {}))) != [EDIT_ADAPTER]:
            rule = f"{self.name} acts in edits alone and takes no other adapters beside it, unless by lora"
            raise ValueError(f"lora: {rule}; got {', '.join(found) or 'none, not even its own'} in the transformer")
        for layer in self._layers:
            if layer.disable_adapters is self._acts:
                layer.enable_adapters(self._acts)
                layer.requires_grad_(False)  # which peft turns on for what it enables

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Switch it on for the time of a block."""
        self._acts = True
        try:
            self.prepare()
            yield
        finally:
            self._acts = False
            self.prepare()
