"""Pictures drawn in milliseconds: pixels by OpenCV, words by Pillow, charts with plot's axes."""

import io
from collections.abc import Sequence
from functools import cache, lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sigexp.report.plot import Axis, short

Color = tuple[int, int, int]
BLACK, GREY, PALE, LIGHT, WHITE = (30, 30, 30), (120, 120, 120), (190, 190, 190), (215, 215, 215), (255, 255, 255)
BLUE, ORANGE, RED = (31, 119, 180), (230, 120, 20), (200, 40, 40)
OTHERS = (ORANGE, (20, 130, 70), (140, 80, 170), (150, 100, 40))  # of lines beside a blue one
BETWEEN = 14  # pixels from name to name
SUBPIXEL = 4  # bits of OpenCV's coordinates
WORDS = 4096  # that a font remembers how it drew
SHADES = 4097  # of a scale, its own colours among them
BLUE_WHITE_RED = np.array([[33, 84, 160], [125, 170, 215], [255, 255, 255], [240, 150, 120], [170, 20, 40]], np.float32)
HEAT = np.array([[0, 0, 0], [80, 18, 123], [182, 54, 121], [251, 136, 97], [252, 253, 191]], np.float32)
VIRIDIS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [240, 220, 40]], np.float32)


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    found = ImageFont.load_default(size)
    if isinstance(found, ImageFont.FreeTypeFont):  # the same words come again and again, and setting them is slow
        found.getmask2 = lru_cache(WORDS)(found.getmask2)  # type: ignore[method-assign, assignment]
    return found


class Canvas:
    """RGB pixels [H, W, 3], white at first. Places are (x, y) in pixels from the upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self.pixels = np.full((height, width, 3), 255, np.uint8)
        self.words: list[tuple[float, float, str, str, int, Color]] = []

    @property
    def width(self) -> int:
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        return self.pixels.shape[0]

    def text(self, x: float, y: float, words: str, anchor: str = "mm", size: int = 12, color: Color = BLACK) -> None:
        """Words, placed by Pillow's anchor: l, m, r and t, m, b."""
        self.words.append((x, y, words, anchor.replace("t", "a").replace("b", "d"), size, color))

    def paste(self, image: np.ndarray, x: int, y: int) -> None:
        """An image [h, w, 3] uint8, cut where it leaves the canvas."""
        part = self.pixels[y : y + image.shape[0], x : x + image.shape[1]]
        part[:] = image[: part.shape[0], : part.shape[1]]

    def line(self, points: np.ndarray, color: Color, thickness: int = 1) -> None:
        """A polyline [N, 2], smooth; points that are not finite break it."""
        finite = np.isfinite(points).all(1)
        for run in np.split(np.arange(len(points)), np.flatnonzero(np.diff(finite)) + 1):
            if len(run) and finite[run[0]]:
                bounded = np.clip(points[run], -4000, 20000)
                places = np.round(bounded * 2**SUBPIXEL).astype(np.int32)
                cv2.polylines(self.pixels, [places], False, color, thickness, cv2.LINE_AA, SUBPIXEL)

    def dot(self, x: float, y: float, color: Color, radius: float = 3) -> None:
        place = tuple(round(v * 2**SUBPIXEL) for v in (x, y))
        cv2.circle(self.pixels, place, round(radius * 2**SUBPIXEL), color, -1, cv2.LINE_AA, SUBPIXEL)

    def frame(self, left: int, top: int, right: int, bottom: int, color: Color = LIGHT) -> None:
        cv2.rectangle(self.pixels, (left, top), (right, bottom), color)

    def axes(self, x: Axis, y: Axis, x_name: str = "", y_name: str = "") -> None:
        """Grid, ticks and names; drawn before what is inside."""
        left, right, low, high = round(x.start), round(x.end), round(y.start), round(y.end)
        for tick in y.ticks():
            self.line(np.array([[left, y.at(tick)], [right, y.at(tick)]]), LIGHT)
            self.text(left - 5, y.at(tick), short(tick), "rm", 11, GREY)
        for tick in x.ticks():
            self.line(np.array([[x.at(tick), low], [x.at(tick), low + 4]]), GREY)
            self.text(x.at(tick), low + 6, short(tick), "mt", 11, GREY)
        self.line(np.array([[left, high], [left, low], [right, low]]), GREY)
        if x_name:
            self.text((left + right) / 2, low + 34, x_name, "mb", 12)
        if y_name:
            self.text(left, high - 6, y_name, "lb", 12)

    def signal(self, x: Axis, y: Axis, values: np.ndarray, color: Color, thickness: int = 1) -> None:
        """A sequence [T] over its indices."""
        across = np.linspace(x.start, x.end, len(values))
        span = (y.end - y.start) / (y.high - y.low)
        self.line(np.stack([across, y.start + span * (values - y.low)], 1), color, thickness)

    def png(self, *, full_color: bool = False) -> bytes:
        """As PNG, of 256 colours unless `full_color`: a third of the size."""
        image = Image.fromarray(self.pixels)
        draw = ImageDraw.Draw(image)
        for x, y, words, anchor, size, color in self.words:
            draw.text((x, y), words, fill=color, font=font(size), anchor=anchor)
        return encoded(image, full_color=full_color)


