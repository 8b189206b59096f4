"""Turn a decoded frame into the image that a viewer sees: upright, square pixels, standard range."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorTrc, VideoReformatter
from PIL import Image

SIDE = 512  # larger images are reduced at once, as uploads are
MAX_ASPECT = 4  # of a pixel; more is a broken header
WHITE_NITS = 203.0  # of diffuse white in HDR (ITU-R BT.2408)
KNEE = 0.6  # of diffuse white
BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)


def display_matrix(frame: av.VideoFrame) -> list[int]:
    """Return the first five numbers of a frame's display matrix, the identity if it has none.

    Looking at the side data of a frame keeps the frame until the next garbage collection.
    """
    data = frame.side_data.get(SideDataType.DISPLAYMATRIX)
    return [1, 0, 0, 0, 1] if data is None else np.frombuffer(bytes(data)[:20], np.int32).tolist()


def upright_image(
    frame: av.VideoFrame, pixel_aspect: Fraction | None, matrix: list[int], reformatter: VideoReformatter
) -> Image.Image:
    """Return a frame as RGB of at most `SIDE` pixels, turned as its display matrix says.

    Args:
        reformatter: one for all frames of a video; a new one for each costs more than the conversion.
    """
    image = Image.fromarray(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())
    aspect = float(pixel_aspect or 1)
    width, height = image.size
    if aspect != 1 and 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        width, height = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
    scale = min(1.0, SIDE / max(width, height))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    if frame.color_trc in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67):
        image = _tone_mapped(image, hlg=frame.color_trc == ColorTrc.ARIB_STD_B67)
    return _turned(image, matrix)


def _turned(image: Image.Image, matrix: list[int]) -> Image.Image:
    """Return the image after the quarter turns and flips of a display matrix."""
    a, b, _, c, d = matrix
    if abs(b) > abs(a):
        # Rows and columns change places; then each axis may be mirrored.
        image, a, d = image.transpose(Image.Transpose.TRANSPOSE), c, b
    if a < 0:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if d < 0:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image


def _tone_mapped(image: Image.Image, *, hlg: bool) -> Image.Image:
    """Return an HDR image (PQ or HLG, BT.2020) in sRGB: diffuse white near the top, highlights pressed."""
    signal = np.arange(256, dtype=np.float32) / 255
    light = _hlg_nits(signal) if hlg else _pq_nits(signal)
    linear = (light / WHITE_NITS)[np.asarray(image)] @ BT2020_TO_BT709.T
    linear = np.maximum(linear, 0)
    # The largest channel bends from KNEE on, so that hues stay; diffuse white becomes 85 % of the range.
    largest = np.maximum(linear.max(-1, keepdims=True), 1e-6)
    bent = KNEE + (1 - KNEE) * (1 - np.exp(-(largest - KNEE) / (1 - KNEE)))
    linear = np.clip(linear * np.where(largest > KNEE, bent / largest, 1), 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return Image.fromarray((255 * srgb).round().astype(np.uint8))


def _pq_nits(signal: np.ndarray) -> np.ndarray:
    """Return the light of a PQ signal in cd/m² (SMPTE ST 2084)."""
    power = signal ** (1 / 78.84375)
    base = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
    return np.asarray(10000 * base ** (1 / 0.1593017578125), np.float32)


def _hlg_nits(signal: np.ndarray) -> np.ndarray:
    """Return the light of an HLG signal on a display of 1,000 cd/m² (ITU-R BT.2100), channel by channel."""
    scene = np.where(
        signal <= 0.5, signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
    )
    return np.asarray(1000 * scene**1.2, np.float32)
