"""What the pytest plug-in keeps in pytest's config: options, the session, the desk, the live line. No hooks here.

Light to import, since it is loaded with the plug-in in every project whose environment holds Gauntlet.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from gauntlet.errors import SettingError
from gauntlet.loading import loading
from gauntlet.options import Options, options_from

if TYPE_CHECKING:
    from gauntlet.case import Case
    from gauntlet.desk import Desk
    from gauntlet.live import LiveLine
    from gauntlet.plan import Choice
    from gauntlet.progress import Progress
    from gauntlet.roster import Roster
    from gauntlet.session import Session

__all__ = [
    "CHOICE",
    "DESK",
    "UNSETTLED",
    "case_named",
    "cases_among",
    "cases_of",
    "choose_cases",
    "clear_line",
    "group_of",
    "header_lines",
    "is_worker",
    "options_of",
    "parameter_of",
    "roster_of",
    "session_of",
    "warner",
]

CHOICE: pytest.StashKey[Choice] = pytest.StashKey()
DESK: pytest.StashKey[Desk] = pytest.StashKey()
_OPTIONS: pytest.StashKey[Options] = pytest.StashKey()
_SESSION: pytest.StashKey[Session] = pytest.StashKey()
_ROSTER: pytest.StashKey[Roster] = pytest.StashKey()
_LIVE: pytest.StashKey[LiveLine] = pytest.StashKey()

UNSETTLED = "settings-error"
"""The id of the one parameter that stands for all cases when they can't be made."""


def is_worker(config: pytest.Config) -> bool:
    """Whether this process is one of pytest-xdist's workers."""
    return hasattr(config, "workerinput")


def options_of(config: pytest.Config) -> Options:
    """What the user asked for. Raises SettingError."""
    if _OPTIONS not in config.stash:
        config.stash[_OPTIONS] = options_from(lambda dest: config.getoption(dest, None))
    return config.stash[_OPTIONS]


def session_of(config: pytest.Config) -> Session:
    """The cases, made once a process, when the first test asks for one. Raises GauntletError."""
    if _SESSION not in config.stash:
        options = options_of(config)
        with loading("torch"):
            from gauntlet.session import open_session

            if is_worker(config):
                options = replace(options, device=_shared_device(options.device, config.workerinput))  # type: ignore[attr-defined]
            config.stash[_SESSION] = open_session(options, warner(config), _progress(config))
        clear_line(config)
    return config.stash[_SESSION]


def roster_of(config: pytest.Config) -> Roster:
    """Ids and marks of the cases, without the cases where they are known from an earlier run. Raises GauntletError."""
    if _ROSTER not in config.stash:
        from gauntlet.roster import roster

        config.stash[_ROSTER] = found = roster(options_of(config), lambda: session_of(config))
        for warning in () if is_worker(config) else found.warnings:
            warner(config)(warning)
    return config.stash[_ROSTER]


def case_named(config: pytest.Config, name: str) -> Case:
    """The case of that id. Raises GauntletError."""
    session = session_of(config)
    if name not in session.by_id:
        from gauntlet.recall import forget

        forget(options_of(config).store)
        raise SettingError(f"{name} is no case any more: suites or plug-ins changed since it was collected; run again")
    return session.by_id[name]


def _shared_device(wish: str, worker: Mapping[str, Any]) -> str:
    from gauntlet.sharing import share

    return share(wish, int(str(worker["workerid"]).removeprefix("gw")), int(worker["workercount"]))


def warner(config: pytest.Config) -> Callable[[str], None]:
    """Puts a sentence into pytest's warnings summary, across workers, whatever the project's warning filters say."""

    def warn(text: str) -> None:
        message = warnings.WarningMessage(UserWarning(text), UserWarning, "gauntlet", 0)
        config.hook.pytest_warning_recorded.call_historic(
            kwargs={"warning_message": message, "when": "runtest", "nodeid": "", "location": None}
        )

    return warn


def _progress(config: pytest.Config) -> Progress:
    from gauntlet.live import LiveLine, open_terminal
    from gauntlet.progress import Silent

    reporter = config.pluginmanager.get_plugin("terminalreporter")
    interactive = reporter is not None and reporter.isatty and config.get_verbosity() >= 0 and not is_worker(config)
    terminal = open_terminal() if interactive else None
    if terminal is None:
        return Silent()
    config.add_cleanup(terminal.close)
    line = LiveLine(terminal)
    config.stash[_LIVE] = line
    return line


def clear_line(config: pytest.Config) -> None:
    """Take the live line away before pytest writes on."""
    if _LIVE in config.stash:
        config.stash[_LIVE].clear()


def cases_of(config: pytest.Config, items: Iterable[pytest.Item]) -> list[Case]:
    """The distinct cases that the items ask for. Raises GauntletError."""
    if _ROSTER not in config.stash:
        return []
    known = config.stash[_ROSTER].groups
    callspecs = [vars(item).get("callspec") for item in items]
    asked = [callspec.params.get("case") for callspec in callspecs if callspec is not None]
    names = dict.fromkeys(name for name in asked if isinstance(name, str) and name in known)
    return [case_named(config, name) for name in names]


def parameter_of(nodeid: str) -> str:
    """`ID` of `file.py::test[ID]` and of `file.py::test[ID]@group`; '' of a test without parameters."""
    _, opened, rest = nodeid.partition("[")
    return rest[: rest.rfind("]")] if opened else ""


def cases_among(config: pytest.Config, nodeids: Iterable[str]) -> list[Case]:
    """The cases that workers collected, known by the ids alone. Raises GauntletError, as the workers had to."""
    names = list(dict.fromkeys(name for name in map(parameter_of, nodeids) if name))
    if UNSETTLED not in names and not _plausible(config, names):
        return []
    known = roster_of(config).groups
    return [case_named(config, name) for name in names if name in known]


def group_of(config: pytest.Config, nodeid: str) -> str:
    """What the cases of one victim have in common; '' for a test that is no case."""
    roster = config.stash.get(_ROSTER, None)
    return "" if roster is None else roster.groups.get(parameter_of(nodeid), "")


def _plausible(config: pytest.Config, names: Sequence[str]) -> bool:
    """Whether a name begins with a task of the chosen suites: spares other projects the making of the cases."""
    if not names:
        return False
    from gauntlet.paths import suite_folders
    from gauntlet.suite import find_suite, read_suite

    options = options_of(config)
    suites = [read_suite(find_suite(name, suite_folders())) for name in options.suites]
    tasks = options.tasks or [task.name for suite in suites for block in suite.blocks for task in block.tasks]
    return any(name.startswith((f"{task}-", f"{task}[", f"{task}:")) for name in names for task in tasks)


def choose_cases(config: pytest.Config, cases: Sequence[Case]) -> None:
    """Decide which cases the budget pays for, if there is one."""
    budget = options_of(config).budget
    if cases and budget is not None:
        from gauntlet.plan import choose

        workers = config.workerinput["workercount"] if is_worker(config) else config.getoption("numprocesses", None)  # type: ignore[attr-defined]
        config.stash[CHOICE] = choose(session_of(config).plan(cases, workers or 1), budget)


def header_lines(config: pytest.Config, cases: Sequence[Case]) -> list[str]:
    """What is about to run."""
    if not cases:
        return []
    from gauntlet.desk import header

    return header(session_of(config), cases, config.stash.get(CHOICE, None))