def encoded(image: Image.Image, *, full_color: bool = False) -> bytes:
    buffer = io.BytesIO()
    reduced = image if full_color else image.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    reduced.save(buffer, format="png", compress_level=3)
    return buffer.getvalue()


def fitted(words: str, width: float, size: int = 12) -> str:
    """The words, cut so that they are no wider than `width` pixels."""
    if font(size).getlength(words) <= width:
        return words
    while len(words) > 1 and font(size).getlength(words + "...") > width:
        words = words[:-1]
    return words.rstrip() + "..."


def colored(values: np.ndarray, low: float, high: float, scale: np.ndarray = BLUE_WHITE_RED) -> np.ndarray:
    """Values of any shape as colours [..., 3] uint8 of a scale from `low` to `high`; what is not finite in grey."""
    inside = np.clip(np.nan_to_num(values), low, high)
    place = (inside - low) * ((SHADES - 1) / max(high - low, 1e-30))
    number = np.clip(np.rint(place), 0, SHADES - 1).astype(np.uint16)
    found = np.take(_shades(scale.tobytes(), len(scale)), number, axis=0)
    finite = np.isfinite(values)
    if not np.all(finite):
        found[~finite] = LIGHT
    return found


@cache
def _shades(scale: bytes, count: int) -> np.ndarray:
    """Colours [SHADES, 3] uint8 of a scale [count, 3] float32; looked up, because layers have millions of weights."""
    colors, grid = np.frombuffer(scale, np.float32).reshape(count, 3), np.linspace(0, count - 1, SHADES)
    return np.stack([np.interp(grid, np.arange(count), colors[:, c]) for c in range(3)], -1).round().astype(np.uint8)


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """An image [h, w, ...] whose longer side is `side`: pixels repeated, or averaged where there are more."""
    times = side / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * times)), max(1, round(image.shape[0] * times)))
    return cv2.resize(image, size, interpolation=cv2.INTER_NEAREST_EXACT if times >= 1 else cv2.INTER_AREA)


def color_bar(canvas: Canvas, left: int, top: int, height: int, names: tuple[str, str], scale: np.ndarray) -> None:
    """A scale of colours, its greatest value at the top; names: of the greatest and of the least."""
    canvas.paste(colored(np.linspace(1, 0, height)[:, None].repeat(14, 1), 0, 1, scale), left, top)
    canvas.text(left + 19, top, names[0], "lt", 11, GREY)
    canvas.text(left + 19, top + height, names[1], "lb", 11, GREY)


def rgb(image: np.ndarray) -> np.ndarray:
    """[..., 3] in 0..1 as uint8."""
    return np.nan_to_num(255 * image).round().clip(0, 255).astype(np.uint8)


def legend(canvas: Canvas, x: float, y: float, entries: Sequence[tuple[str, Color]], size: int = 12) -> None:
    """Names in their colours, side by side."""
    for name, color in entries:
        canvas.text(x, y, name, "lm", size, color)
        x += font(size).getlength(name) + BETWEEN


def legend_width(entries: Sequence[tuple[str, Color]], size: int = 12) -> float:
    return sum(font(size).getlength(name) + BETWEEN for name, _ in entries) - BETWEEN
