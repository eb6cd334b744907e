from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

# marks too: a run inside pytester forgets what it imports, and torch's parts can't be imported twice.
from gauntlet import desk, marks
from gauntlet.cli import main
from gauntlet.errors import DataError
from gauntlet.options import Options
from gauntlet.records import Record, Status
from gauntlet.results import DUE, RECORDS, ResultsWriter, read_records
from gauntlet.session import open_session

pytest_plugins = ["pytester"]

SUITE = """
tasks = ["digits"]
seeds = [0]
architectures = ["shallow_net"]
attacks = ["none", "badnets"]
defenses = ["spatial_smoothing", "jpeg_compression"]
[recipe]
epochs = 0.5
[thresholds]
min_undefended_asr = 0
collapse = 0
"""
BROKEN = """
[[gate]]
attack = "badnets"
defense = "none"
min_clean_accuracy = 1
"""
TEST = """
def test_case(outcome):
    outcome.check()
"""
UNDEFENDED = "digits-shallow_net-badnets-none"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the runs of this module, so that each victim is trained once; all that they import is imported."""
    folder = tmp_path_factory.mktemp("shared")
    suite = folder / "warm.toml"
    suite.write_text(SUITE.replace('"badnets"', '"badnets", "adversarial_embedding"'), encoding="utf-8")
    options = Options(suites=(str(suite),), store=folder / "store", results=folder / "results")
    warm = open_session(options, pytest.fail)
    assert {"dirty_label", "preprocessing"} < {name for case in warm.cases for name in marks.marks_of(case)}
    writer = desk.Desk(warm, options, warm.cases, pytest.fail)
    for case in warm.cases:
        record, error = warm.attempt(case)
        assert error is None
        writer.take(record)
    writer.close("")
    assert "Leaderboard" in writer.leaderboard(120, colour=False)
    return options.store


class Bench:
    """A project with one test and one suite, run as a user would."""

    def __init__(self, pytester: pytest.Pytester, store: Path) -> None:
        self.pytester = pytester
        self.store = store
        self.results = pytester.path / "results"
        pytester.makepyprojecttoml('[tool.pytest]\nstrict = true\nfilterwarnings = ["error"]\n')
        pytester.makeconftest('pytest_plugins = ["gauntlet.pytest_plugin"]\n')
        pytester.makepyfile(test_bench=TEST)

    def run(self, *arguments: str, suite: str = SUITE, subprocess: bool = False) -> pytest.RunResult:
        (self.pytester.path / "tiny.toml").write_text(suite, encoding="utf-8")
        given = [f"--store={self.store}"] if not any(one.startswith("--store") for one in arguments) else []
        given += ["--suite=tiny.toml"] if not any(one.startswith("--suite") for one in arguments) else []
        run = self.pytester.runpytest_subprocess if subprocess else self.pytester.runpytest_inprocess
        # Hypothesis imports all of itself again in every run inside pytester.
        return run("-p", "no:hypothesispytest", *given, *arguments)

    def records(self) -> dict[str, Record]:
        (folder,) = self.results.iterdir()
        return {record.id: record for record in read_records(folder, pytest.fail)}

    def statuses(self) -> dict[str, str]:
        return {name.removeprefix("digits-shallow_net-"): str(one.status) for name, one in self.records().items()}


@pytest.fixture
def bench(pytester: pytest.Pytester, store: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(desk.__file__).parents[1]), *sys.path]))
    monkeypatch.setenv("COLUMNS", "160")
    return Bench(pytester, store)


def test_a_run_from_header_to_artifacts(bench: Bench) -> None:
    result = bench.run("-v")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(
        [
            "gauntlet: 6 cases on digits; seeds 0; cpu*",
            f"gauntlet: store {bench.store}: * of 2 victims cached",
            "*test_case[[]digits-shallow_net-none-none[]] PASSED*",
            "*Leaderboard: 6 cases, seeds 0: 6 ungated*",
            "*badnets*",
            "commit: *",
            "*leaderboard.csv",
            "*leaderboard.md",
        ]
    )
    (folder,) = bench.results.iterdir()
    found = {path.name for path in folder.iterdir()}
    assert {"records.jsonl", "leaderboard.csv", "leaderboard.md"} <= found
    assert DUE not in found
    first = bench.records()[UNDEFENDED]
    assert first.scores[0].clean.n == 449
    assert (first.family, first.suite, first.provenance.task_hash != "") == ("dirty_label", "tiny", True)
    assert {cost.step for cost in first.costs} == {"victim", "undefended score"}


def test_the_undefended_row_of_each_victim_comes_first(bench: Bench) -> None:
    found = [line.split("[")[1] for line in bench.run("--collect-only", "-q").outlines if "[" in line]
    assert found == [
        f"digits-shallow_net-{attack}-{defense}]"
        for attack in ("none", "badnets")
        for defense in ("none", "spatial_smoothing", "jpeg_compression")
    ]
    assert not bench.results.exists()


def test_a_broken_gate_fails_with_one_sentence(bench: Bench) -> None:
    result = bench.run(suite=SUITE + BROKEN)
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["clean accuracy 0.* < min 1.00 (badnets on shallow_net undefended, 1 seed, n = 449)"])
    result.stdout.no_fnmatch_line("*def test_case*")
    result.stdout.no_fnmatch_line("*Traceback*")
    assert bench.statuses()["badnets-none"] == "fail"
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_two_runs_are_compared(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run("--results=old", "-k", "badnets")
    bench.run("--results=new", "-k", "badnets", suite=SUITE + BROKEN)
    (old,), (new,) = (list((bench.pytester.path / name).iterdir()) for name in ("old", "new"))
    capsys.readouterr()
    assert main(["compare", str(old), str(old)]) == 0
    assert capsys.readouterr().out.endswith("0 worse of 3 cases in both runs, 0 appeared, 0 vanished\n")
    assert main(["compare", str(old), str(new)]) == 1
    assert f"\nworse: {UNDEFENDED}: ungated -> fail: clean accuracy 0." in capsys.readouterr().out


def test_last_failed(bench: Bench) -> None:
    bench.run("--lf", suite=SUITE + BROKEN).assert_outcomes(passed=5, failed=1)
    bench.run("--lf", suite=SUITE + BROKEN).assert_outcomes(failed=1)


def test_an_expected_failure_is_xfailed_with_its_reason(bench: Bench) -> None:
    entry = f'[[expected_failure]]\nid = "{UNDEFENDED}"\nreason = "half an epoch is too short"\n'
    result = bench.run("-rx", suite=SUITE + BROKEN + entry)
    result.assert_outcomes(passed=5, xfailed=1)
    result.stdout.fnmatch_lines(["XFAIL *half an epoch is too short*"])
    assert bench.records()[UNDEFENDED].expected == "half an epoch is too short"


def test_a_case_that_passes_unexpectedly_fails(bench: Bench) -> None:
    entry = f'[[expected_failure]]\nid = "{UNDEFENDED}"\nreason = "gone"\n'
    result = bench.run("-k", "badnets", suite=SUITE + entry)
    result.assert_outcomes(passed=2, failed=1, deselected=3)
    result.stdout.fnmatch_lines(["*keeps its gate now: take its expected failure (gone) out of the suite*"])


def test_a_failed_attack_is_skipped_and_fails_when_strict(bench: Bench) -> None:
    weak = SUITE.replace("min_undefended_asr = 0", "min_undefended_asr = 1")
    result = bench.run("-rs", suite=weak)
    result.assert_outcomes(passed=3, skipped=3)
    result.stdout.fnmatch_lines(["SKIPPED*undefended ASR * < min 1.00: the attack failed*"])
    bench.run("--strict-gates", suite=weak).assert_outcomes(passed=3, failed=3)


def test_a_pair_that_says_nothing_is_skipped_with_the_reason(bench: Bench) -> None:
    text = SUITE.replace('"badnets"', '"adversarial_embedding"').replace('"spatial_smoothing"', '"perfect_filter"')
    bench.run("-k", "perfect_filter or none-none", suite=text).assert_outcomes(passed=2, skipped=1, deselected=3)
    assert bench.statuses()["adversarial_embedding-perfect_filter"] == "not-applicable"


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (("-k", "clean_label"), 3),
        (("-m", "clean_label"), 3),
        (("-m", "dirty_label"), 3),
        (("-m", "preprocessing and not control"), 4),
        (("-m", "reference"), 3),
        (("-m", "badnets or jpeg_compression"), 5),
        (("-m", "digits and shallow_net"), 9),
        (("-k", "clean_label and jpeg"), 1),
    ],
)
def test_selection_by_names_families_and_stages(bench: Bench, arguments: tuple[str, str], count: int) -> None:
    text = SUITE.replace('"badnets"', '"badnets", "clean_label"')
    result = bench.run("--collect-only", "-q", *arguments, suite=text)
    assert sum("::test_case[" in line for line in result.outlines) == count


def test_a_family_finds_attacks_of_any_name(bench: Bench) -> None:
    result = bench.run("--collect-only", "-q", "-k", "dirty_label", suite=SUITE.replace('"badnets"', '"single_pixel"'))
    assert sum("single_pixel" in line for line in result.outlines) == 3


def test_seeds_from_the_command_line(bench: Bench) -> None:
    result = bench.run("--plan", "--seeds=2")
    result.stdout.fnmatch_lines(["gauntlet: 6 cases on digits; seeds 0 1; *", "*-badnets-none *?/4 *"])


def test_a_plan_runs_nothing(bench: Bench, tmp_path: Path) -> None:
    result = bench.run("--plan", f"--store={tmp_path / 'empty'}", "-n", "2")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        ["*case *cached steps *", "6 cases, 0 of 2 victims cached, about *to go on 2 workers, and *"]
    )
    assert not bench.results.exists()
    assert not (tmp_path / "empty" / "victim").exists()


def test_a_plan_writes_nothing_where_nothing_can_be_written(bench: Bench, tmp_path: Path) -> None:
    own = tmp_path / "barred"
    shutil.copytree(bench.store, own)
    for name in ("tmp", "locks", "damaged"):
        shutil.rmtree(own / name)
        (own / name).write_text("in the way, whoever asks")
    result = bench.run("--plan", f"--store={own}")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*6 cases*"])
    assert main(["plan", "--suite", str(bench.pytester.path / "tiny.toml"), "--store", str(own)]) == 0


def test_what_the_budget_leaves_out_is_shown(bench: Bench, tmp_path: Path) -> None:
    result = bench.run("--budget=0.0001s", f"--store={tmp_path / 'empty'}")
    result.assert_outcomes(skipped=6)
    result.stdout.fnmatch_lines(["gauntlet: 0 of 6 cases fit into the budget*", "*6 not-run*"])
    reason = bench.records()[UNDEFENDED].reason
    assert reason.startswith("left out by the budget of")


def test_a_large_budget_leaves_nothing_out(bench: Bench) -> None:
    bench.run("--budget=2h").assert_outcomes(passed=6)


def test_cases_after_a_stop_are_not_run_and_say_why(bench: Bench) -> None:
    result = bench.run("-x", suite=SUITE + BROKEN)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert bench.statuses() == {
        "none-none": "pass",
        "none-spatial_smoothing": "pass",
        "none-jpeg_compression": "pass",
        "badnets-none": "fail",
        "badnets-spatial_smoothing": "not-run",
        "badnets-jpeg_compression": "not-run",
    }
    assert bench.records()["digits-shallow_net-badnets-jpeg_compression"].reason == "not run: stopping after 1 failures"


def test_an_interrupted_run_keeps_what_is_finished(bench: Bench) -> None:
    bench.pytester.makepyfile(
        test_bench="""
        def test_case(outcome):
            if "badnets" in outcome.record.id:
                raise KeyboardInterrupt
        """
    )
    result = bench.run("--no-summary", subprocess=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert sorted(bench.statuses().values()) == ["not-run", "not-run", "pass", "pass", "pass", "pass"]
    assert bench.records()["digits-shallow_net-badnets-jpeg_compression"].reason == "not run: interrupted"


def test_several_tests_of_a_case_give_one_record(bench: Bench) -> None:
    bench.pytester.makepyfile(
        test_bench=TEST + "\ndef test_id(case, outcome):\n    assert case.id == outcome.record.id\n"
    )
    bench.run().assert_outcomes(passed=12)
    (folder,) = bench.results.iterdir()
    assert len((folder / RECORDS).read_text().splitlines()) == 6


def test_records_travel_in_the_junit_report(bench: Bench) -> None:
    bench.run("--junit-xml=report.xml", "-k", "badnets-none")
    assert "&quot;status&quot;:&quot;pass&quot;" in (bench.pytester.path / "report.xml").read_text()


CRASHING = '''
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
from gauntlet.attack import Attack, Family
from gauntlet.errors import DivergedError
from gauntlet.plugin import attack

@attack
@dataclass(frozen=True)
class Crashing(Attack):
    """Made up for this test."""

    family: ClassVar[Family] = Family.DIRTY_LABEL
    bug: bool = False

    @property
    def backdoors(self):
        return ()

    def mount(self, view):
        if self.bug:
            raise ZeroDivisionError("a bug")
        raise DivergedError("the loss became NaN in epoch 1")
'''


def test_crashes_are_errors_with_a_record(bench: Bench) -> None:
    bench.pytester.makepyfile(crashing=CRASHING)
    text = SUITE.replace('"badnets"', '{ name = "crashing", bug = [false, true] }')
    result = bench.run("--plugin=crashing.py", "-k", "not jpeg and not smoothing", suite=text)
    result.assert_outcomes(passed=1, errors=2, deselected=6)
    result.stdout.fnmatch_lines(["the loss became NaN in epoch 1", "*def mount*", "E *ZeroDivisionError: a bug"])
    crashed = bench.records()["digits-shallow_net-crashing[bug=true]-none"]
    assert (crashed.status, crashed.reason) == (Status.ERROR, "ZeroDivisionError: a bug")


@pytest.mark.parametrize(
    ("arguments", "change", "words"),
    [
        (("--suite=quikc",), ("", ""), "*unknown suite 'quikc'; did you mean quick*"),
        (("--seeds=zero",), ("", ""), "*--seeds zero: legal*"),
        (("--budget=soon",), ("", ""), "*'soon' is no duration*"),
        (("--device=tpu",), ("", ""), "*tpu*legal: auto, cpu, cuda, cuda:N*"),
        (("--task=digit",), ("", ""), "*unknown task 'digit'*digits*"),
        (("--plugin=absent.py",), ("", ""), "*absent.py: no such Python file*"),
        ((), ('"badnets"', '"badnetz"'), "*tiny.toml: unknown attack 'badnetz'; did you mean badnets*"),
        (
            (),
            ('"badnets"', '{ name = "badnets", patch = 99 }'),
            "*digits-shallow_net-badnets[[]patch=99[]]-none: patch*",
        ),
        ((), ("seeds = [0]", "reserve = 9999"), "*reserve = 9,999*legal: 0 to *"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_4(
    bench: Bench, arguments: tuple[str, ...], change: tuple[str, str], words: str
) -> None:
    result = bench.run(*arguments, suite=SUITE.replace(*change) if change[0] else SUITE)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {words}"])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    assert not bench.results.exists()


def test_a_mistake_is_told_whatever_is_selected(bench: Bench) -> None:
    result = bench.run("-k", "something_else", "--suite=quikc")
    assert result.ret == pytest.ExitCode.USAGE_ERROR


@pytest.mark.skipif(pytest.version_tuple < (9, 2), reason="pytest looks at the marks of -m from 9.2 on")
def test_a_misspelt_mark_leaves_no_results(bench: Bench) -> None:
    result = bench.run("-m", "clean_lable")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: Unknown marker*clean_lable*"])
    assert not bench.results.exists()


FULL = """
import resource
pytest_plugins = ["gauntlet.pytest_plugin"]
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
"""


def test_a_store_that_is_full_costs_no_result(bench: Bench, tmp_path: Path) -> None:
    """No file can grow beyond 50 KB, as on a full disk: neither the data set nor a victim can be kept."""
    bench.pytester.makeconftest(FULL)
    result = bench.run(f"--store={tmp_path / 'full'}", "-k", "badnets-none or badnets-jpeg", subprocess=True)
    result.assert_outcomes(passed=2, deselected=4)
    result.stdout.fnmatch_lines(["*UserWarning: * can't be kept in the store *", "*2 cases, seeds 0: 2 ungated*"])
    assert bench.statuses() == {"badnets-none": "pass", "badnets-jpeg_compression": "pass"}
    assert not (tmp_path / "full" / "victim").exists()


def test_curves_that_can_not_be_written_cost_no_case(bench: Bench, tmp_path: Path) -> None:
    board = tmp_path / "board"
    board.mkdir()
    (board / "digits-shallow_net-none-none").touch()
    result = bench.run(f"--tensorboard={board}", "-k", "none-none or badnets-none")
    result.assert_outcomes(passed=2, deselected=4, warnings=1)
    result.stdout.fnmatch_lines([f"*UserWarning: --tensorboard {board} can't be written: *; no more curves are drawn"])
    assert result.ret == pytest.ExitCode.OK
    assert [path.name for path in board.iterdir()] == ["digits-shallow_net-none-none"]


def test_results_on_a_full_disk_leave_the_leaderboard(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made = ResultsWriter.__init__

    def onto_a_full_disk(self: ResultsWriter, folder: Path, warn: Callable[[str], None]) -> None:
        made(self, folder, warn)
        (folder / RECORDS).symlink_to("/dev/full")

    monkeypatch.setattr(ResultsWriter, "__init__", onto_a_full_disk)
    result = bench.run("-k", "badnets-none")
    result.assert_outcomes(passed=1, deselected=5)
    lost = "the results folder * can't be written: No space left on device*"
    result.stdout.fnmatch_lines([f"*{lost}", "*1 case, seeds 0: 1 ungated*", f"The results are not whole: {lost}"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_leaderboard_that_found_no_room_is_no_success(bench: Bench) -> None:
    """No file can grow beyond 8 KB, as on a full disk: what pytest prints fits, the page does not."""
    bench.pytester.makeconftest(FULL.replace("50_000", "8_000"))
    result = bench.run("-k", "badnets-none", "-n", "2", subprocess=True)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["The results are not whole: the results folder * can't be written: File too large*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_records_reach_a_disk_that_was_full_for_a_while(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    append = ResultsWriter.append
    refused: list[str] = []

    def append_after_the_first(self: ResultsWriter, record: Record) -> None:
        if not refused:
            refused.append(record.id)
            raise DataError("the disk is full")
        append(self, record)

    monkeypatch.setattr(ResultsWriter, "append", append_after_the_first)
    result = bench.run("-k", "badnets")
    result.assert_outcomes(passed=3, deselected=3)
    assert result.ret == pytest.ExitCode.OK
    assert refused == [UNDEFENDED]
    assert bench.statuses() == dict.fromkeys(
        ("badnets-spatial_smoothing", "badnets-jpeg_compression", "badnets-none"), "pass"
    )


WAITING = '''
from __future__ import annotations
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from gauntlet.attack import Attack, Family
from gauntlet.errors import DivergedError
from gauntlet.plugin import attack

@attack
@dataclass(frozen=True)
class Waiting(Attack):
    """Made up for this test: mounting takes as long as a file is there."""

    family: ClassVar[Family] = Family.DIRTY_LABEL

    @property
    def backdoors(self):
        return ()

    def mount(self, view):
        while Path("wait").exists():
            time.sleep(0.05)
        raise DivergedError("it has waited long enough")
'''


STARTED = """
import signal, sys, pytest
# What runs in the background of a shell begins with the signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("blow", "workers"),
    [(signal.SIGINT, ()), (signal.SIGKILL, ()), (signal.SIGKILL, ("-n", "2"))],
    ids=["ctrl-c", "kill", "kill-xdist"],
)
def test_what_was_finished_before_a_blow_is_reported_and_not_made_again(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str], blow: signal.Signals, workers: tuple[str, ...]
) -> None:
    bench.pytester.makepyfile(waiting=WAITING)
    wait = bench.pytester.path / "wait"
    wait.touch()
    suite = SUITE.replace('"badnets"', '"waiting"')
    (bench.pytester.path / "tiny.toml").write_text(suite, encoding="utf-8")
    given = ("--plugin=waiting.py", f"--store={tmp_path / 'own'}")
    command = [sys.executable, "-c", STARTED, "-p", "no:hypothesispytest", "--suite=tiny.toml", *given, *workers]
    with subprocess.Popen(command, cwd=bench.pytester.path, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while _finished(bench) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(blow)
        try:
            process.wait(60)
        finally:
            process.kill()
    assert process.returncode == (pytest.ExitCode.INTERRUPTED if blow == signal.SIGINT else -signal.SIGKILL)
    statuses = list(bench.statuses().values())
    assert statuses == ["pass"] * 3 + ["not-run"] * 3
    (folder,) = bench.results.iterdir()
    assert (folder / DUE).exists() == (blow == signal.SIGKILL)
    capsys.readouterr()
    assert main(["report", str(folder)]) == 0
    assert "Leaderboard: 6 cases, seeds 0: 3 ungated, 3 not-run" in capsys.readouterr().out
    reason = "interrupted" if blow == signal.SIGINT else "the run ended before its record was written"
    assert f"not run: {reason}" in (folder / "leaderboard.csv").read_text(encoding="utf-8")
    wait.unlink()
    shutil.rmtree(bench.results)
    bench.run(*given, suite=suite).assert_outcomes(passed=3, errors=3)
    costs = [cost for record in bench.records().values() for cost in record.costs]
    assert costs
    assert all(cost.cached for cost in costs)


DEADLY = '''
from __future__ import annotations
import os
from dataclasses import dataclass
from typing import ClassVar
from gauntlet.defense import Repair
from gauntlet.plugin import defense

@defense
@dataclass(frozen=True)
class Deadly(Repair):
    """Made up for this test: takes its process along."""

    interrupts: ClassVar[bool] = False

    def repair(self, view):
        if self.interrupts:
            raise KeyboardInterrupt
        with open("deaths", "a") as file:
            file.write("x")
        os._exit(3)
'''


def test_a_case_that_kills_its_worker_is_an_error_and_runs_once(bench: Bench) -> None:
    """What waits behind it is run by the next worker."""
    bench.pytester.makepyfile(deadly=DEADLY)
    suite = SUITE.replace('["spatial', '["deadly", "spatial')
    result = bench.run("--plugin=deadly.py", "-n", "2", suite=suite, subprocess=True)
    assert bench.statuses() == {
        f"{attack}-{defense}": "error" if defense == "deadly" else "pass"
        for attack in ("none", "badnets")
        for defense in ("none", "deadly", "spatial_smoothing", "jpeg_compression")
    }
    assert (bench.pytester.path / "deaths").read_text() == "xx"
    assert bench.records()["digits-shallow_net-none-deadly"].reason == "its worker died (killed or crashed)"
    result.stdout.fnmatch_lines(["*crashed while running*none-deadly*", "*8 cases, seeds 0: 6 ungated, 2 error*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_what_waits_when_no_worker_is_replaced_was_never_begun(bench: Bench) -> None:
    bench.pytester.makepyfile(deadly=DEADLY)
    suite = SUITE.replace('["spatial', '["deadly", "spatial')
    given = ("--plugin=deadly.py", "-n", "1", "--max-worker-restart=0")
    bench.run(*given, "-k", "badnets", suite=suite, subprocess=True)
    statuses = bench.statuses()
    assert (statuses.pop("badnets-none"), statuses.pop("badnets-deadly")) == ("pass", "error")
    assert statuses == {"badnets-spatial_smoothing": "not-run", "badnets-jpeg_compression": "not-run"}
    assert bench.records()["digits-shallow_net-badnets-jpeg_compression"].reason == "not run: the run ended before it"


def test_an_interrupted_worker_has_not_crashed(bench: Bench) -> None:
    bench.pytester.makepyfile(deadly=DEADLY.replace("= False", "= True"))
    suite = SUITE.replace('["spatial', '["deadly", "spatial')
    result = bench.run("--plugin=deadly.py", "-n", "1", "-k", "badnets", suite=suite, subprocess=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert set(bench.statuses().values()) == {"pass", "not-run"}


def test_a_test_that_ended_without_measuring_says_so(bench: Bench) -> None:
    bench.pytester.makepyfile(test_bench="import pytest\n@pytest.mark.skip(reason='later')" + TEST)
    bench.run("-k", "badnets-none").assert_outcomes(skipped=1, deselected=5)
    assert bench.records()[UNDEFENDED].reason == "not run: its test ended before the case was measured"


def _finished(bench: Bench) -> int:
    return sum(path.read_bytes().count(b"\n") for path in bench.results.glob(f"*/{RECORDS}"))


def test_a_store_or_results_that_cannot_be_written(bench: Bench) -> None:
    file = bench.pytester.makefile(".txt", occupied="")
    result = bench.run(f"--store={file}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: the store {file} can't be written*"])
    result = bench.run(f"--results={file}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: the results folder * can't be written*"])


def test_a_damaged_entry_is_rebuilt_and_reported(bench: Bench, tmp_path: Path) -> None:
    own = f"--store={tmp_path / 'own'}"
    bench.run(own, "-k", "badnets-none").assert_outcomes(passed=1, deselected=5)
    (victim,) = (tmp_path / "own" / "victim").glob("*/*/*.safetensors")
    victim.write_bytes(victim.read_bytes()[:-10])
    # What the store has scored already needs no victim; another defense does.
    bench.run(own, "-k", "badnets-none").assert_outcomes(passed=1, deselected=5, warnings=0)
    result = bench.run(own, "-k", "badnets-spatial_smoothing")
    result.assert_outcomes(passed=1, deselected=5)
    result.stdout.fnmatch_lines(["*UserWarning: * entry victim/* damaged*"])


def test_rules_that_match_nothing_are_reported(bench: Bench) -> None:
    rule = '[[expected_failure]]\nid = "mnist-*"\nreason = "typo"\n'
    result = bench.run("-k", "badnets-none", suite=SUITE + rule)
    result.assert_outcomes(passed=1, deselected=5)
    result.stdout.fnmatch_lines(['*suite tiny: the expected failure with id = "mnist-?" matches no case'])


def test_two_workers_train_each_victim_once(bench: Bench, tmp_path: Path) -> None:
    """And the controller alone writes, with the same records as one process."""
    result = bench.run("-n", "2", "-v", f"--store={tmp_path / 'fresh'}", suite=SUITE + BROKEN, subprocess=True)
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["gauntlet: 6 cases on digits; seeds 0; cpu*", "*Leaderboard: 6 cases*1 fail*"])
    records = bench.records()
    assert len(records) == 6
    trained = [one.id for one in records.values() for cost in one.costs if cost.step == "victim" and not cost.cached]
    assert len(trained) == 2
    workers = {
        (line.split("]")[0], "badnets" in line) for line in result.outlines if line.startswith("[gw") and "::" in line
    }
    assert len(workers) == 2, "cases of one victim went to several workers"


def test_a_mistake_under_workers_is_one_line_too(bench: Bench) -> None:
    result = bench.run("-n", "1", "-k", "badnets", suite=SUITE.replace('"badnets"', '"badnetz"'), subprocess=True)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *unknown attack 'badnetz'*"])
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


FOREIGN_TEST = """
import sys
import pytest

@pytest.mark.parametrize("case", [1, 2])
def test_marked(case):
    assert case in (1, 2)

def test_generated(case, device):
    assert case == "generated"
    assert device == "mine"

def test_light():
    assert "torch" not in sys.modules
"""
FOREIGN_CONFTEST = """
import pytest

def pytest_addoption(parser):
    parser.addoption("--device", default="mine")

def pytest_generate_tests(metafunc):
    if metafunc.function.__name__ == "test_generated":
        metafunc.parametrize("case", ["generated"])

@pytest.fixture
def device(request):
    return request.config.getoption("--device")
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_other_projects_are_left_alone(pytester: pytest.Pytester, bench: Bench, workers: tuple[str, ...]) -> None:
    """As loaded by its entry point, before the conftest of a project that knows nothing of Gauntlet."""
    pytester.makeconftest(FOREIGN_CONFTEST)
    pytester.makepyfile(test_bench=FOREIGN_TEST)
    result = pytester.runpytest_subprocess("-p", "gauntlet.pytest_plugin", *workers)
    result.assert_outcomes(passed=4)
    result.stdout.no_fnmatch_line("*gauntlet:*")
    assert not bench.results.exists()


def test_a_fixture_of_the_same_name_wins(pytester: pytest.Pytester, bench: Bench) -> None:
    pytester.makepyfile(
        test_bench="""
        import pytest

        @pytest.fixture
        def case():
            return "own"

        def test_own(case):
            assert case == "own"
        """
    )
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_loaded_by_name_and_by_conftest(bench: Bench) -> None:
    # In this process the module is there already, of which pytest warns.
    arguments = ("-p", "gauntlet.pytest_plugin", "--collect-only", "-q", "-k", "badnets-none")
    result = bench.run(*arguments, subprocess=True)
    assert result.ret == pytest.ExitCode.OK
    assert "already" not in result.stdout.str() + result.stderr.str()


def test_help_and_markers(bench: Bench) -> None:
    bench.run("--help").stdout.fnmatch_lines(["gauntlet: backdoor attacks*", "*--suite*", "*--strict-gates*"])
    bench.run("--markers").stdout.fnmatch_lines(["*@pytest.mark.clean_label: *"])


def test_a_plan_without_cases(pytester: pytest.Pytester, bench: Bench) -> None:
    pytester.makepyfile(test_bench="def test_other():\n    raise AssertionError\n")
    result = bench.run("--plan")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["no test asks for a case: nothing to plan"])


def test_the_record_is_json(bench: Bench) -> None:
    bench.run("-k", "badnets-none")
    (folder,) = bench.results.iterdir()
    assert json.loads((folder / RECORDS).read_text())["id"] == UNDEFENDED
