"""The pytest plug-in: a test that asks for `case` runs once for each case of the chosen suites.

The only module with pytest hooks. It is loaded in every project whose environment holds Gauntlet, so importing it is
cheap, its options make way for a project's own of the same name, and it does nothing where no test asks for its
`case` fixture.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from gauntlet import hosting
from gauntlet.clock import age
from gauntlet.errors import GauntletError
from gauntlet.judged import Judged
from gauntlet.options import OPTIONS

if TYPE_CHECKING:
    from gauntlet.case import Case
    from gauntlet.desk import Desk
    from gauntlet.scheduling import ByVictim

__all__ = ["Judged"]

_PROBLEM = pytest.StashKey[str]()
_WORKERS = pytest.StashKey[int | str]()
"""What -n asked for, under --plan."""
_PROPERTY = "gauntlet"
"""The name under which a record travels in a test's user properties."""


def _wanted_by_conftest(pluginmanager: pytest.PytestPluginManager) -> bool:
    """Whether a conftest.py names this plug-in in its `pytest_plugins`."""
    modules = [plugin for plugin in pluginmanager.get_plugins() if hasattr(plugin, "__dict__")]
    return any(__name__ in (vars(module).get("pytest_plugins") or ()) for module in modules)


def _add_options(parser: pytest.Parser) -> None:
    group = parser.getgroup("gauntlet", "gauntlet: backdoor attacks against defenses")
    for option in OPTIONS:
        try:
            option.add_to(group.addoption)
        except (ValueError, argparse.ArgumentError):
            # The project has an option of this name, which wins there (ours keeps its default); or it is ours already.
            continue


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if _wanted_by_conftest(pluginmanager):
        _add_options(parser)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(parser: pytest.Parser) -> Generator[None, object, object]:
    """Loaded by entry point, the options come after those of the project's conftest."""
    result = yield
    _add_options(parser)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """Before pytest-xdist looks: cases of one victim go to one worker, and a plan needs no workers."""
    if config.getoption("numprocesses", None):
        if config.getoption("gauntlet_plan", None):
            config.stash[_WORKERS] = config.option.numprocesses
            config.option.numprocesses = 0
        elif config.option.dist == "no" and _in_play(config):
            config.option.dist = "loadgroup"
    return (yield)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByVictim | None:
    if config.option.dist != "loadgroup" or not _in_play(config):
        return None
    from gauntlet.scheduling import ByVictim

    return ByVictim(config, log)


def _in_play(config: pytest.Config) -> bool:
    """Whether this run is likely about cases: known before collection, lest other projects get another scheduler."""
    asked = any(config.getoption(option.dest, None) not in (None, option.default) for option in OPTIONS)
    named = any(str(arg).startswith("gauntlet.") for arg in config.invocation_params.args)
    return asked or named or _wanted_by_conftest(config.pluginmanager)


def pytest_configure(config: pytest.Config) -> None:
    """For `pytest --markers`; a run registers the marks of its own cases."""
    if config.getoption("markers", False) and _wanted_by_conftest(config.pluginmanager):
        from gauntlet.marks import register_families

        register_families(config)


def _asks_for_ours(metafunc: pytest.Metafunc) -> bool:
    """Whether `case` is this module's fixture here, and nobody has given it values yet."""
    inside = vars(metafunc)
    fixtures = inside.get("_arg2fixturedefs", {}).get("case")
    given = inside.get("_params_directness", {})
    return bool(fixtures) and fixtures[-1].func.__module__ == __name__ and "case" not in given


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if not _asks_for_ours(metafunc):
        return
    try:
        found = hosting.roster_of(metafunc.config)
    except GauntletError as error:
        # Raised here it would be a collection error with a traceback; `pytest_collection_modifyitems` tells it.
        metafunc.config.stash[_PROBLEM] = str(error)
        metafunc.parametrize("case", [pytest.param(None, id=hosting.UNSETTLED)], indirect=True)
        return
    from gauntlet.roster import parameters

    metafunc.parametrize("case", parameters(found, metafunc.config), indirect=True)
    hosting.clear_line(metafunc.config)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None, object, object]:
    placeholders = [item for item in items if hosting.parameter_of(item.nodeid) == hosting.UNSETTLED]
    result = yield
    if _PROBLEM in config.stash:
        if not hosting.is_worker(config):
            raise pytest.UsageError(config.stash[_PROBLEM])
        # A worker that raises takes the run down with a traceback; the placeholder's id makes the controller look.
        items[:] = placeholders
    if hosting.options_of(config).budget is not None:
        hosting.choose_cases(config, hosting.cases_of(config, items))
    return result


