"""What conditions the network: prompt embeddings, encoded once, and rotary tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from torch import Tensor
from transformers import PreTrainedTokenizerBase, T5EncoderModel

from ddim_lightning.models.embeddings import EmbeddingStore


class PromptEncoder:
    """Prompt to embeddings, each prompt once.

    Prompts are encoded one at a time: a batch could change a prompt's last bits with its neighbours.

    Args:
        tokenizer: The pipeline's tokenizer.
        text_encoder: The pipeline's T5 encoder; called without an attention mask, as `CogVideoXPipeline` does. ``None``
            where it was released or is not loaded yet.
        max_length: Tokens per prompt, the transformer's ``max_text_seq_length``.
        store: Where embeddings outlive the run; ``None`` keeps them in memory alone.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: T5EncoderModel | None,
        max_length: int,
        store: EmbeddingStore | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.max_length = max_length
        self.store = store
        self._embeds: dict[str, Tensor] = {}
        self._warnings: dict[str, list[str]] = {}

    def __call__(self, prompt: str) -> Tensor:
        """Return the embeddings of a prompt, (1, ``max_length``, width), on the text encoder's device.

        Raises:
            ValueError: A prompt that is new, without a text encoder; or its file in the store is damaged.
        """
        if prompt not in self._embeds:
            with torch.inference_mode(False), torch.no_grad():
                self._embeds[prompt] = self._find_or_encode(prompt)
            self._warnings[prompt] = self._find_warnings(prompt)
        return self._embeds[prompt]

    def encode_batch(self, prompts: Sequence[str]) -> Tensor:
        """Return fresh embeddings of a batch, (b, ``max_length``, width), with gradients where they are wanted."""
        assert self.text_encoder is not None
        ids = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.max_length, truncation=True, return_tensors="pt"
        ).input_ids
        embeds: Tensor = self.text_encoder(ids.to(self.text_encoder.device))[0]
        return embeds

    def forget(self) -> None:
        """Drop what was encoded, for a text encoder whose weights have changed."""
        self._embeds.clear()

    def move(self, device: torch.device) -> None:
        """Have embeddings on another device from now on."""
        self.forget()
        if self.store is not None:
            self.store.device = device

    def __contains__(self, prompt: str) -> bool:
        """Whether a prompt was encoded already, in this run or a former one."""
        return prompt in self._embeds or (self.store is not None and prompt in self.store)

    def get_warnings(self, prompts: Iterable[str]) -> list[str]:
        """Return a sentence for each encoded prompt that was truncated or has words the tokenizer does not know."""
        return [sentence for prompt in dict.fromkeys(prompts) for sentence in self._warnings.get(prompt, [])]

    def release(self) -> None:
        """Drop the text encoder; what was encoded stays."""
        self.text_encoder = None

    def _find_or_encode(self, prompt: str) -> Tensor:
        if self.store is not None and prompt in self.store:
            return self.store.read(prompt)
        if self.text_encoder is None:
            rule = "the module's encode_prompts loads it"
            raise ValueError(f"prompt: the text encoder was released before it saw {prompt!r}; {rule}")
        embeds = self.encode_batch([prompt])
        if self.store is not None:
            self.store.write(prompt, embeds)
        return embeds

    def _find_warnings(self, prompt: str) -> list[str]:
        found = []
        pieces = self.tokenizer.tokenize(prompt)
        # One place is the end-of-sequence token's.
        if len(pieces) > self.max_length - 1:
            lost = self.tokenizer.convert_tokens_to_string(pieces[self.max_length - 1 :])
            found.append(
                f"prompt truncated: the model reads {self.max_length - 1} of its {len(pieces)} tokens; "
                f"not read: {lost!r}"
            )
        unknown = [word for word in prompt.split() if self.tokenizer.unk_token_id in self._get_ids(word)]
        if unknown:
            found.append(
                f"prompt {prompt!r}: the tokenizer does not know {', '.join(map(repr, dict.fromkeys(unknown)))}"
            )
        return found

    def _get_ids(self, word: str) -> list[int]:
        ids: list[int] = self.tokenizer(word, add_special_tokens=False).input_ids
        return ids


def make_rotary_table(
    transformer: CogVideoXTransformer3DModel, frames: int, height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Make the rotary table over the whole sequence: identity rows for the text, then the video's rows.

    With identity rows one multiplication covers the whole sequence, bit-equal to rotating the video's part alone.

    Args:
        transformer: Its config gives patch size, head size, text length and the native grid.
        frames: Latent frames.
        height: Latent height, a multiple of the patch size.
        width: Latent width, likewise.
        device: Where the table goes.

    Returns:
        cos and sin, (text + video tokens, channels of a head) float32 each.

    Source: `CogVideoXPipeline._prepare_rotary_positional_embeddings`.
    """
    config = transformer.config
    patch = config.patch_size
    grid = (height // patch, width // patch)
    crops = get_resize_crop_region_for_grid(grid, config.sample_width // patch, config.sample_height // patch)
    cos, sin = get_3d_rotary_pos_embed(
        embed_dim=config.attention_head_dim, crops_coords=crops, grid_size=grid, temporal_size=frames, device=device
    )
    text = (config.max_text_seq_length, cos.shape[1])
    return torch.cat([cos.new_ones(text), cos]), torch.cat([sin.new_zeros(text), sin])
