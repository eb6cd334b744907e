"""One Parquet file of encoded images and labels."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gauntlet.errors import DataError

from ._decode import Encoded
from ._download import one_line

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Table", "read_table"]

_MAX_BYTES = 1 << 36


@dataclass(frozen=True)
class Table:
    """class_names: from the hub's metadata, None where it has none."""

    file: Path
    images: list[Encoded]
    labels: list[int]
    class_names: tuple[str, ...] | None

    def check_labels(self, classes: int) -> None:
        """DataError when a label is not in 0 to classes - 1."""
        for row, label in enumerate(self.labels):
            if not 0 <= label < classes:
                raise DataError(f"{self.file}, row {row}: label {label} is out of range; legal: 0 to {classes - 1}")


def read_table(file: Path, image_column: str, label_column: str) -> Table:
    """The rows of `file`, numbered from 0. The images are not yet decoded."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as parquet:
            schema = parquet.schema_arrow
            _check_columns(file, schema, image_column, label_column)
            metadata = parquet.metadata
            unpacked = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
            if unpacked > _MAX_BYTES:
                raise DataError(f"{file} unpacks to {unpacked >> 30} GiB; legal: at most {_MAX_BYTES >> 30} GiB")
            table = parquet.read(columns=[image_column, label_column])
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file} is no readable Parquet file ({one_line(error)})") from error
    if not table.num_rows:
        raise DataError(f"{file} has no rows")
    images = _images(file, table.column(image_column))
    return Table(file, images, _labels(file, table.column(label_column)), _class_names(schema, label_column))


def _check_columns(file: Path, schema: pa.Schema, image_column: str, label_column: str) -> None:
    import pyarrow as pa

    for setting, column in (("image_column", image_column), ("label_column", label_column)):
        if len(schema.get_all_field_indices(column)) != 1:
            has = ", ".join(schema.names)
            raise DataError(f"{file} has no column {column!r}, or several; it has {has}: set {setting}")
    kind = schema.field(image_column).type
    if pa.types.is_struct(kind):
        kind = kind.field("bytes").type if kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(f"{file}: column {image_column!r} holds {kind}; legal: bytes, or a struct with bytes")
    if not pa.types.is_integer(schema.field(label_column).type):
        got = schema.field(label_column).type
        raise DataError(f"{file}: column {label_column!r} holds {got}; legal: whole numbers")


def _images(file: Path, column: pa.ChunkedArray[Any]) -> list[Encoded]:
    import pyarrow as pa
    import pyarrow.compute as pc

    encoded = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
    items = []
    for row, data in enumerate(encoded.to_pylist()):
        if not data:
            raise DataError(f"{file}, row {row}: no image bytes")
        items.append(Encoded(f"{file}, row {row}", data))
    return items


def _labels(file: Path, column: pa.ChunkedArray[Any]) -> list[int]:
    labels: list[int] = column.to_pylist()
    if column.null_count:
        raise DataError(f"{file}, row {labels.index(None)}: no label")  # type: ignore[arg-type]
    return labels


def _class_names(schema: pa.Schema, label_column: str) -> tuple[str, ...] | None:
    """The names of a ClassLabel column; None where the metadata, written by anybody, has none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label_column]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        return None
    return tuple(names)
