"""IDX files, the format of MNIST and its relatives: https://yann.lecun.org/exdb/mnist/ (format at the page's end)."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gauntlet.errors import DataError
from gauntlet.task import LoadContext, RawTask

from ._download import fetch, one_line

__all__ = ["load_idx_task", "read_idx"]

_FILES = {
    "train-images-idx3-ubyte": 3,
    "train-labels-idx1-ubyte": 1,
    "t10k-images-idx3-ubyte": 3,
    "t10k-labels-idx1-ubyte": 1,
}
_LARGEST = 1 << 32


def load_idx_task(
    title: str, context: LoadContext, download: Callable[[], object], class_names: tuple[str, ...], provenance: str
) -> RawTask:
    """The task whose four files, plain or gzipped, lie in `title`/raw below the data folder."""
    folder = context.data_dir / title / "raw"
    if any(_find(folder, name) is None for name in _FILES):
        fetch(title, folder, context, download)
    images, labels, test_images, test_labels = (read_idx(_required(folder, name), n) for name, n in _FILES.items())
    return RawTask(
        images.unsqueeze(1),
        labels.to(torch.int64),
        class_names,
        provenance,
        test_images.unsqueeze(1),
        test_labels.to(torch.int64),
    )


def read_idx(path: Path, dimensions: int) -> Tensor:
    """uint8 of the shape that the file declares. DataError when it isn't a whole IDX file of so many dimensions."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as stream:
            magic, *shape = struct.unpack(f">{1 + dimensions}I", stream.read(4 * (1 + dimensions)))
            size = math.prod(shape)
            if magic != 0x0800 + dimensions or not 0 < size <= _LARGEST:
                raise DataError(f"{path} is no IDX file of bytes in {dimensions} dimension(s); fetch it anew")
            content = bytearray(stream.read(size + 1))
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{path} can't be read ({one_line(error)}); fetch it anew") from error
    if len(content) != size:
        raise DataError(f"{path} should hold {size} bytes, but has {len(content)} or more; fetch it anew")
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).reshape(shape))


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _required(folder: Path, name: str) -> Path:
    if (path := _find(folder, name)) is None:
        raise DataError(f"{folder} lacks {name}, although the download ended well; fetch it anew")
    return path
