"""One image for `gauntlet predict`, and a whole file of them for `gauntlet eval`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gauntlet.audit.bundle import Bundle, open_bundle
from gauntlet.audit.parts import check_fit, fitting, task_entry
from gauntlet.audit.request import Request
from gauntlet.audit.setup import open_audit
from gauntlet.errors import DataError
from gauntlet.files import fault
from gauntlet.formats.pictures import converted
from gauntlet.images import chunks
from gauntlet.options import Options
from gauntlet.plugin import Kind
from gauntlet.progress import Silent
from gauntlet.registry import Registry
from gauntlet.stats import ratio
from gauntlet.task import LoadContext, TaskSource

__all__ = ["accuracy", "one_image"]

_MAX_BYTES = 1 << 26
_MAX_PIXELS = 1 << 24
_MODES = {1: "L", 3: "RGB"}


def one_image(path: Path, shape: tuple[int, int, int], *, resize: bool = False) -> Tensor:
    """uint8 [1, C, H, W] of a PNG or JPEG; DataError for another size, unless `resize` asks to make it fit."""
    channels, height, width = shape
    if channels not in _MODES:
        raise DataError(f"{path}: the model takes {channels} channels, which no PNG or JPEG has; legal: 1 or 3")
    if why := fault(path):
        raise DataError(f"{path}: {why}")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path} has more than {_MAX_BYTES >> 20} MiB")
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise DataError(f"{path}: {image.width}x{image.height} pixels; legal: at most {_MAX_PIXELS:,} in all")
            if image.size != (width, height) and not resize:
                raise DataError(
                    f"{path} is {image.height} high and {image.width} wide, the model takes {height} high and {width} "
                    "wide; --resize makes it fit"
                )
            plain = converted(image, _MODES[channels], str(path))
            if plain.size != (width, height):
                plain = plain.resize((width, height), Image.Resampling.BILINEAR)
            pixels: Any = np.array(plain, dtype=np.uint8)
    except DataError:
        raise
    except Exception as error:  # decoders meet hostile bytes with whatever comes to their mind
        raise DataError(f"{path} can't be read as a PNG or JPEG: {' '.join(str(error).split())}") from None
    values = torch.from_numpy(pixels)
    return (values[None] if channels == 1 else values.permute(2, 0, 1))[None].contiguous()


def accuracy(request: Request, plugins: tuple[Path, ...], warn: Callable[[str], None]) -> float:
    """The share of the clean images whose label the model, a file or a bundle, gives. Raises GauntletError.

    warn gets what looks wrong about the images, or the store.
    """
    registry = Registry.discover(plugins)
    if request.model.is_dir():
        return _bundle_accuracy(open_bundle(request.model, registry), request, registry, warn)
    return ratio(open_audit(request, Options(plugins=plugins), warn, Silent()).clean)


def _bundle_accuracy(bundle: Bundle, request: Request, registry: Registry, warn: Callable[[str], None]) -> float:
    entry = task_entry(request, bundle.classes, registry)
    if request.resize:
        entry = fitting(entry, registry, bundle.shape[1:], bundle.shape[0])
    source: TaskSource = registry.build(Kind.TASK, entry.name, entry.settings)
    raw = source.load(LoadContext(Options().data_dir, offline=True))
    for doubt in raw.doubts:
        warn(doubt)
    channels, height, width = raw.images.shape[1:]
    check_fit(request.clean, (channels, height, width), request.model, bundle.shape)
    right = sum(
        int((bundle.predict(raw.images[part]) == raw.labels[part]).sum()) for part in chunks(len(raw.images), 256)
    )
    return right / len(raw.images)
