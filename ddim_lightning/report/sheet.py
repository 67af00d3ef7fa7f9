"""A contact sheet shows a clip: one row a video, with its frames from the first to the last and its prompt."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ddim_lightning.report.text import make_plain
from ddim_lightning.types import Frames

_COLUMNS = 9
_THUMB = (216, 160)  # the box a frame is fitted into, width and height
_LABELS = 280  # width of the column of labels
_MARGIN, _GAP, _ROW_GAP = 40, 8, 28
_BACKGROUND, _INK, _FAINT = "#ffffff", "#1c1c1e", "#6b6b70"
_TITLE, _LABEL, _TEXT, _SMALL = 26, 19, 15, 13  # font sizes in pixels


@dataclass(frozen=True)
class Row:
    """A `Row` is one video of a sheet.

    Args:
        label: What it is, ``source`` for example.
        frames: (f, c, h, w) uint8; every row of a sheet has the same shape.
        text: The prompt; wrapped.
        note: A short line of numbers.
    """

    label: str
    frames: Frames
    text: str = ""
    note: str = ""


def make_sheet(rows: Sequence[Row], *, title: str, subtitle: str = "", fps: Fraction) -> Image.Image:
    """Draw the sheet; equal rows give equal pixels.

    Args:
        rows: From top to bottom.
        title: The first line.
        subtitle: The smaller line below it.
        fps: Frames per second, for the times above the columns.

    Returns:
        An RGB image of about 1500 .. 2300 pixels in width.

    Raises:
        ValueError: When the rows have different shapes.
    """
    shapes = {tuple(row.frames.shape) for row in rows}
    if len(shapes) != 1:
        raise ValueError(f"rows: must have one shape, got {sorted(shapes)}")
    (num_frames, _, height, width) = shapes.pop()
    columns = _choose_columns(num_frames)
    thumb = _fit(width, height)
    blocks = [_label_lines(row) for row in rows]
    heights = [max(thumb[1], _block_height(block)) for block in blocks]
    top = _MARGIN + _line_height(_TITLE) + (_line_height(_TEXT) if subtitle else 0) + _ROW_GAP
    first_row = top + _line_height(_SMALL) + _GAP
    left = _MARGIN + _LABELS + 2 * _GAP
    size = (
        left + len(columns) * (thumb[0] + _GAP) - _GAP + _MARGIN,
        first_row + sum(heights) + _ROW_GAP * (len(rows) - 1) + _MARGIN,
    )
    sheet = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), _shorten(title, _TITLE, size[0] - 2 * _MARGIN), _INK, ImageFont.load_default(_TITLE))
    subtitle_top = _MARGIN + _line_height(_TITLE)
    subtitle = _shorten(subtitle, _TEXT, size[0] - 2 * _MARGIN)
    draw.text((_MARGIN, subtitle_top), subtitle, _FAINT, ImageFont.load_default(_TEXT))
    draw.text((_MARGIN, top), "frame  ·  time", _FAINT, ImageFont.load_default(_SMALL))
    for position, index in enumerate(columns):
        caption = f"{index}  ·  {float(index / fps):.2f} s"
        draw.text((left + position * (thumb[0] + _GAP), top), caption, _FAINT, ImageFont.load_default(_SMALL))
    y = first_row
    for row, block, row_height in zip(rows, blocks, heights, strict=True):
        _draw_block(draw, (_MARGIN, y), block)
        for position, index in enumerate(columns):
            sheet.paste(_thumbnail(row.frames, index, thumb), (left + position * (thumb[0] + _GAP), y))
        y += row_height + _ROW_GAP
    return sheet


def write_sheet(path: str | Path, rows: Sequence[Row], *, title: str, subtitle: str = "", fps: Fraction) -> None:
    """Draw a sheet and write it as a PNG; see `make_sheet`."""
    make_sheet(rows, title=title, subtitle=subtitle, fps=fps).save(path, format="PNG", optimize=False)


def _choose_columns(num_frames: int) -> list[int]:
    """Indices from the first frame to the last, evenly spread, all of them when they fit."""
    count = min(_COLUMNS, num_frames)
    return [round(position * (num_frames - 1) / max(count - 1, 1)) for position in range(count)]


def _fit(width: int, height: int) -> tuple[int, int]:
    scale = min(_THUMB[0] / width, _THUMB[1] / height)
    # Small frames grow by whole factors, so that a pixel stays a square.
    scale = float(int(scale)) if scale >= 1 else scale
    return max(1, round(width * scale)), max(1, round(height * scale))


def _thumbnail(frames: Frames, index: int, size: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(frames[index].permute(1, 2, 0).cpu().contiguous().numpy())
    grows = size[0] >= image.width
    return image.resize(size, Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS)


_Line = tuple[str, int, str]  # text, font size, color


def _label_lines(row: Row) -> list[_Line]:
    lines: list[_Line] = [(_shorten(row.label, _LABEL, _LABELS), _LABEL, _INK)]
    lines += [(text, _TEXT, _INK) for text in _wrap(row.text, _TEXT, _LABELS, most=6)]
    return lines + [(text, _SMALL, _FAINT) for text in _wrap(row.note, _SMALL, _LABELS, most=2)]


def _draw_block(draw: ImageDraw.ImageDraw, corner: tuple[int, int], block: Sequence[_Line]) -> None:
    x, y = corner
    for text, size, color in block:
        draw.text((x, y), text, color, ImageFont.load_default(size))
        y += _line_height(size)


def _block_height(block: Sequence[_Line]) -> int:
    return sum(_line_height(size) for _, size, _ in block)


def _line_height(size: int) -> int:
    return round(size * 1.45)


def _wrap(text: str, size: int, width: int, *, most: int) -> list[str]:
    """Break a text between words; what does not fit into ``most`` lines ends in an ellipsis."""
    font = ImageFont.load_default(size)
    lines: list[str] = []
    for word in map(make_plain, _bound(text, most * width).split()):
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} …"]
    return [_shorten(line, size, width) for line in lines]


def _shorten(text: str, size: int, width: int) -> str:
    """Cut a line that is too wide, and say so by an ellipsis."""
    font, text = ImageFont.load_default(size), make_plain(_bound(text, width))
    if font.getlength(text) <= width:
        return text
    text = text.removesuffix(" …")
    count = bisect_right(range(len(text) + 1), float(width), key=lambda k: font.getlength(f"{text[:k]}…"))
    return f"{text[: max(count - 1, 0)].rstrip()}…"  # the longest beginning that fits


def _bound(text: str, most: int) -> str:
    """Cut a text that has more letters than there are pixels for them: to measure a letter takes its time."""
    return text if len(text) <= most else f"{text[:most]} …"
