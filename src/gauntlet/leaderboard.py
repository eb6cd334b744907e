"""The leaderboard as pandas tables: every record in long form, attacks by defenses, the ranking."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gauntlet.board import Board, Standing
from gauntlet.findings import rates, values
from gauntlet.records import Poison, Record
from gauntlet.stats import Rate
from gauntlet.summary import BackdoorFigures, Figures, defense_seconds, figures, seconds
from gauntlet.wording import cell_text, standing_text

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["frame", "pivot", "ranking"]

_MIB = 2**20


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """The long table: one row per record and backdoor. Shares in [0, 1], seconds, MiB; NaN where not measured.

    A share X of images stands beside X_hits of X_n; clean_accuracy, asr, robust_accuracy also beside X_low and X_high
    (95 % Wilson) and X_spread (sample standard deviation over the seeds). poison_total, poison_share and
    poison_effective are means over the seeds; auroc to clean_removed_n are the answers of a defense's stage
    (`gauntlet.findings`); distance_* are means over images and seeds.
    """
    import pandas as pd

    return pd.DataFrame([row for record in records for row in _rows(record)])


def pivot(board: Board) -> pd.DataFrame:
    """Attacks by defenses as text; a number in round brackets counts `board.notes` from 1."""
    import pandas as pd

    return pd.DataFrame(
        [[cell_text(board.cell(row, column), board.notes) for column in board.columns] for row in board.rows],
        index=pd.Index([row.label for row in board.rows], name="attack"),
        columns=[column.label for column in board.columns],
    )


def ranking(standings: Sequence[Standing]) -> pd.DataFrame:
    """The standings as text, in their order."""
    import pandas as pd

    return pd.DataFrame([standing_text(standing) for standing in standings])


def _rows(record: Record) -> list[dict[str, Any]]:
    found = figures(record)
    before = _identity(record) | _clean(found)
    after = _poison(found.poison if found else ()) | _stage(record) | _cost(record)
    backdoors = found.backdoors if found and found.backdoors else (None,)
    return [before | _backdoor(backdoor) | after | _distances(backdoor) for backdoor in backdoors]


def _identity(record: Record) -> dict[str, Any]:
    return {
        "id": record.id,
        "suite": record.suite,
        "task": record.task,
        "architecture": record.architecture,
        "attack": record.attack,
        "attack_settings": json.dumps(record.attack_settings),
        "family": record.family,
        "defense": record.defense,
        "defense_settings": json.dumps(record.defense_settings),
        "stage": record.stage,
        "reserve": record.reserve,
        "status": str(record.status),
        "gated": record.gate.asks,
        "reason": record.reason,
        "expected": record.expected,
        "seeds": " ".join(map(str, record.seeds)),
    }


def _share(name: str, rate: Rate | None) -> dict[str, Any]:
    known = rate is not None and rate.n > 0
    low, high = rate.interval if rate is not None and known else (math.nan, math.nan)
    return {
        **_counted(name, rate),
        f"{name}_low": low,
        f"{name}_high": high,
        f"{name}_spread": rate.spread if rate else math.nan,
    }


def _counted(name: str, rate: Rate | None) -> dict[str, Any]:
    return {
        name: rate.value if rate else math.nan,
        f"{name}_hits": rate.hits if rate else 0,
        f"{name}_n": rate.n if rate else 0,
    }


def _stage(record: Record) -> dict[str, Any]:
    found = values(record.scores)
    for name, rate in rates(record.scores).items():
        found |= _counted(name, rate)
    return found


def _clean(found: Figures | None) -> dict[str, Any]:
    return {
        **_share("clean_accuracy", found.clean if found else None),
        **_counted("undefended_clean_accuracy", found.undefended_clean if found else None),
    }


def _backdoor(backdoor: BackdoorFigures | None) -> dict[str, Any]:
    return {
        "backdoor": backdoor.name if backdoor else "",
        **_share("asr", backdoor.asr if backdoor else None),
        **_counted("undefended_asr", backdoor.undefended if backdoor else None),
        **_counted("asr_inclusive", backdoor.inclusive if backdoor else None),
        **_counted("untriggered_hit_rate", backdoor.untriggered if backdoor else None),
        **_share("robust_accuracy", backdoor.robust if backdoor else None),
        "der": backdoor.der if backdoor else math.nan,
    }


def _poison(found: Sequence[Poison]) -> dict[str, Any]:
    if not found:
        return dict.fromkeys(("poison_total", "poison_share", "poison_effective"), math.nan)
    return {
        "poison_total": sum(each.total for each in found) / len(found),
        "poison_share": sum(each.total / each.train_size for each in found if each.train_size) / len(found),
        "poison_effective": sum(each.effective for each in found) / len(found),
    }


def _cost(record: Record) -> dict[str, Any]:
    peak = max((cost.peak_memory for cost in record.costs), default=math.nan)
    return {
        "seconds": seconds(record),
        "defense_seconds": defense_seconds(record),
        "peak_memory_mib": peak / _MIB,
        "device": " ".join(dict.fromkeys(cost.device for cost in record.costs)),
    }


def _distances(backdoor: BackdoorFigures | None) -> dict[str, float]:
    found = backdoor.distances if backdoor else {}
    return {f"distance_{measure}": mean for measure, mean in found.items()}
