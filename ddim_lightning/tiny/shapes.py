"""Clips of moving shapes are rendered from parameters, so that the truth of every edit is known to the pixel.

A scene is one flat object that crosses a shaded background at constant speed, 9 frames of 64 x 64 unless more are asked
for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddim_lightning.types import Frames

NUM_FRAMES = 9
"""Frames of a clip."""
SIZE = 64
"""Height and width of a frame in pixels."""

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = {
    "red": (225, 40, 40),
    "green": (50, 190, 50),
    "yellow": (245, 220, 50),
    "white": (240, 240, 240),
    "cyan": (60, 210, 230),
    "magenta": (225, 60, 200),
    "pink": (250, 150, 165),
}
BACKGROUNDS = {
    "black": (25, 25, 30),
    "gray": (120, 120, 125),
    "blue": (40, 60, 190),
    "purple": (95, 40, 130),
    "brown": (115, 75, 40),
    "teal": (10, 90, 115),
}
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
"""Word to unit step (x, y); y points down."""

WORDS = {"shape": SHAPES, "color": tuple(COLORS), "background": tuple(BACKGROUNDS), "direction": tuple(DIRECTIONS)}
"""What a scene says, and the words for it."""

HELD_OUT_COLOR = "pink"
"""An object color no training clip has."""
HELD_OUT_PAIRS = (("cyan", "triangle"), ("red", "cross"), ("white", "circle"))
"""Pairs (color, shape) no training clip has, though each word alone is trained."""

VOCABULARY = ("a", "moving", "on", "background", *itertools.chain(*WORDS.values()))
"""Every word a caption can hold."""

_RADIUS = (12.0, 15.0)
_SPEED = (2.0, 3.0)
_SHADE = 12.0
_EDGE = 1.5
_MARGIN = 1.0


@dataclass(frozen=True)
class Scene:
    """A `Scene` holds the parameters of one clip: words that the caption has, and nuisances that it has not.

    Args:
        shape: One of `SHAPES`.
        color: One of `COLORS`, the object's.
        background: One of `BACKGROUNDS`.
        direction: One of `DIRECTIONS`.
        radius: Half the object's extent in pixels.
        speed: Pixels per frame.
        x: The object's center in the middle frame, in pixels from the left.
        y: The same from the top.
        shade_x: How much brighter the background's right edge is than its left, in gray levels.
        shade_y: The same from top to bottom.

    Raises:
        ValueError: A word that this world does not have.
    """

    shape: str
    color: str
    background: str
    direction: str
    radius: float
    speed: float
    x: float
    y: float
    shade_x: float = 0.0
    shade_y: float = 0.0

    def __post_init__(self) -> None:
        """Refuse unknown words."""
        for name, known in WORDS.items():
            if (word := getattr(self, name)) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {word!r}")

    @property
    def caption(self) -> str:
        """The scene in words, for example ``a red circle moving right on a blue background``."""
        return f"a {self.color} {self.shape} moving {self.direction} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """Whether the color, or the pair of color and shape, is kept out of training."""
        return self.color == HELD_OUT_COLOR or (self.color, self.shape) in HELD_OUT_PAIRS


def sample_scene(generator: torch.Generator, *, held_out: bool = False) -> Scene:
    """Draw a scene, uniform over words and nuisances, whose object stays in the frame whatever its direction.

    Args:
        generator: The only source of randomness; lives on the CPU.
        held_out: Draw among the combinations kept out of training instead of those trained on.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    def choice(words: tuple[str, ...]) -> str:
        return words[int(torch.randint(len(words), (), generator=generator))]

    while True:
        radius, speed = uniform(*_RADIUS), uniform(*_SPEED)
        margin = radius + speed * (NUM_FRAMES // 2) + _MARGIN
        scene = Scene(
            shape=choice(SHAPES),
            color=choice(WORDS["color"]),
            background=choice(WORDS["background"]),
            direction=choice(WORDS["direction"]),
            radius=radius,
            speed=speed,
            x=uniform(margin, SIZE - margin),
            y=uniform(margin, SIZE - margin),
            shade_x=uniform(-_SHADE, _SHADE),
            shade_y=uniform(-_SHADE, _SHADE),
        )
        if scene.held_out == held_out:
            return scene


def edit(
    scene: Scene,
    *,
    shape: str | None = None,
    color: str | None = None,
    background: str | None = None,
    direction: str | None = None,
) -> Scene:
    """Change words of a scene and nothing else; a new direction keeps the middle frame.

    Args:
        scene: The source.
        shape: The new shape, or ``None`` to keep it; likewise the others.
        color: The object's new color.
        background: The new background.
        direction: The new direction of motion.

    Raises:
        ValueError: A word that this world does not have.
    """
    words = {"shape": shape, "color": color, "background": background, "direction": direction}
    changes = {name: word for name, word in words.items() if word is not None}
    return replace(scene, **changes)  # type: ignore[arg-type]


def sample_edit(scene: Scene, names: Sequence[str], generator: torch.Generator) -> Scene:
    """Draw an edit: another word for each of the names, and a combination that was trained on.

    Args:
        scene: The source.
        names: What changes, of ``shape``, ``color``, ``background``, ``direction``.
        generator: The only source of randomness; lives on the CPU.
    """
    while True:
        changes = {}
        for name in names:
            others = [word for word in WORDS[name] if word != getattr(scene, name)]
            changes[name] = others[int(torch.randint(len(others), (), generator=generator))]
        edited = edit(scene, **changes)
        if not edited.held_out:
            return edited


def render(scene: Scene, num_frames: int = NUM_FRAMES) -> Frames:
    """Draw a scene.

    Args:
        scene: What it shows.
        num_frames: Its length; a longer one begins earlier and ends later, with the same middle frame.

    Returns:
        (f, 3, 64, 64) uint8 RGB.
    """
    coverage = _scene_coverage(scene, num_frames)[:, None]
    x, y = make_grid()
    shade = scene.shade_x * (x / SIZE - 0.5) + scene.shade_y * (y / SIZE - 0.5)
    background = _rgb(BACKGROUNDS[scene.background]) + shade
    frames = background + coverage * (_rgb(COLORS[scene.color]) - background)
    return frames.round().clamp(0, 255).to(torch.uint8)


def mask(scene: Scene) -> Tensor:
    """Where the object is.

    Returns:
        (9, 64, 64) bool.
    """
    return _scene_coverage(scene, NUM_FRAMES) > 0.5


def _rgb(color: tuple[int, int, int]) -> Tensor:
    return torch.tensor(color, dtype=torch.float32)[:, None, None]


def make_grid() -> tuple[Tensor, Tensor]:
    """Make the pixel centers: x of shape (1, 64) and y of shape (64, 1)."""
    axis = torch.arange(SIZE) + 0.5
    return axis[None, :], axis[:, None]


def _scene_coverage(scene: Scene, num_frames: int) -> Tensor:
    """How much of each pixel the object covers, (f, 64, 64) in 0 .. 1."""
    dx, dy = DIRECTIONS[scene.direction]
    travelled = scene.speed * (torch.arange(num_frames) - num_frames // 2)
    return make_coverage(scene.shape, scene.x + dx * travelled, scene.y + dy * travelled, torch.tensor(scene.radius))


def make_coverage(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Draw one antialiased shape a frame.

    Args:
        shape: One of `SHAPES`.
        x: (f,) centers in pixels from the left.
        y: (f,) the same from the top.
        radius: (f,) or () in pixels.

    Returns:
        (f, 64, 64), the share of each pixel that the shape covers, 0 .. 1.
    """
    grid_x, grid_y = make_grid()
    distance = _distance(shape, grid_x - x[:, None, None], grid_y - y[:, None, None], radius.reshape(-1, 1, 1))
    return (0.5 - distance / _EDGE).clamp(0, 1)


def _distance(shape: str, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Signed distance to the outline in pixels, negative inside; near the outline it is exact but for the corners."""
    if shape == "circle":
        return torch.hypot(x, y) - 0.95 * radius
    if shape == "square":
        return torch.maximum(x.abs(), y.abs()) - 0.85 * radius
    if shape == "triangle":  # apex (0, -1), base corners (-+0.95, 0.75), in radii
        width, height = 0.95, 1.75
        side = (height * x.abs() - width * (y + radius)) / (width**2 + height**2) ** 0.5
        return torch.maximum(side, y - 0.75 * radius)
    arm = 0.35 * radius
    upright = torch.maximum(x.abs() - arm, y.abs() - radius)
    level = torch.maximum(x.abs() - radius, y.abs() - arm)
    return torch.minimum(upright, level)
