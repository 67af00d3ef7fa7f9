"""Prompt embeddings are kept on disk, named by the content of what they were made from."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddim_lightning.models.checkpoint import Checkpoint, list_text_files

_WHOLE, _PIECE, _PIECES = 2**25, 2**12, 256


class PromptCache:
    """A `PromptCache` keeps a file for each prompt, so that runs under known prompts need no text encoder.

    A file is named by a digest of the prompt, the tokenizer, the text encoder's config and weights, the dtype and the
    kind of device: another model or another dtype finds nothing, and any number of models and runs share a folder. What
    was made on the other kind of device, which rounds differently, is taken where there is nothing of one's own.

    A model that has no text encoder, or no tokenizer, finds what was made by the text encoder of another one: see
    `find_text_encoder`.

    Args:
        folder: Made with the first file.
        encoder: Digest of tokenizer and text encoder, from `digest_text_encoder` or `find_text_encoder`.
        dtype: In which the text encoder runs.
    """

    def __init__(self, folder: Path, encoder: str, dtype: torch.dtype) -> None:
        self.folder, self.encoder, self.dtype = folder, encoder, dtype

    def find(self, prompt: str, device: torch.device) -> Path:
        """Return where the embeddings of a prompt lie, or would lie that are made on a kind of device."""
        own = self._name(prompt, device.type)
        others = (self._name(prompt, kind) for kind in ("cuda", "cpu"))
        return own if own.is_file() else next((other for other in others if other.is_file()), own)

    def _name(self, prompt: str, kind: str) -> Path:
        key = "\0".join((self.encoder, str(self.dtype), kind, prompt))
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def read(self, prompt: str, device: torch.device) -> Tensor:
        """Return the embeddings of a prompt that is there, (1, tokens, width), on a device.

        Raises:
            ValueError: The file is damaged.
        """
        path = self.find(prompt, device)
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                embeds: Tensor = file.get_tensor("embeds")
        except SafetensorError as error:
            raise ValueError(f"prompt_cache: {path} is damaged and must be deleted: {error}") from error
        return embeds

    def write(self, prompt: str, embeds: Tensor) -> None:
        """Keep the embeddings of a prompt; processes may write the same ones at the same time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f"{uuid4().hex}.part"
        save_file({"embeds": embeds.contiguous()}, part, metadata={"prompt": prompt, "encoder": self.encoder})
        part.replace(self._name(prompt, embeds.device.type))


def digest_text_encoder(checkpoint: Checkpoint) -> str:
    """Digest the files of a model that embeddings depend on.

    Small files are read whole. Of the weights the end and many pieces, evenly spread, are read beside the header, which
    names every tensor: a text encoder that was trained further differs in nearly all of them, and reading all of 19 GB
    would take longer than encoding.
    """
    digest = hashlib.sha256()
    for path in list_text_files(checkpoint):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(checkpoint.folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                digest.update(file.read())
                continue
            digest.update(file.read(_PIECE + int.from_bytes(file.read(8), "little")))
            for k in range(1, _PIECES + 1):
                file.seek(k * (size - _PIECE) // _PIECES)
                digest.update(file.read(_PIECE))
    return digest.hexdigest()


def find_text_encoder(folder: Path, tokens: int, width: int) -> str:
    """Find the digest of the text encoder whose embeddings a folder keeps, for a model that has none itself.

    Args:
        folder: Of the cache.
        tokens: Of a prompt; embeddings of another shape are not looked at.
        width: Of an embedding, likewise.

    Raises:
        ValueError: The folder keeps such embeddings of no text encoder, or of several.
    """
    found: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with suppress(SafetensorError, OSError), safe_open(path, framework="pt") as file:
            encoder = (file.metadata() or {}).get("encoder")
            if encoder is not None and tuple(file.get_slice("embeds").get_shape()) == (1, tokens, width):
                found.add(encoder)
    if len(found) != 1:
        rule = f"a model without a text encoder needs one that holds prompts ({tokens} x {width}) of one text encoder"
        raise ValueError(f"prompt_cache: {rule}, got those of {len(found)} in {folder}")
    return found.pop()
