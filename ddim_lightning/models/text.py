"""Prompts become embeddings, each prompt once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from ddim_lightning.models.prompt_cache import PromptCache
from ddim_lightning.runtime.autocast import without_autocast

_NO_ENCODER = "the model has no text encoder or no tokenizer"
_MOST_ON_DEVICE = 64  # what the edits of a clip need; 2 MB each for CogVideoX


def is_text(prompt: object) -> TypeGuard[str]:
    """Whether a prompt is text that can be written in UTF-8; JSON can hold half an emoji."""
    try:
        return isinstance(prompt, str) and prompt.encode() is not None
    except UnicodeEncodeError:
        return False


class PromptEncoder:
    """A `PromptEncoder` turns prompts into embeddings, and alone owns the text encoder.

    The text encoder is loaded when a prompt needs it, and can be released again. It may be released before the rest of
    the model is loaded. Prompts are encoded one at a time: a
    batch could change a prompt's last bits with its neighbors. Embeddings are kept on the host, since a run of
    thousands of prompts would fill a device with them, and those that were asked for last on the device, too.

    Args:
        tokenizer: The pipeline's tokenizer; ``None`` where it was left out, and then no prompt is warned of.
        load_text_encoder: Loads the pipeline's T5 encoder onto a device; it is called without an attention mask, as
            `CogVideoXPipeline` does. ``None`` where it was left out: every prompt must be in the cache.
        max_length: Tokens per prompt, the transformer's ``max_text_seq_length``.
        device: Where the text encoder works and embeddings are handed out.
        cache: Where embeddings outlive the run; ``None`` keeps them in memory alone.
        given: The text encoder where somebody has loaded it already, who keeps it when it is released here.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        load_text_encoder: Callable[[torch.device], T5EncoderModel] | None,
        max_length: int,
        device: torch.device,
        cache: PromptCache | None = None,
        given: T5EncoderModel | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.device = device
        self.cache = cache
        self.given = given
        self.text_encoder: T5EncoderModel | None = None
        """The text encoder, or ``None`` where it was released or was not needed yet."""
        self.before_load: Callable[[], None] = lambda: None
        """Called before the text encoder is loaded; weights that are not at work leave the device here."""
        self.on_release: Callable[[], None] = lambda: None
        """Called once when the text encoder is released: what it has on a device leaves here."""
        self._load_text_encoder = load_text_encoder
        self._embeds: dict[str, Tensor] = {}
        self._on_device: dict[str, Tensor] = {}
        self._warnings: dict[str, list[str]] = {}

    def __call__(self, prompt: str) -> Tensor:
        """Return the embeddings of a prompt, (1, ``max_length``, width); loads the text encoder where it is needed.

        Raises:
            ValueError: The prompt's file in the cache is damaged, or it is not there and there is no text encoder.
        """
        self.prepare(prompt)
        if prompt not in self._on_device:
            if len(self._on_device) == _MOST_ON_DEVICE:
                del self._on_device[next(iter(self._on_device))]  # the one that came first
            with torch.inference_mode(False):  # what was made under it cannot take part in a training
                self._on_device[prompt] = self._embeds[prompt].to(self.device)
        return self._on_device[prompt]

    def prepare(self, prompt: str) -> None:
        """Encode a prompt, unless it was encoded before, and keep its embeddings on the host."""
        if prompt not in self._embeds:
            with torch.inference_mode(False), torch.no_grad(), without_autocast(self.device):
                self._embeds[prompt] = self._find_or_encode(prompt).cpu()
            self._warnings[prompt] = self._find_warnings(prompt)

    def prepare_all(self, prompts: Iterable[object]) -> None:
        """Encode prompts, each once; what is no text or cannot be encoded is left to whoever asks for it."""
        for prompt in prompts:
            if is_text(prompt) and (self.can_encode or self.is_known(prompt)):
                self.prepare(prompt)

    @property
    def can_encode(self) -> bool:
        """Whether there is a text encoder; without one only prompts in the cache are known."""
        return self._load_text_encoder is not None and self.tokenizer is not None

    def is_known(self, prompt: str) -> bool:
        """Whether a prompt needs no text encoder: it was encoded before, or is in the cache."""
        return prompt in self._embeds or (self.cache is not None and self.cache.find(prompt, self.device).is_file())

    def encode_batch(self, prompts: Sequence[str]) -> Tensor:
        """Return fresh embeddings of a batch, (b, ``max_length``, width), with gradients where they are wanted."""
        if self.tokenizer is None:
            raise ValueError(f"prompt: {_NO_ENCODER}, got {', '.join(map(repr, prompts))}")
        ids = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.max_length, truncation=True, return_tensors="pt"
        ).input_ids
        embeds: Tensor = self.load()(ids.to(self.device))[0]
        return embeds

    def read_batch(self, prompts: Sequence[str]) -> Tensor:
        """Return embeddings of a batch from the cache, (b, ``max_length``, width), without gradients.

        They are kept nowhere else. A prompt that is not there yet is encoded, and put there where there is a cache.
        """
        with torch.inference_mode(False), torch.no_grad(), without_autocast(self.device):
            return torch.cat([self._find_or_encode(prompt) for prompt in prompts])

    @torch.inference_mode(False)  # weights that were made under inference mode could never train
    def load(self) -> T5EncoderModel:
        """Return the text encoder, loading it where it is not there.

        Raises:
            ValueError: The model has none.
        """
        if self._load_text_encoder is None:
            raise ValueError(f"text_encoder: {_NO_ENCODER}")
        if self.text_encoder is None:
            self.before_load()
            self.text_encoder = self._load_text_encoder(self.device)
        return self.text_encoder

    def release(self) -> None:
        """Drop the text encoder; what was encoded stays."""
        self.text_encoder = None
        self.on_release()
        self.on_release = lambda: None

    def clear_cache(self) -> None:
        """Drop what was encoded, for a text encoder whose weights have changed; files in the cache stay."""
        self._embeds.clear()
        self._on_device.clear()

    def to(self, device: torch.device) -> None:
        """Have the text encoder and all embeddings on another device from now on."""
        if self.text_encoder is not None:
            nn.Module.to(self.text_encoder, device)
        if device != self.device:
            self.clear_cache()
        self.device = device

    def get_warnings(self, prompts: Iterable[str]) -> list[str]:
        """Return a sentence for each encoded prompt that was truncated or has words the tokenizer does not know."""
        return [sentence for prompt in dict.fromkeys(prompts) for sentence in self._warnings.get(prompt, [])]

    def _find_or_encode(self, prompt: str) -> Tensor:
        if self.cache is not None and self.cache.find(prompt, self.device).is_file():
            return self.cache.read(prompt, self.device)
        if self.cache is not None and not self.can_encode:
            made = f"in {str(self.cache.dtype).removeprefix('torch.')} on {self.device.type}"
            raise ValueError(
                f"prompt: {prompt!r} is not in the prompt_cache {self.cache.folder} (made {made}), and {_NO_ENCODER}; "
                "encode it once, likewise, by a model that has one, with the same prompt_cache"
            )
        embeds = self.encode_batch([prompt])
        if self.cache is not None:
            self.cache.write(prompt, embeds)
        return embeds

    def _find_warnings(self, prompt: str) -> list[str]:
        found: list[str] = []
        if self.tokenizer is None:
            return found
        pieces = self.tokenizer.tokenize(prompt)
        # One place is the end-of-sequence token's.
        if len(pieces) > self.max_length - 1:
            lost = self.tokenizer.convert_tokens_to_string(pieces[self.max_length - 1 :])
            found.append(
                f"prompt truncated: the model reads {self.max_length - 1} of its {len(pieces)} tokens; "
                f"not read: {lost!r}"
            )
        unknown = [word for word in prompt.split() if self.tokenizer.unk_token_id in _get_ids(self.tokenizer, word)]
        if unknown:
            found.append(
                f"prompt {prompt!r}: the tokenizer does not know {', '.join(map(repr, dict.fromkeys(unknown)))}"
            )
        return found


def _get_ids(tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
    ids: list[int] = tokenizer(word, add_special_tokens=False).input_ids
    return ids
