"""The per-sample predictions of a run, gathered from the store into one Parquet file beside its reports."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from gauntlet.errors import DataError
from gauntlet.records import Record
from gauntlet.scoring import PREDICTIONS
from gauntlet.store import Store

__all__ = ["gather"]


def gather(records: Sequence[Record], store: Store, folder: Path, warn: Callable[[str], None]) -> Path | None:
    """Write folder/predictions.parquet.

    Columns: case, seed, set (`clean` or a backdoor's name), index (counts the test images), label, wanted (-1: none),
    predicted, suspicion and flagged (an input detector's, null without one). None when no record has a score; a score
    whose predictions are no longer in the store is left out, and warn says how many there are. Raises DataError when
    the disk is full.
    """
    import pyarrow as pa
    from pyarrow import parquet

    found = [
        (record.id, score.seed, store.folder("score", score.predictions) / PREDICTIONS)
        for record in records
        for score in record.scores
        if score.predictions
    ]
    there = [(case, seed, path) for case, seed, path in found if path.is_file()]
    if len(there) < len(found):
        warn(f"{len(found) - len(there)} of {len(found)} scores have no predictions in the store any more")
    if not there:
        return None
    target, draft = folder / PREDICTIONS, folder / f".{PREDICTIONS}.{os.getpid()}"
    writer = None
    try:
        for case, seed, path in there:
            table = parquet.read_table(path)
            names = pa.array([case] * len(table)).dictionary_encode()
            table = table.add_column(0, "case", names).add_column(1, "seed", pa.array([seed] * len(table), pa.int64()))
            writer = writer or parquet.ParquetWriter(draft, table.schema, compression="zstd")
            writer.write_table(table)
        if writer:
            writer.close()
        draft.replace(target)
    except OSError as error:
        raise DataError(f"{target} can't be written: {error.strerror or error}; choose another folder") from error
    finally:
        with suppress(OSError):
            draft.unlink()
    return target
