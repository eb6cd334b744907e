"""The curves that TensorBoard reads back."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from gauntlet.errors import SettingError
from gauntlet.network import Network
from gauntlet.objective import Batch, CrossEntropy
from gauntlet.options import Options
from gauntlet.pipeline import Context, run, tools_for
from gauntlet.recipe import Recipe
from gauntlet.recorder import Curves, Unseen, unrecorded, write_scores
from gauntlet.records import SeedScore
from gauntlet.session import open_context
from gauntlet.store import Store
from gauntlet.tensorboard import TensorBoard
from tests.full_disk import room_for
from tests.sample_cases import CaseMaker

RECIPE = Recipe(epochs=2.5, batch_size=128, optimizer="sgd", learning_rate=0.5, schedule="linear")


@pytest.fixture
def own(context: Context, make_case: CaseMaker, tmp_path: Path) -> Context:
    """The session's context with an empty store that records into tmp_path/board."""
    context.data(make_case("none"))
    store = Store(tmp_path / "store", pytest.fail)
    recorder = TensorBoard(tmp_path / "board", pytest.fail)
    return dataclasses.replace(context, store=store, datasets=dict(context.datasets), recorder=recorder)


def read(folder: Path) -> dict[str, dict[int, float]]:
    """Tag to step to value, of all event files of one folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def folders(root: Path) -> list[str]:
    return sorted({file.parent.relative_to(root).as_posix() for file in root.rglob("events.out.*")})


def test_every_training_and_every_seed_of_a_case(own: Context, make_case: CaseMaker, tmp_path: Path) -> None:
    defense = {"epochs": 2}
    case = make_case(
        "badnets", "fine_tuning", model="shallow_net", recipe=RECIPE, defense_settings=defense, seeds=(0, 3)
    )
    scores = run(case, own).scores
    board = tmp_path / "board"
    assert folders(board) == [
        f"{case.id}/seed_{seed}/{purpose}" for seed in (0, 3) for purpose in ("fine_tuning", "test", "training")
    ]
    steps = math.ceil(len(own.data(case).training) / RECIPE.batch_size)
    ends = [steps, 2 * steps, math.ceil(2.5 * steps)]
    curves = read(board / case.id / "seed_3/training")
    assert curves.keys() == {"Loss_value", "Train/Loss_total", "Train/Learning_rate"}
    assert all(list(curve) == ends for curve in curves.values())
    assert curves["Loss_value"] == curves["Train/Loss_total"]
    assert curves["Train/Learning_rate"] == {end: pytest.approx(0.5 * (1 - (end - 1) / ends[-1])) for end in ends}
    for score in scores:
        tested = read(board / case.id / f"seed_{score.seed}/test")
        assert tested["Test_backdoor_False/Accuracy_Top-1"] == {0: pytest.approx(100 * share(score.clean))}
        assert tested["Test_backdoor_True/Accuracy_Top-1"] == {0: pytest.approx(100 * share(score.backdoors[0].asr))}


def share(counts: Any) -> float:
    return float(counts.hits / counts.n)


def test_the_losses_are_those_that_progress_is_told(own: Context, make_case: CaseMaker, tmp_path: Path) -> None:
    class Listening:
        def step(self, text: str) -> None: ...

        def epoch(self, done: float, total: float, loss: float, rate: float) -> None:
            heard.append(loss)

    heard: list[float] = []
    case = make_case("none", model="shallow_net", recipe=dataclasses.replace(RECIPE, validation_split=0.2))
    run(case, dataclasses.replace(own, progress=Listening()))
    curves = read(tmp_path / "board" / case.id / "seed_0/training")
    assert list(curves["Loss_value"].values()) == pytest.approx(heard)
    assert len(curves["Validation/Loss_value"]) == 3


def test_a_score_from_the_store_is_drawn_again(own: Context, make_case: CaseMaker, tmp_path: Path) -> None:
    case = make_case("none", model="shallow_net", recipe=RECIPE)
    run(case, dataclasses.replace(own, recorder=unrecorded))
    run(case, own)
    assert folders(tmp_path / "board") == [f"{case.id}/seed_0/test"]


def test_a_resumed_training_draws_no_epoch_twice(tmp_path: Path) -> None:
    for steps in (range(10, 50, 10), range(30, 70, 10)):
        # Event files are read in the order of their names, which begin with the second.
        time.sleep(1.1)
        with TensorBoard(tmp_path, pytest.fail)("case", "seed 0", "training") as curves:
            for step in steps:
                curves.write(step, {"Loss_value": 1 / step})
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "case/seed_0/training"))
    events.Reload()
    assert [event.step for event in events.Scalars("Loss_value")] == [10, 20, 30, 40, 50, 60]


class _Parts(CrossEntropy):
    def loss(self, network: Network, batch: Batch) -> torch.Tensor:
        return 2 * super().loss(network, batch)

    def reported(self) -> Mapping[str, float]:
        return {"Loss_normal": 0.25, "Scale_normal": 2.0, "Loss_backdoor": math.nan}


def test_an_objective_reports_its_parts_and_repeated_purposes_get_numbers(
    own: Context, make_case: CaseMaker, tmp_path: Path
) -> None:
    case = make_case("none", model="shallow_net", recipe=RECIPE)
    tools = tools_for(case, 0, own)
    for _ in range(2):
        tools.train(
            own.data(case).training, "round", "1", recipe=Recipe(epochs=1, optimizer="muon"), objective=_Parts()
        )
    where = tmp_path / "board" / case.id / "seed_0"
    assert folders(where) == ["round_1", "round_1-2"]
    curves = read(where / "round_1-2")
    assert list(curves["Train/Loss_normal"].values()) == [0.25]
    assert list(curves["Train/Scale_normal"].values()) == [2.0]
    assert "Train/Loss_backdoor" not in curves
    assert {"Train/Learning_rate", "Train/Learning_rate_1"} < curves.keys()


def test_several_backdoors_together_and_each(make_case: CaseMaker, context: Context) -> None:
    class Heard(Unseen):
        def write(self, step: int, values: Mapping[str, float]) -> None:
            heard.update(values)

    @contextmanager
    def recorder(*where: str) -> Iterator[Curves]:
        yield Heard()

    heard: dict[str, float] = {}
    (score,) = run(make_case("badnets", model="shallow_net", recipe=RECIPE), context).scores
    (backdoor,) = score.backdoors
    plus, times = (
        backdoor.model_copy(update={"name": name, "asr": backdoor.asr.model_copy(update={"hits": hits, "n": n})})
        for name, hits, n in (("plus", 30, 100), ("times", 10, 300))
    )
    both: SeedScore = score.model_copy(update={"backdoors": (plus, times)})
    write_scores(recorder, both)
    assert heard["Test_backdoor_True/Accuracy_Top-1"] == 10.0
    assert heard["Test_backdoor_True/plus/Accuracy_Top-1"] == 30.0
    assert heard["Test_backdoor_True/times/Accuracy_Top-1"] == pytest.approx(10 / 3)


@pytest.mark.parametrize("case", ["folder:/data/a b-le_net", "x" * 300, "..", "é" * 150, "a[b=1,c=0.5]"])
def test_any_case_has_a_folder_of_its_own(tmp_path: Path, case: str) -> None:
    record = TensorBoard(tmp_path / "board", pytest.fail)
    for name in (case, f"{case}y"):
        with record(name, "seed 0", "training") as curves:
            curves.write(1, {"Loss_value": 1.0})
    found = folders(tmp_path / "board")
    assert len(found) == 2
    assert all(path.endswith("/seed_0/training") and path.count("/") == 2 for path in found)


def test_without_the_package_the_option_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(SettingError, match=r"--tensorboard needs the package tensorboard.*pip install"):
        TensorBoard(tmp_path, pytest.fail)


def test_a_folder_that_can_not_be_written_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    options = Options(store=tmp_path / "store", tensorboard=tmp_path / "file" / "board")
    with pytest.raises(SettingError, match=r"--tensorboard .*/board can't be written: Not a directory"):
        open_context(options, pytest.fail)


@pytest.mark.parametrize("room", [0, 250], ids=["from-the-first", "from-the-second"])
def test_a_full_disk_is_told_once_and_costs_curves_alone(tmp_path: Path, room: int) -> None:
    warnings: list[str] = []
    record = TensorBoard(tmp_path, warnings.append)
    with room_for(room):
        for _ in range(2):
            with record("case", "seed 0", "training") as curves:
                for step in range(1, 20):
                    curves.write(step, {"Loss_value": 1 / step})
    # There is room again, but what a curve lacks would not be seen in it.
    with record("case", "seed 0", "test") as curves:
        curves.write(0, {"Test_backdoor_False/Accuracy_Top-1": 90.0})
    assert warnings == [f"--tensorboard {tmp_path} can't be written: File too large; no more curves are drawn"]
    assert folders(tmp_path) == ["case/seed_0/training"]
    if room:
        assert read(tmp_path / "case/seed_0/training")["Loss_value"][1] == 1.0


def test_the_blind_attack_reports_its_tasks(own: Context, make_case: CaseMaker, tmp_path: Path) -> None:
    case = make_case("blind", model="shallow_net", recipe=dataclasses.replace(RECIPE, epochs=1, learning_rate=0.1))
    run(case, own)
    curves = read(tmp_path / "board" / case.id / "seed_0/training")
    parts = [tag.removeprefix("Train/Loss_") for tag in curves if tag.startswith("Train/Loss_")]
    assert {"normal", "total"} < set(parts)
    assert len(parts) == 3
    scales = [value for tag in curves if tag.startswith("Train/Scale_") for value in curves[tag].values()]
    assert len(scales) == 2
    assert sum(scales) == pytest.approx(1)
