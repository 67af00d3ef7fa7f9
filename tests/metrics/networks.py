"""Networks of measures with random weights, in the files that a user would name."""

from __future__ import annotations

import json

import torch
import torchvision
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from ddim_lightning.metrics.measures import Networks

SQUEEZE = "squeezenet1_1-b8a52dc0.pth"
"""What torch's cache calls the weights of SqueezeNet."""


def write_squeeze(folder):
    """All weights of SqueezeNet 1.1, 5 MB, under the name that torch's cache has for them."""
    path = folder / SQUEEZE
    torch.manual_seed(1)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), path)
    return path


def write_alex(folder):
    """The layers of AlexNet that LPIPS looks at, as safetensors."""
    path = folder / "alexnet.safetensors"
    torch.manual_seed(2)
    network = torchvision.models.alexnet(weights=None).features
    save_file({f"features.{name}": tensor for name, tensor in network.state_dict().items()}, path)
    return path


def write_raft(folder):
    """RAFT small, 4 MB."""
    path = folder / "raft_small.pth"
    torch.manual_seed(3)
    torch.save(torchvision.models.optical_flow.raft_small(weights=None).state_dict(), path)
    return path


def write_clip(folder):
    """A CLIP model of one layer, which reads 12 tokens."""
    folder = folder / "clip"
    folder.mkdir()
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    files = {"vocab.json": json.dumps({token: index for index, token in enumerate(tokens)}), "merges.txt": "#version\n"}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)
    width = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**width, "vocab_size": len(tokenizer), "max_position_embeddings": 12}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {**width, "image_size": 24, "patch_size": 8}
    torch.manual_seed(4)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12))
    model.save_pretrained(folder)
    pictures = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    return folder


def write_networks(folder):
    """Write all of them, and say where they lie."""
    squeeze, clip, raft = (str(write(folder)) for write in (write_squeeze, write_clip, write_raft))
    return Networks(lpips_weights=squeeze, clip_model=clip, raft_weights=raft)
