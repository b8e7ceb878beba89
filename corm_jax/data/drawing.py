"""Procedural drawings behind `spurious_shapes`: foreground shapes and background textures."""

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
# One texture a class: noise filtered to a band around (direction in degrees from the horizontal,
# frequency in cycles per pixel) and its mirror image, so that a horizontal flip changes none.
TEXTURES = {
    "grass": (0, 0.36),
    "ripples": (90, 0.36),
    "gauze": (45, 0.36),
    "reeds": (0, 0.2),
    "waves": (90, 0.2),
    "lattice": (45, 0.2),
}
BANDWIDTH = 0.07  # standard deviation of a band in cycles per pixel

SUPERSAMPLING = 4  # shapes are drawn this much larger, then averaged: soft edges
TEXTURE_CONTRAST = 0.1  # standard deviation of a texture around the background's colour
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
    """Draws one texture.

    Args:
      texture: one of TEXTURES.
      size: height and width in pixels.
      rng: where the noise comes from.

    Returns:
      float32 [size, size] of mean 0 and standard deviation 1.
    """
    direction, frequency = TEXTURES[texture]
    x = frequency * np.cos(np.deg2rad(direction))
    y = frequency * np.sin(np.deg2rad(direction))
    frequencies_y, frequencies_x = np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :]
    gain = np.zeros((size, size))
    for center_x, center_y in {(x, y), (-x, -y), (x, -y), (-x, y)}:
        distance = np.hypot(frequencies_x - center_x, frequencies_y - center_y)
        gain += np.exp(-((distance / BANDWIDTH) ** 2) / 2)
    spectrum = np.fft.fft2(rng.standard_normal((size, size))) * gain
    values = np.fft.ifft2(spectrum).real
    values -= values.mean()
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
