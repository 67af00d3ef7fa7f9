"""Made-up folders of public benchmarks, in the layouts of their repositories: frames of 32 x 48, drawn in code."""

from __future__ import annotations

import csv
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import resize

from ddim_lightning.data.benchmark import Benchmark
from ddim_lightning.data.video import read_frames, read_info, write_video

CLIPS = ("0001_bus", "0002_girl-dog", "0003_blackswan")
FIVE = {
    "1": [("0001_bus", "a blue bus drives along a [dirt road]"), ("0002_girl-dog", "a girl walks a small white [cat]")],
    "2": [("0001_bus", "a truck drives along a [street]"), ("0003_blackswan", "a duck")],
    "5": [("0001_bus", "a bus with a flag"), ("0002_girl-dog", "a girl with a hat")],
    "6": [("0003_blackswan", "a river")],
}
"""Seven edits of three clips: by their type, clip and target prompt."""
SOURCES = dict(zip(CLIPS, ("a [red] bus drives along a street", "a girl walks a dog", "a swan"), strict=True))


def draw(name: str, count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames (f, h, w, 3) uint8 of a light square that moves over a smooth ground, of another color for each name."""
    y, x = np.mgrid[0:height, 0:width]
    shade = sum(map(ord, name)) % 100
    frames = np.stack([np.stack([y * 3 + shade, x * 2 + k, x + y], -1) for k in range(count)]).astype(np.uint8)
    for k, frame in enumerate(frames):
        frame[8:20, 4 + k % 20 : 16 + k % 20] = 230 - shade
    return frames


def draw_masks(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Masks (f, h, w) bool: where the square is."""
    masks = np.zeros((count, height, width), bool)
    for k, mask in enumerate(masks):
        mask[8:20, 4 + k % 20 : 16 + k % 20] = True
    return masks


def write_frames(folder: Path, frames: np.ndarray, pattern: str = "%05d.jpg", first: int = 1) -> None:
    folder.mkdir(parents=True)
    for k, frame in enumerate(frames, first):
        Image.fromarray(frame).save(folder / (pattern % k), quality=95)


def write_results(benchmark: Benchmark, folder: Path, height: int = 16, width: int = 24) -> dict[str, dict[str, Any]]:
    """Write what a run leaves of a benchmark: edits are the source, the darker the later; return the records by id."""
    records = {}
    for request in benchmark.requests:
        count = read_info(request.video).num_frames
        frames = torch.stack(list(read_frames(request.video, range(count))))
        frames = resize(frames, [height, width])
        edits = [f"edit-{k:02d}.mp4" for k in range(len(request.prompts))]
        for k, name in enumerate(["source.mp4", *edits]):
            write_video(folder / request.id / name, (frames * (1 - k / 10)).to(torch.uint8), Fraction(8))
        chosen = {"start": 0, "stride": 1, "count": count}
        files = {"input": str(request.video), "source": "source.mp4", "edits": edits}
        records[request.id] = {"id": request.id, "frames": chosen, "files": files, "fingerprint": {"clip": request.id}}
    return records


def write_mp4(path: Path, frames: np.ndarray) -> None:
    write_video(path, torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous(), Fraction(8))


def write_five(root: Path, count: int = 17, as_mp4: tuple[str, ...] = ("0002_girl-dog",)) -> Path:
    """FiVE-Bench; the source prompt of type 6 is one of its own."""
    for name in CLIPS:
        if name in as_mp4:
            write_mp4(root / "videos" / f"{name}.mp4", draw(name, count))
        else:
            write_frames(root / "images" / name, draw(name, count))
        write_frames(root / "bmasks" / name, draw_masks(count).astype(np.uint8) * 255)
    (root / "edit_prompt").mkdir()
    for kind, edits in FIVE.items():
        rows = [
            {
                "video_name": name,
                "source_prompt": "a swan on a [river]" if kind == "6" else SOURCES[name],
                "target_prompt": prompt,
                "negative_prompt": "blurry",
                "instruction": f"make it {prompt}",
                "save_dir": f"{kind}_{prompt[:20]}",
                "editing_type_id": int(kind),
                "target_yes_no_question": "Is it?",
            }
            for name, prompt in edits
        ]
        (root / "edit_prompt" / f"edit{kind}_FiVE.json").write_text(json.dumps(rows))
    return root


def write_davis(root: Path, count: int = 9) -> Path:
    """DAVIS 2017: masks in which every object has a color of a palette."""
    for name in ("bear", "swing"):
        write_frames(root / "JPEGImages" / "480p" / name, draw(name, count), first=0)
        folder = root / "Annotations" / "480p" / name
        folder.mkdir(parents=True)
        for k, mask in enumerate(draw_masks(count)):
            image = Image.fromarray(mask.astype(np.uint8), mode="P")
            image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            image.save(folder / f"{k:05d}.png")
    return root


def write_editboard(root: Path, count: int = 9) -> Path:
    """EditBoard: its checkout with the folder `sample`."""
    write_frames(root / "sample" / "bear", draw("bear", count), first=71)
    write_frames(root / "sample" / "bear_mask", draw_masks(count).astype(np.uint8) * 255, "%05d.png", first=71)
    columns = ["original_video_path", "edited_video_path", "semantic_mask_path", "source_prompt", "target_prompt"]
    with (root / "sample" / "script.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        for name, prompt in {"autumn": "a bear in autumn", "panda": "a panda, on rocks"}.items():
            paths = ["./sample/bear", f"./sample/bear_{name}", "./sample/bear_mask"]
            table.writerow([*paths, "a bear on rocks", prompt])
    return root


def write_tgve(root: Path, count: int = 9) -> Path:
    """LOVEU-TGVE 2023: a sheet with titles and empty rows between those of clips, and columns without a name."""
    root.mkdir(parents=True, exist_ok=True)
    clips = {"DAVIS_480p": ["gold-fish"], "youtube_480p": ["salsa", "volleyball"]}
    kinds = ["Style", "Object", "Background"]
    header = ["Video name", "Our GT caption", *(f"{kind} Change Caption" for kind in kinds), "Multiple Changes Caption"]
    with (root / "LOVEU-TGVE-2023_Dataset.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*header, "", ""])
        for folder, names in clips.items():
            table.writerow([f"{folder} videos:", *[""] * 7])
            for name in names:
                write_frames(root / folder / "480p_frames" / name, draw(name, count), first=0)
                table.writerow([name, f"{name} moves", *(f"{name}, {kind}" for kind in [*kinds, "Multiple"]), "", ""])
            table.writerow([""] * 8)
    return root


def write_ivebench(root: Path, count: int = 9) -> Path:
    """IVEBench: mp4s and a list of one edit a clip."""
    rows = []
    for k, name in enumerate(("dance.mp4", "river.mp4")):
        write_mp4(root / "videos" / name, draw(name, count))
        prompts = {"source_prompt": f"source {k}", "edit_prompt": f"make it {k}", "target_prompt": f"target {k}"}
        kind = {"category": "style_editing", "subcategory": "season", "target_phrase": "it", "target_span": [0, 2]}
        rows.append({"id": k, "src_video_name": name, **kind, **prompts})
    (root / "prompts.json").write_text(json.dumps(rows))
    return root
