"""CLIP scores, for users who name its weights: does a video show its prompt, and is it steady."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel, CLIPProcessor


@dataclass(frozen=True)
class CLIP:
    """A loaded CLIP: frames and texts to vectors of one space.

    `embed_frames` is a feature function of `metrics.motion.frame_consistency`, which then is the published CLIP-F.

    Args:
        model: The network, frozen and in eval mode.
        processor: Its tokenizer and the sizes and colours that it wants.
    """

    model: CLIPModel
    processor: CLIPProcessor

    @torch.no_grad()
    def embed_frames(self, video: Float[Tensor, "f c h w"]) -> Float[Tensor, "f d"]:
        """Embed RGB frames in 0 .. 1, each resized and cropped as CLIP was trained."""
        inputs = self.processor.image_processor(images=list(video), do_rescale=False, return_tensors="pt")
        output = self.model.get_image_features(inputs["pixel_values"].to(self.model.device))
        vectors: Tensor = output.pooler_output
        return vectors

    @torch.no_grad()
    def embed_text(self, text: str) -> Float[Tensor, " d"]:
        """Embed a text; what is beyond CLIP's context is cut off, with a warning."""
        tokenizer, length = self.processor.tokenizer, self.model.text_model.config.max_position_embeddings
        count = len(tokenizer(text)["input_ids"])
        if count > length:
            warnings.warn(f"text: CLIP reads {length} tokens, the last {count - length} are ignored", stacklevel=2)
        inputs = tokenizer(text, truncation=True, max_length=length, return_tensors="pt").to(self.model.device)
        output = self.model.get_text_features(inputs["input_ids"], inputs["attention_mask"])
        vector: Tensor = output.pooler_output[0]
        return vector


def load_clip(model: str, *, device: torch.device) -> CLIP:
    """Load the CLIP that the user names; nothing is fetched unless that is a hub id.

    Args:
        model: A folder, or a hub id ``owner/name``, ``openai/clip-vit-large-patch14`` for example.
        device: Where the weights go.

    Raises:
        FileNotFoundError: Neither a folder nor a hub id.
        OSError: A part of the folder is missing, or the hub cannot be reached or has no such model.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir() and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model) is None:
        raise FileNotFoundError(f"model: no folder {model!r}: give a CLIP folder or a hub id 'owner/name'")
    source = str(folder) if folder.is_dir() else model
    network: CLIPModel = CLIPModel.from_pretrained(source, device_map={"": device}, use_safetensors=True)
    processor = CLIPProcessor.from_pretrained(source)
    network.requires_grad_(False)  # from_pretrained has set eval mode
    return CLIP(network, processor)


def clip_text_similarity(clip: CLIP, video: Float[Tensor, "f c h w"], prompt: str) -> float:
    """Mean cosine similarity of a prompt and each frame, the published CLIP-T; tables often print it times 100.

    Args:
        clip: The loaded model.
        video: RGB frames in 0 .. 1.
        prompt: What the video is to show.

    Returns:
        A value in -1 .. 1; around 0.2 .. 0.35 for trained weights.

    Hessel et al., "CLIPScore", 2021, without its factor of 2.5; as CLIP-T in Wu et al., "Tune-A-Video", 2023.
    """
    similarity = functional.cosine_similarity(clip.embed_frames(video), clip.embed_text(prompt)[None], dim=1)
    return float(similarity.mean())
