from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gauntlet.errors import SettingError
from gauntlet.options import OPTIONS, Options, options_from, parse_duration, parse_seeds
from gauntlet.paths import default_data, default_store


def parsed(*arguments: str) -> Options:
    parser = argparse.ArgumentParser()
    for option in OPTIONS:
        option.add_to(parser.add_argument)
    return options_from(vars(parser.parse_args(arguments)).get)


def test_defaults() -> None:
    assert parsed() == Options() == options_from(lambda _dest: None)
    assert (Options().store, Options().data_dir) == (default_store(), default_data())


def test_everything_given() -> None:
    found = parsed(
        *("--suite", "quick,digits", "--suite", "quick", "--task", "mnist", "--device", "cuda:1", "--seeds", "2"),
        *("--store", "s", "--results", "r", "--data-dir", "d", "--offline", "--budget", "20m", "--plan"),
        *("--recompute", "--strict-gates", "--compile", "--plugin", "a.py", "--plugin", "b.py"),
        *("--tensorboard", "curves"),
    )
    assert found == Options(
        suites=("quick", "digits"),
        tasks=("mnist",),
        device="cuda:1",
        seeds=(0, 1),
        store=Path("s"),
        results=Path("r"),
        data_dir=Path("d"),
        offline=True,
        budget=1200,
        plan=True,
        recompute=True,
        strict_gates=True,
        compile=True,
        plugins=(Path("a.py"), Path("b.py")),
        tensorboard=Path("curves"),
    )


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("20m", 1200), ("2h", 7200), ("1.5h", 5400), ("1h30m", 5400), ("1h 30m", 5400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@given(st.text(alphabet="0123456789.smh -", max_size=6))
def test_what_is_read_as_a_duration_is_positive(text: str) -> None:
    with suppress(SettingError):
        assert parse_duration(text) > 0


@pytest.mark.parametrize("text", ["", "20", "m", "-5m", "5 d", "20mm", "0s", "5m!", "1e3s"])
def test_no_durations(text: str) -> None:
    with pytest.raises(SettingError, match="is no duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("1", (0,)),
        ("5", (0, 1, 2, 3, 4)),
        ("1000", tuple(range(1000))),
        ("0,7", (0, 7)),
        ("7,", (7,)),
        ("9223372036854775807,", (2**63 - 1,)),
    ],
)
def test_seeds(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["0", "-1", "a", "1.5", ",", "1,,b", "3,3", "²"])
def test_no_seeds(text: str) -> None:
    with pytest.raises(SettingError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("text", "legal"),
    [
        ("18446744073709551616,", "from 0 to 9223372036854775807"),
        ("9223372036854775808,0", "from 0 to 9223372036854775807"),
        (f"0,1{'0' * 5000}", "from 0 to 9223372036854775807"),
        (",".join(map(str, range(1001))), "at most 1,000 seeds"),
        ("1000000000", "a count from 1 to 1,000"),
        ("1" + "0" * 5000, "a count from 1 to 1,000"),
    ],
)
def test_seeds_out_of_range(text: str, legal: str) -> None:
    with pytest.raises(SettingError, match=f"--seeds .*: legal: .*{legal}"):
        parse_seeds(text)


def test_the_plug_in_is_light_to_import() -> None:
    code = "import sys, gauntlet.pytest_plugin; print(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert not {"torch", "pandas", "numpy", "rich", "pydantic", "tabulate"} & set(done.stdout.split())
