from __future__ import annotations

import resource
from pathlib import Path

import pandas as pd
import pytest

from gauntlet.artifacts import TensorsCodec
from gauntlet.errors import DataError
from gauntlet.pipeline import Context, run
from gauntlet.predictions import gather
from gauntlet.records import Record, Status
from tests.sample_cases import CaseMaker
from tests.sample_records import PROVENANCE


def test_no_tensors_at_all_can_be_read_back(tmp_path: Path) -> None:
    TensorsCodec().save({}, tmp_path)
    assert TensorsCodec().load(tmp_path) == {}


def test_predictions_agree_with_the_counts(context: Context, make_case: CaseMaker, tmp_path: Path) -> None:
    case = make_case("badnets", "fine_tuning", seeds=(0, 1))
    outcome = run(case, context)
    record = Record(
        id=case.id,
        suite="s",
        task="digits",
        architecture="simple_cnn",
        attack="badnets",
        family="dirty_label",
        defense="fine_tuning",
        stage="repair",
        reserve=100,
        status=Status.PASS,
        seeds=(0, 1),
        scores=outcome.scores,
        provenance=PROVENANCE,
    )
    path = gather([record], context.store, tmp_path, warn=_fail)
    assert path == tmp_path / "predictions.parquet"
    table = pd.read_parquet(path)
    for score in outcome.scores:
        own = table[(table["case"] == case.id) & (table["seed"] == score.seed)]
        clean = own[own["set"] == "clean"]
        assert (clean["label"] == clean["predicted"]).sum() == score.clean.hits
        assert len(clean) == score.clean.n
        triggered = own[own["set"] == "backdoor"]
        counted = triggered[triggered["label"] != triggered["wanted"]]
        assert (counted["predicted"] == counted["wanted"]).sum() == score.backdoors[0].asr.hits
        assert len(counted) == score.backdoors[0].asr.n
    assert list(tmp_path.iterdir()) == [path]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(DataError, match=r"predictions\.parquet can't be written: .*File too large"):
            gather([record], context.store, tmp_path, warn=_fail)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_to_gather(context: Context, tmp_path: Path) -> None:
    assert gather([], context.store, tmp_path, warn=_fail) is None


def _fail(warning: str) -> None:
    raise AssertionError(warning)


def test_a_second_run_finds_every_entry_whole(context: Context, make_case: CaseMaker) -> None:
    case = make_case("badnets", "none")
    first, second = run(case, context), run(case, context)
    assert first.scores == second.scores
    assert all(cost.cached for cost in second.costs)