def pytest_report_collectionfinish(config: pytest.Config, items: Sequence[pytest.Item]) -> list[str]:
    """The header; nothing under -q or where nothing will run, which needs no case."""
    if hosting.is_worker(config) or config.option.collectonly or config.get_verbosity() < 0:
        return []
    with _told():
        return hosting.header_lines(config, hosting.cases_of(config, items))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: Sequence[str]) -> None:
    """Workers collect, the controller doesn't: it learns from the ids which cases are due."""
    config = node.config
    if hosting.DESK in config.stash:
        return
    with _told():
        cases = hosting.cases_among(config, ids)
        hosting.choose_cases(config, cases)
        _open_desk(config, cases)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    shown = reporter is not None and config.get_verbosity() >= 0
    for line in hosting.header_lines(config, cases) if shown else []:
        reporter.write_line(line)


@contextmanager
def _told() -> Iterator[None]:
    """A user's mistake as pytest tells one: a line, no traceback."""
    try:
        yield
    except GauntletError as error:
        raise pytest.UsageError(str(error)) from None


def _open_desk(config: pytest.Config, cases: Sequence[Case]) -> None:
    if not cases or config.option.collectonly or hosting.options_of(config).plan:
        return
    from gauntlet.desk import Desk

    desk = Desk(hosting.session_of(config), hosting.options_of(config), cases, hosting.warner(config))
    config.stash[hosting.DESK] = desk
    config.pluginmanager.register(_Clerk(config, desk), "gauntlet-clerk")


class _Clerk:
    """The hooks of the one process that writes: the controller, or the only process. Registered once it has cases."""

    def __init__(self, config: pytest.Config, desk: Desk) -> None:
        self._config = config
        self._desk = desk
        self._left = False

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A case whose test never started was stopped by the run's end, not by its test's."""
        self._desk.begin(hosting.parameter_of(nodeid))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, error: object) -> None:
        """Whether a worker left on Ctrl-C, which pytest-xdist, too, tells like a crash."""
        self._left = error == "keyboard-interrupt"

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str) -> None:
        """A worker died, whose record can't come any more."""
        if not self._left:
            self._desk.crash(hosting.parameter_of(crashitem))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Records reach the disk as cases finish."""
        from gauntlet.records import Record

        if report.when == "setup":
            for name, value in report.user_properties:
                if name == _PROPERTY:
                    self._desk.take(Record.model_validate_json(str(value)))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Whatever stopped the run, every selected case gets a record, and the reports are written.

        A run whose results could not all be written is no success, whatever its tests say.
        """
        hosting.clear_line(self._config)
        why = str(session.shouldfail or session.shouldstop or "")
        if not why and exitstatus == pytest.ExitCode.INTERRUPTED:
            why = "interrupted"
        self._desk.close(why)
        if self._desk.lost and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The leaderboard, its provenance, and last the paths of the artifacts."""
        wide = terminalreporter.isatty or "COLUMNS" in os.environ
        width = shutil.get_terminal_size().columns if wide else 120
        terminalreporter.section("gauntlet")
        terminalreporter.write(self._desk.leaderboard(width, terminalreporter.hasmarkup))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Collection went well: open the desk. Under --plan: print what would run, run nothing."""
    config = session.config
    if not hosting.is_worker(config) and not config.option.collectonly:
        with _told():
            _open_desk(config, hosting.cases_of(config, session.items))
    if config.option.collectonly or session.testsfailed or not config.getoption("gauntlet_plan", None):
        return None
    text = "no test asks for a case: nothing to plan"
    if cases := hosting.cases_of(config, session.items):
        text = _plan(config, cases)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"\n{text}")
    return True


def _plan(config: pytest.Config, cases: Sequence[Case]) -> str:
    from gauntlet.measure import cores
    from gauntlet.plan import plan_text

    # Before planning, which is no part of a run. Workers start after this process, and take as long again.
    startup = age() * (2 if _WORKERS in config.stash else 1)
    asked = config.stash.get(_WORKERS, 1)
    workers = asked if isinstance(asked, int) else cores()
    plan = hosting.session_of(config).plan(cases, workers)
    return plan_text(plan, config.stash.get(hosting.CHOICE, None), workers=workers, startup=startup)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    """One case of the chosen suites; a test that asks for it runs once for each."""
    try:
        return hosting.case_named(request.config, request.param)
    except GauntletError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def outcome(request: pytest.FixtureRequest, case: Case) -> Judged:
    """The case trained, scored and judged. Its record is kept before any test asserts anything."""
    config = request.config
    record, error = hosting.session_of(config).attempt(case, config.stash.get(hosting.CHOICE, None))
    hosting.clear_line(config)
    request.node.user_properties.append((_PROPERTY, record.model_dump_json()))
    if isinstance(error, GauntletError):
        pytest.fail(record.reason, pytrace=False)
    if error is not None:
        raise error
    if record.status in ("not-applicable", "not-run"):
        pytest.skip(record.reason)
    return Judged(record, hosting.options_of(config).strict_gates)
