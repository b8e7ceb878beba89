"""Procedural drawings behind `spurious_shapes`: foreground shapes and background textures."""

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
# One texture a class. Each is symmetric under a horizontal flip, which training augments with.
TEXTURES = ("waves", "reeds", "checks", "dots", "ripples", "grain")

SUPERSAMPLING = 4  # shapes are drawn this much larger, then averaged: soft edges
TEXTURE_CONTRAST = 0.07  # standard deviation of a texture around the background's colour
PIXEL_NOISE = 0.01  # standard deviation of camera noise


def _outline(shape: str) -> np.ndarray:
    """Returns the vertices [n, 2] of a polygon shape inside the unit disc."""
    if shape == "square":
        angles = np.pi / 4 + np.arange(4) * np.pi / 2
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if shape == "triangle":
        angles = -np.pi / 2 + np.arange(3) * 2 * np.pi / 3
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if shape == "star":
        angles = -np.pi / 2 + np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
        return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    if shape == "cross":
        a, b = 0.95, 0.3
        corners = [(a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b)]
        return np.array(corners + [(-x, -y) for x, y in corners])
    raise ValueError(f"{shape!r} is not a polygon")


def draw_shape(
    shape: str, size: int, center: tuple[float, float], radius: float, angle: float
) -> np.ndarray:
    """Draws one shape.

    Args:
      shape: one of SHAPES.
      size: height and width of the drawing in pixels.
      center: (x, y) of the shape's centre in pixels.
      radius: radius of the circle around the shape in pixels.
      angle: rotation in radians.

    Returns:
      float32 [size, size]: the share of each pixel that the shape covers, in [0, 1].
    """
    canvas = Image.new("L", (size * SUPERSAMPLING,) * 2)
    pen = ImageDraw.Draw(canvas)
    x, y = (c * SUPERSAMPLING for c in center)
    r = radius * SUPERSAMPLING
    if shape in ("circle", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if shape == "ring":
            hole = 0.55 * r
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    else:
        cos, sin = np.cos(angle), np.sin(angle)
        points = _outline(shape) @ np.array([[cos, sin], [-sin, cos]]) * r + (x, y)
        pen.polygon([tuple(p) for p in points], fill=255)
    coverage = np.asarray(canvas, np.float32) / 255.0
    return coverage.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING).mean(axis=(1, 3))


def draw_texture(texture: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws one texture at a random scale and phase.

    Args:
      texture: one of TEXTURES.
      size: height and width in pixels.
      rng: where the scale and the phase come from.

    Returns:
      float32 [size, size] of mean 0 and standard deviation 1.
    """
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    period = rng.uniform(3.0, 4.0)
    k = 2 * np.pi / period
    phase_x, phase_y = rng.uniform(0, 2 * np.pi, size=2)
    if texture == "waves":
        values = np.sin(k * y + 1.2 * np.sin(x * k / 4 + phase_x) + phase_y)
    elif texture == "reeds":
        values = np.sin(k * x + phase_x)
    elif texture == "checks":
        values = np.sign(np.sin(k * x / 2 + phase_x) * np.sin(k * y / 2 + phase_y))
    elif texture == "dots":
        values = np.maximum(np.sin(k * x + phase_x) + np.sin(k * y + phase_y), 0.6)
    elif texture == "ripples":
        cx, cy = rng.uniform(0, size, size=2)
        values = np.sin(k * np.hypot(x - cx, y - cy))
    elif texture == "grain":
        values = rng.standard_normal((size // 2, size // 2)).repeat(2, axis=0).repeat(2, axis=1)
    else:
        raise ValueError(f"unknown texture {texture!r}")
    values = values - values.mean()
    return (values / values.std()).astype(np.float32)


def draw_image(
    shape: str, texture: str, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws a shape of a random colour, place, size and angle on a textured background.

    Args:
      shape: one of SHAPES.
      texture: one of TEXTURES.
      size: height and width in pixels.
      rng: where everything random comes from.

    Returns:
      (image uint8 [size, size, 3], core mask uint8 [size, size] with 255 on the shape).
    """
    background = rng.uniform(0.25, 0.75, size=3)
    # The shape's brightness differs from the background's by at least 0.3, either way.
    offset = rng.uniform(0.3, 0.5) * (1 if background.mean() < 0.5 else -1)
    foreground = np.clip(background + offset + rng.uniform(-0.1, 0.1, size=3), 0, 1)
    radius = size * rng.uniform(0.28, 0.4)
    center = tuple(rng.uniform(radius + 1, size - radius - 1, size=2))
    mask = draw_shape(shape, size, center, radius, rng.uniform(-0.3, 0.3))
    canvas = background + TEXTURE_CONTRAST * draw_texture(texture, size, rng)[..., None]
    canvas = canvas + mask[..., None] * (foreground - canvas)
    canvas = canvas + PIXEL_NOISE * rng.standard_normal((size, size, 3))
    image = np.clip(np.rint(canvas * 255), 0, 255).astype(np.uint8)
    return image, np.rint(mask * 255).astype(np.uint8)
