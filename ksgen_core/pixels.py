"""The one module that changes the layout or the range of pictures.

Between stages a picture is float32 RGB 0..1 `[H, W, 3]` on the CPU, a film `[F, H, W, 3]` (HOUSE.md, example 6).
Legend: H, W height and width in pixels, F frames, B pictures, C channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import KSGenError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

PREVIEW_HEIGHT = 128
"""In pixels. At SDXL's full size seven previews side by side took 0.2 s of the processor after every update."""
MIN_SIDE = 16
"""A smaller picture shows nothing that could be continued."""
MAX_PIXELS = 100_000_000
"""A larger picture is a mistake or a decompression bomb; Pillow warns from 89 million on."""


def to_uint8(picture: torch.Tensor) -> np.ndarray:
    """float 0..1 `[..., C]` -> uint8 0..255 NumPy array of the same shape, rounded to the nearest."""
    import torch

    return (picture.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def cut_to_uint8(picture: torch.Tensor) -> np.ndarray:
    """float 0..1 `[..., C]` -> uint8 0..255 NumPy array of the same shape, cut off as the host's own save nodes do.

    So what is kept of a picture is, bit for bit, what the host would have saved; cutting once more changes nothing.
    """
    import torch

    return (picture.detach().float() * 255).clamp(0, 255).to(torch.uint8).cpu().numpy()


def from_uint8(array: np.ndarray) -> torch.Tensor:
    """uint8 0..255 `[..., C]` -> float32 0..1 tensor of the same shape on the CPU."""
    import numpy as np
    import torch

    return torch.from_numpy(np.array(array, dtype=np.float32)) / 255


def on_8_bit_grid(picture: torch.Tensor) -> torch.Tensor:
    """The picture as an 8-bit file would give it back, so that a saved and a fresh run are equal."""
    return from_uint8(to_uint8(picture))


def to_pil(picture: torch.Tensor) -> Image.Image:
    """float 0..1 `[H, W, 3]` -> PIL picture in RGB."""
    from PIL import Image

    return Image.fromarray(to_uint8(picture))


def from_pil(image: Image.Image) -> torch.Tensor:
    """PIL picture of any mode -> float32 0..1 `[H, W, 3]`; transparency over white, grey repeated, EXIF obeyed."""
    import numpy as np
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        # 16-bit and float greys: Pillow would cut off at 255.
        grey = np.asarray(image, dtype=np.float32)
        top = 65535.0 if grey.max() > 255 else 255.0
        image = Image.fromarray((grey.clip(0, top) / top * 255).round().astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return from_uint8(np.asarray(image.convert("RGB")))


def read_picture(path: str | Path) -> torch.Tensor:
    """A picture file -> float32 0..1 `[H, W, 3]`, checked by `one_picture`.

    Raises `KSGenError`, naming the file, if it is missing, no picture, tiny or huge.
    """
    from PIL import Image

    path = Path(path)
    if not path.is_file():
        raise KSGenError(f"The picture {path} is not there. Give the path of a PNG, JPEG or WebP file.")
    try:
        with Image.open(path) as image:
            _check_size(image.width, image.height, str(path))
            return from_pil(image)
    except Image.DecompressionBombError as error:
        raise KSGenError(f"{path} is too large ({error}). Give a picture of at most {MAX_PIXELS} pixels.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise KSGenError(f"{path} cannot be read as a picture ({error}). Give a PNG, JPEG or WebP file.") from error


def one_picture(picture: torch.Tensor) -> torch.Tensor:
    """A picture of any usual shape -> float32 RGB 0..1 `[H, W, 3]` on the CPU; what was given stays as it was.

    Takes `[H, W]`, `[H, W, C]` and a batch of one `[1, H, W, C]` with C = 1 (grey), 3 (RGB) or 4 (RGBA, laid over
    white). Raises `KSGenError` for a batch of several, a tiny or a huge picture, other channels, NaN, or values
    that are not 0..1.
    """
    import torch

    shape = tuple(picture.shape)
    if picture.ndim == 4:
        if shape[0] != 1:
            raise KSGenError(f"One initial picture is wanted, got a batch of {shape[0]}. Choose one of them.")
        picture = picture[0]
    if picture.ndim == 2:
        picture = picture[..., None]
    if picture.ndim != 3 or picture.shape[-1] not in (1, 3, 4):
        raise KSGenError(
            f"A picture is height x width x 1, 3 or 4 channels, got the shape {shape}. Give one RGB picture."
        )
    _check_size(picture.shape[1], picture.shape[0], "The picture")
    if not picture.is_floating_point():
        raise KSGenError(f"Picture values must be floats from 0 to 1, got {picture.dtype}. Divide 8-bit values by 255.")
    picture = picture.detach().to("cpu", torch.float32)
    low, high = float(picture.min()), float(picture.max())
    # Resampling overshoots a little; the host's own nodes do that too.
    if not (-0.1 <= low and high <= 1.1):
        raise KSGenError(f"Picture values must lie from 0 to 1, got {low:.3g} to {high:.3g}. Rescale the picture.")
    picture = picture.clamp(0, 1)
    if picture.shape[-1] == 1:
        return picture.repeat(1, 1, 3)
    if picture.shape[-1] == 4:
        colour, alpha = picture[..., :3], picture[..., 3:]
        return colour * alpha + (1 - alpha)
    return picture.clone()


def fit(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`[H, W, 3]` -> `[height, width, 3]`: the largest centred part of the wanted shape, resized (Lanczos).

    A picture of that size comes back with the same values. The result lies on the 8-bit grid.
    """
    from PIL import Image, ImageOps

    picture = one_picture(picture)
    if picture.shape[:2] == (height, width):
        return on_8_bit_grid(picture)
    return from_pil(ImageOps.fit(to_pil(picture), (width, height), Image.Resampling.LANCZOS))


def _check_size(width: int, height: int, what: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise KSGenError(
            f"{what} is {width}x{height} pixels, which is too small. Give a picture of at least {MIN_SIDE}x{MIN_SIDE}."
        )
    if width * height > MAX_PIXELS:
        raise KSGenError(
            f"{what} is {width}x{height} pixels, which is too large. Make it smaller, e.g. 2048 pixels a side."
        )


def latent_colours(latent: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Least-squares factors [Z + 1, 3] from a latent [Z, h, w] to the colours of its own picture [H, W, 3].

    Rough, but free of any stored constant, and right for whatever VAE there is.
    """
    import torch

    height, width = latent.shape[-2:]
    small = torch.nn.functional.adaptive_avg_pool2d(image.movedim(-1, 0), (height, width)).flatten(1).T
    return torch.linalg.lstsq(_with_one(latent.float().cpu().flatten(1).T), small, driver="gelsd").solution


def preview_height(rows: int, height: int) -> int:
    """How high the preview of a picture of that height is, whose latents have so many rows: a multiple of them."""
    return min(height, max(rows, PREVIEW_HEIGHT // rows * rows))


def preview(latents: torch.Tensor, colours: torch.Tensor, height: int) -> torch.Tensor:
    """Latents [B, Z, h, w] -> one rough picture [height, B * width, 3], the B side by side."""
    import torch

    rough = _with_one(latents.float().cpu().movedim(1, -1)) @ colours
    scale = height // rough.shape[1]
    row = torch.cat(list(rough.clamp(0, 1)), dim=1)
    return row.repeat_interleave(scale, 0).repeat_interleave(scale, 1)


def _with_one(x: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
