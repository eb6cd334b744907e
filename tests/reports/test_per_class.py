from __future__ import annotations

import io

import pandas as pd
import pytest

from reports.per_class import PerClass
from tests.sample_records import sample


def test_classes_add_up_to_the_whole() -> None:
    records = sample()
    table = pd.read_csv(io.StringIO(PerClass().render(records)), keep_default_na=True)
    scored = [record for record in records if record.scores]
    assert set(table["id"]) == {record.id for record in scored}
    for record in scored:
        own = table[table["id"] == record.id]
        clean = own[own["measure"] == "clean accuracy"]
        assert clean["n"].sum() == sum(counts.n for score in record.scores for counts in score.clean_by_class)
        assert clean["hits"].sum() == sum(counts.hits for score in record.scores for counts in score.clean_by_class)
        for place, backdoor in enumerate(record.scores[0].backdoors):
            asr = own[own["measure"] == f"ASR of {backdoor.name}"]
            expected = [counts for score in record.scores for counts in score.backdoors[place].by_class]
            assert asr["hits"].sum() == sum(counts.hits for counts in expected)
    counted = table[table["n"] > 0]
    assert list(counted["share"]) == pytest.approx(list(counted["hits"] / counted["n"]))
    assert (counted["low"] <= counted["share"]).all()
    assert table[table["n"] == 0]["share"].isna().all()
