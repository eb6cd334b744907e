"""The `gauntlet` command: what there is, what a run would cost, old results, the store. `pytest bench` runs cases.

Exit codes: 0 all well, 1 something was found (damage, a suspicious model, a case that got worse), 2 a mistake of usage
or a user error (one line on stderr), or a fault of ours (with its traceback), 130 interrupted.
Everything heavy is imported by the command that needs it, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from gauntlet import __version__
from gauntlet.audit.commands import add_audit, add_eval, add_predict
from gauntlet.clock import age
from gauntlet.errors import GauntletError, SettingError, StoreError
from gauntlet.files import is_utf8
from gauntlet.options import OPTIONS, options_from
from gauntlet.paths import default_store

if TYPE_CHECKING:
    from typing import TypeAlias

    from gauntlet.store import Listed, Store

    _Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"

__all__ = ["main"]

_LISTED = ("attacks", "defenses", "models", "tasks", "suites", "reports")

_EXAMPLES = """\
examples:
  pytest bench                               run the quick suite and print the leaderboard
  pytest bench -k clean_label                only the clean-label attacks
  gauntlet list attacks --settings           every attack with its settings, defaults and legal values
  gauntlet plan --suite digits --seeds 5     what a run would compute, and how long that takes
  gauntlet report results/20261121-023000-quick
                                             rebuild the reports of a run and print its leaderboard
  gauntlet compare results/20261121-023000-quick results/20261122-023000-quick
                                             which cases got worse from one run to the other
  gauntlet store prune --older-than 30 --dry-run
  gauntlet audit --model suspicious.h5 --clean clean_images.h5
                                             every repair, detector and verdict on a model that you were handed
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; argparse exits by itself for --help, --version and wrong usage."""
    given = sys.argv[1:] if arguments is None else arguments
    chosen = _parser().parse_args(given)
    command: Callable[[argparse.Namespace], int] = chosen.command
    try:
        _refuse_bytes(given)
        code = command(chosen)
        sys.stdout.flush()
    except GauntletError as error:
        sys.stderr.write(f"gauntlet: {' '.join(str(error).split())}\n")
        return 2
    except BrokenPipeError:
        # The reader (head, less) has gone; python must not complain while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("gauntlet: interrupted\n")
        return 130
    except Exception:
        # Python's own exit code would be 1, which says that something was found.
        traceback.print_exc()
        return 2
    return code


def _refuse_bytes(arguments: Sequence[str]) -> None:
    """Names of files stand in reports and in the store, which are UTF-8."""
    if odd := next((each for each in arguments if not is_utf8(each)), None):
        raise SettingError(f"{ascii(odd)[1:-1]} is no UTF-8; rename the file or folder")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gauntlet",
        description="Does this backdoor defense really work? `pytest bench` runs the cases; this does the rest.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gauntlet {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_list(commands)
    _add_plan(commands)
    _add_report(commands)
    _add_compare(commands)
    _add_store(commands)
    add_audit(commands)
    add_predict(commands)
    add_eval(commands)
    return parser


def _add_list(commands: _Commands) -> None:
    parser = commands.add_parser("list", help="list plug-ins and suites", description="List plug-ins and suites.")
    parser.add_argument("kind", nargs="?", choices=_LISTED, help="what to list (default: everything)")
    parser.add_argument("-v", "--settings", action="store_true", help="also settings, defaults and legal values")
    parser.add_argument("--json", action="store_true", help="write JSON, settings included")
    _add_plugin(parser)
    parser.set_defaults(command=_list)


def _add_plan(commands: _Commands) -> None:
    what = "Print the cases of a suite, what is cached and what the rest will cost; run nothing."
    parser = commands.add_parser("plan", help="what a run would compute and cost", description=what)
    for option in OPTIONS:
        if not option.run_only:
            option.add_to(parser.add_argument)
    parser.set_defaults(command=_plan)


def _add_report(commands: _Commands) -> None:
    what = "Rebuild every report of a run from its records.jsonl and print the leaderboard."
    parser = commands.add_parser("report", help="rebuild the reports of a run", description=what)
    parser.add_argument("folder", type=Path, metavar="RESULTS_DIR", help="the folder of a run, as in results/<run>")
    _add_plugin(parser)
    parser.set_defaults(command=_report)


def _add_compare(commands: _Commands) -> None:
    parser = commands.add_parser(
        "compare",
        help="what got worse between two runs",
        description="Print status, clean accuracy and ASR of every case of two runs, and what got worse: a status, or "
        "a figure whose 95 % Wilson interval no longer meets the old one. ASR is worse when it rises, and where the "
        "gate has a min_asr when it falls. Exit code 1 when a case got worse, 0 when none did, 2 for an error.",
    )
    for name, which in (("old", "earlier"), ("new", "later")):
        parser.add_argument(
            name, type=Path, metavar=name.upper(), help=f"the {which} run's folder, as in results/<run>"
        )
    parser.set_defaults(command=_compare)


def _add_store(commands: _Commands) -> None:
    what = "The store keeps trained victims, defended models and scores, so that nothing is made twice."
    parser = commands.add_parser("store", help="list, verify or prune the store", description=what)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("ls", help="list the entries", description="List the entries.")
    verify = actions.add_parser(
        "verify",
        help="check every byte; exit code 1 when an entry is damaged",
        description="Check every byte of every entry and set damaged ones aside; they are made anew when needed. "
        "In a store that can't be written they are only named.",
    )
    prune = actions.add_parser(
        "prune",
        help="remove leftovers and old entries",
        description="Remove unfinished and damaged entries; with --older-than or --kind also whole ones.",
    )
    prune.add_argument("--older-than", type=_days, metavar="DAYS", help="entries made more than DAYS days ago")
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")
    for action, command in ((listing, _store_ls), (verify, _store_verify), (prune, _store_prune)):
        action.add_argument(
            "--store", type=Path, default=None, metavar="DIR", help="the store ($GAUNTLET_STORE or the cache folder)"
        )
        action.set_defaults(command=command)
    for action in (listing, prune):
        action.add_argument("--kind", metavar="KIND", help="only entries of one kind, as in victim")


def _add_plugin(parser: _Parser) -> None:
    parser.add_argument(
        "--plugin", action="append", type=Path, default=[], metavar="FILE", help="load plug-ins from this Python file"
    )


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of days; legal: from 0")
    return days


def _warn(text: str) -> None:
    sys.stderr.write(f"gauntlet: warning: {text}\n")


def _list(chosen: argparse.Namespace) -> int:
    from gauntlet.paths import suite_folders
    from gauntlet.recall import code_state, file_states, recalled

    kinds = [chosen.kind] if chosen.kind else list(_LISTED)
    question = {
        "what": "list",
        "kinds": kinds,
        "as": [chosen.json, chosen.settings],
        "code": code_state(chosen.plugin),
        "suites": file_states(path for folder in suite_folders() for path in folder.glob("*.toml")),
    }

    def make() -> str:
        from gauntlet.listing import listing
        from gauntlet.registry import Registry

        return listing(kinds, Registry.discover(chosen.plugin), json=chosen.json, settings=chosen.settings)

    sys.stdout.write(recalled(default_store(), question, make))
    return 0


def _plan(chosen: argparse.Namespace) -> int:
    from gauntlet.plan import choose, plan_text
    from gauntlet.session import open_session

    options = replace(options_from(vars(chosen).get), plan=True)
    session = open_session(options, _warn)
    for warning in session.warnings:
        _warn(warning)
    startup = age()
    plan = session.plan(session.cases)
    choice = None if options.budget is None else choose(plan, options.budget)
    sys.stdout.write(plan_text(plan, choice, startup=startup) + "\n")
    return 0


def _report(chosen: argparse.Namespace) -> int:
    from rich.console import Console

    from gauntlet.registry import Registry
    from gauntlet.results import read_records, write_reports
    from gauntlet.terminal import print_leaderboard

    records = read_records(chosen.folder, _warn)
    paths = write_reports(chosen.folder, records, Registry.discover(chosen.plugin), _warn)
    print_leaderboard(records, Console(highlight=False), paths)
    return 0


def _compare(chosen: argparse.Namespace) -> int:
    from gauntlet.comparison import compare
    from gauntlet.results import read_records

    found = compare(read_records(chosen.old, _warn), read_records(chosen.new, _warn))
    sys.stdout.write(found.text())
    return 1 if found.worse else 0


def _open_store(chosen: argparse.Namespace, *, read_only: bool = True) -> Store:
    from gauntlet.store import Store

    root = chosen.store or default_store()
    if not root.is_dir():
        raise StoreError(f"there is no store in {root}; `pytest bench` makes one, --store DIR names another")
    return Store(root, _warn, read_only=read_only)


def _of_kind(listed: Sequence[Listed], kind: str | None) -> list[Listed]:
    known = sorted({item.kind for item in listed})
    if kind is not None and kind not in known:
        raise SettingError(f"the store has no entries of kind {kind!r}; it has: {', '.join(known) or 'none'}")
    return [item for item in listed if kind in (None, item.kind)]


def _store_ls(chosen: argparse.Namespace) -> int:
    from tabulate import tabulate

    from gauntlet.wording import duration, size

    listed = _of_kind(list(_open_store(chosen).entries()), chosen.kind)
    rows = [
        (
            item.kind,
            item.key[:12],
            size(item.bytes),
            f"{item.created:%Y-%m-%d %H:%M}",
            duration(item.seconds),
            item.summary,
        )
        for item in listed
    ]
    headers = ("kind", "key", "size", "made (UTC)", "took", "of")
    sys.stdout.write(tabulate(rows, headers, tablefmt="simple", disable_numparse=True) + "\n\n")
    sys.stdout.write(f"{len(listed)} entries, {size(sum(item.bytes for item in listed))}\n")
    return 0


def _store_verify(chosen: argparse.Namespace) -> int:
    store = _open_store(chosen)
    damaged = set()
    for damage in store.verify():
        damaged.add((damage.kind, damage.key))
        fate = f"set aside in {damage.moved_to}" if damage.moved_to else "left there: the store can't be written"
        sys.stdout.write(f"{damage.kind}/{damage.key[:12]}: {damage.reason}; {fate}\n")
    whole = sum((item.kind, item.key) not in damaged for item in store.entries())
    sys.stdout.write(f"{whole} entries whole, {len(damaged)} damaged\n")
    return 1 if damaged else 0


def _store_prune(chosen: argparse.Namespace) -> int:
    from gauntlet.wording import size

    store = _open_store(chosen, read_only=chosen.dry_run)
    kinds = () if chosen.kind is None else (chosen.kind,)
    listed = _of_kind(list(store.entries()), chosen.kind)
    pruned = store.prune(chosen.older_than, kinds, dry_run=chosen.dry_run)
    names = set(pruned.removed)
    whole = [item for item in listed if f"{item.kind}/{item.key}" in names]
    freed = sum(item.bytes for item in whole)
    if chosen.dry_run:
        sys.stdout.writelines(f"{item.kind}/{item.key[:12]}  {item.summary}\n" for item in whole)
    entries, leftovers = f"{len(whole)} entries, {size(freed)}", f"{len(names) - len(whole)} leftovers"
    sys.stdout.write(
        f"{'would remove' if chosen.dry_run else 'removed'} {entries}, and {leftovers} (unfinished or damaged entries, "
        f"idle locks), {size(pruned.bytes - freed)}\n"
    )
    return 0
