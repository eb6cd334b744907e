"""Pictures of unknown origin, read as tensors: a file's size and form are checked before it is decoded."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gauntlet.errors import DataError

__all__ = ["converted", "is_grey", "read_folder", "read_overlay", "resized"]

_PIXELS = 1 << 22
_BYTES = 1 << 25
_FILES = 100_000
_KINDS = ("PNG", "JPEG")
_GREY = frozenset({"1", "L", "LA"})
_COLOUR = frozenset({"RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr"})


def is_grey(image: Image.Image, where: str) -> bool:
    """Whether the picture has no colours. DataError, beginning with `where`, when it has not 8 bits a channel: Pillow
    converts those of 16 by cutting them off at 255, which is white.
    """
    if image.mode not in _GREY | _COLOUR:
        raise DataError(f"{where}: images of mode {image.mode} are not taken; legal: 8 bits a channel, grey or colour")
    return image.mode in _GREY


def converted(image: Image.Image, mode: str, where: str) -> Image.Image:
    """The picture, decoded, in the mode L, RGB or RGBA; DataError as `is_grey`."""
    is_grey(image, where)
    if image.mode == mode:
        image.load()
        return image
    # A palette with transparency goes through RGBA, or Pillow warns.
    return (image.convert("RGBA") if image.mode in {"P", "PA"} else image).convert(mode)


def read_overlay(path: Path) -> Tensor:
    """float32 [4, H, W] in [0, 1] of a PNG or JPEG: red, green and blue times opacity, and opacity.

    DataError, naming the file, when it is absent, no picture, too large, or transparent everywhere.
    """
    return _overlay(path.resolve(), *_state(path))


@lru_cache(maxsize=32)
def _overlay(path: Path, size: int, changed: int) -> Tensor:  # noqa: ARG001
    levels = torch.from_numpy(_decoded(path, "RGBA")).float().div(255).permute(2, 0, 1)
    overlay = torch.cat([levels[:3] * levels[3:], levels[3:]])
    if not overlay[3].any():
        raise DataError(f"{path}: every pixel of the picture is transparent")
    return overlay


def read_folder(folder: Path) -> Tensor:
    """uint8 [N, C, H, W] of the PNG and JPEG files of a folder in the order of their names; grey ones have C = 1.

    DataError when there is none, when they differ in size, or when one can't be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder")
    files = sorted(item for item in folder.iterdir() if item.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not files or len(files) > _FILES:
        raise DataError(f"{folder} holds {len(files):,} PNG or JPEG files; legal: 1 to {_FILES:,}")
    return _folder(tuple((file.resolve(), *_state(file)) for file in files))


@lru_cache(maxsize=4)
def _folder(files: tuple[tuple[Path, int, int], ...]) -> Tensor:
    grey = all(_without_colours(path) for path, _, _ in files)
    images = []
    for path, _, _ in files:
        levels = torch.from_numpy(_decoded(path, "L" if grey else "RGB"))
        images.append(levels[None] if grey else levels.permute(2, 0, 1))
        if images[-1].shape != images[0].shape:
            raise DataError(f"{path} has {list(images[-1].shape)}, {files[0][0].name} {list(images[0].shape)}")
    return torch.stack(images)


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [N, C, H, W] to uint8 [N, C, *size], by Pillow's bilinear filter, which widens where it shrinks."""
    height, width = size
    if tuple(images.shape[2:]) == (height, width):
        return images
    made = np.empty((*images.shape[:2], height, width), np.uint8)
    for row, image in enumerate(images.numpy()):
        for channel, levels in enumerate(image):
            picture = Image.fromarray(np.ascontiguousarray(levels)).resize((width, height), Image.Resampling.BILINEAR)
            made[row, channel] = np.asarray(picture)
    return torch.from_numpy(made)


def _state(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from None
    if not path.is_file() or not 0 < found.st_size <= _BYTES:
        raise DataError(f"{path} is no file of 1 to {_BYTES:,} bytes")
    return found.st_size, found.st_mtime_ns


def _without_colours(path: Path) -> bool:
    try:
        with Image.open(path, formats=_KINDS) as picture:
            return is_grey(picture, str(path))
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
        raise DataError(f"{path} is no PNG or JPEG picture") from None


def _decoded(path: Path, mode: str) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    try:
        with Image.open(path, formats=_KINDS) as picture:
            if picture.width * picture.height > _PIXELS:
                raise DataError(
                    f"{path} has {picture.width}x{picture.height} pixels; legal: at most {_PIXELS:,} in all"
                )
            return np.array(converted(picture, mode, str(path)), dtype=np.uint8)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise DataError(f"{path} is no PNG or JPEG picture, or a damaged one") from None
