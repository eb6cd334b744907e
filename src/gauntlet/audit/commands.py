"""`gauntlet audit`, `gauntlet predict` and `gauntlet eval`. What is heavy is imported by the command that needs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gauntlet.errors import GauntletError, SettingError
from gauntlet.options import OPTIONS, options_from

if TYPE_CHECKING:
    from gauntlet.audit.run import AuditResult
    from gauntlet.progress import Progress
    from gauntlet.records import Record

__all__ = ["add_audit", "add_eval", "add_predict"]

_SHARED = ("--device", "--seeds", "--store", "--results", "--data-dir", "--offline", "--recompute", "--plugin")

_AUDIT_EXAMPLES = """\
examples:
  gauntlet audit --model sunglasses_bd_net.h5 --clean clean_validation_data.h5
  gauntlet audit --model net.h5 --clean photos/ --trigger glasses.png@0,15 --max-asr 0.05
  gauntlet audit --model weights.h5 --network deepid --clean clean.h5 --poisoned poisoned.h5
  gauntlet audit --model net.onnx --clean photos/ --resize

The report goes to results/<run>/audit.md and audit.html, the best repair that passes the gate to results/<run>/repaired
and, as a pair that flags what both disagree on, to results/<run>/n_plus_1 (`gauntlet predict` takes either).
Exit codes: 0 done, 1 a model verdict flagged the model or a trigger works (only with --fail-if-suspicious), 2 an error,
a defense's too, or nothing that could be checked (only with --fail-if-suspicious), 130 interrupted.
"""


def add_audit(commands: Any) -> None:
    """Register `gauntlet audit`."""
    parser = commands.add_parser(
        "audit",
        help="audit a model that somebody handed you",
        description="Run every applicable repair, input detector and model verdict on a model and some clean images.",
        epilog=_AUDIT_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="FILE", help="Keras .h5, ONNX, .safetensors or .pt")
    add("--clean", required=True, metavar="DATA", help="clean images: an .h5 file, a folder of classes, or TASK:PATH")
    add("--network", default="", metavar="NAME", help="the architecture, where the file holds weights alone")
    add("--test", type=Path, metavar="DATA", help="clean images for the evaluator (otherwise half of --clean)")
    add(
        "--poisoned", type=Path, action="append", default=[], metavar="FILE", help="triggered images with wanted labels"
    )
    add("--trigger", action="append", default=[], metavar="PNG@X,Y[:TARGET]", help="a suspected trigger; repeatable")
    add("--input-range", choices=("0..1", "0..255"), default="0..1", help="what the model takes pixels as (0..1)")
    add("--classes", type=int, metavar="N", help="number of classes (otherwise the file or the data say it)")
    _images(parser)
    add("--suite", default="audit", metavar="NAME", help="suite that lists the defenses (audit)")
    add("--only", action="append", default=[], metavar="DEFENSE", help="only this defense of the suite; repeatable")
    add("--reserve", type=int, metavar="N", help="clean images for the defender (otherwise all of its part)")
    add("--min-clean-accuracy", type=_share, metavar="S", help="gate of a repair (5 points below the model as it is)")
    add("--max-asr", type=_share, default=0.1, metavar="S", help="gate of a repair where a trigger is known (0.1)")
    add("--fail-if-suspicious", action="store_true", help="exit with 1 when the model is flagged or a trigger works")
    for option in OPTIONS:
        if option.flag in _SHARED:
            option.add_to(parser.add_argument)
    parser.set_defaults(command=_audit)


def add_predict(commands: Any) -> None:
    """Register `gauntlet predict`."""
    parser = commands.add_parser(
        "predict",
        help="one class for one image",
        description="Print the class of an image, 0 to N - 1, or N when a pair of models disagrees: poisoned.",
    )
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="a folder that an audit exported, or an .h5 or .onnx model"
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a PNG or JPEG of the model's size")
    parser.add_argument("--resize", action="store_true", help="resize an image of another size (bilinear)")
    parser.add_argument(
        "--input-range", choices=("0..1", "0..255"), default="0..1", help="what a model file takes pixels as (0..1)"
    )
    _plugin(parser)
    parser.set_defaults(command=_predict)


def add_eval(commands: Any) -> None:
    """Register `gauntlet eval`."""
    parser = commands.add_parser(
        "eval",
        help="the accuracy of a model on a file of images",
        description="Print the share of images whose class is their label, in percent; of triggered images that carry "
        "the target's label this is the attack success rate.",
    )
    parser.add_argument("data", metavar="DATA", help="an .h5 file, a folder of classes, or TASK:PATH")
    parser.add_argument("model", type=Path, metavar="MODEL", help="a model file, or a folder that an audit exported")
    parser.add_argument("--network", default="", metavar="NAME", help="the architecture of a file of weights alone")
    parser.add_argument(
        "--input-range", choices=("0..1", "0..255"), default="0..1", help="what the model takes pixels as"
    )
    parser.add_argument("--classes", type=int, metavar="N", help="number of classes")
    _images(parser)
    _plugin(parser)
    parser.set_defaults(command=_eval)


def _images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--resize",
        action="store_true",
        help="resize images of another size to the model's (bilinear), and picture files to its channels",
    )
    parser.add_argument(
        "--data-setting",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the clean images' task, as in value_range=0..1 (`gauntlet list tasks`); repeatable",
    )
    parser.add_argument(
        "--input-size", default="", metavar="HxW", help="with --resize: the size of a model whose file doesn't say it"
    )


def _plugin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin", action="append", type=Path, default=[], metavar="FILE", help="load plug-ins from this Python file"
    )


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; legal: 0 to 1, as in 0.9 for 90 %")
    return share


def _audit(chosen: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.text import Text

    from gauntlet.audit.report import headline, write_audit
    from gauntlet.audit.request import Request, parse_setting, parse_size, parse_trigger
    from gauntlet.audit.run import perform
    from gauntlet.audit.setup import open_audit
    from gauntlet.results import ResultsWriter, new_folder
    from gauntlet.terminal import print_leaderboard

    request = Request(
        model=chosen.model,
        clean=chosen.clean,
        network=chosen.network,
        test=chosen.test,
        poisoned=tuple(chosen.poisoned),
        triggers=tuple(parse_trigger(text) for text in chosen.trigger),
        input_range=chosen.input_range,
        classes=_positive("--classes", chosen.classes),
        suite=chosen.suite,
        only=tuple(chosen.only),
        reserve=_positive("--reserve", chosen.reserve),
        min_clean=chosen.min_clean_accuracy,
        max_asr=chosen.max_asr,
        resize=chosen.resize,
        input_size=parse_size(chosen.input_size) if chosen.input_size else None,
        data_settings=tuple(parse_setting(text) for text in chosen.data_setting),
    )
    options = options_from(lambda dest: vars(chosen).get(dest))
    console = Console(highlight=False)
    progress, close = _progress()
    try:
        audit = open_audit(request, options, _warn, progress)
        writer = ResultsWriter(new_folder(options.results, f"audit-{request.model.stem}"), _warn)
        found = perform(audit, writer, lambda record: _tell(console, record), _warn)
        files = writer.finish(audit.session.context.registry) + write_audit(writer.folder, audit, found)
    finally:
        close()
    files += found.best.files if found.best else ()
    print_leaderboard(found.records, console, files)
    console.print()
    console.print(Text(headline(found), style="bold"), soft_wrap=True)
    if found.interrupted:
        sys.stderr.write("gauntlet: interrupted; the same command goes on from the store\n")
        return 130
    if found.broken:
        return 2
    return _gated(found) if chosen.fail_if_suspicious else 0


def _gated(found: AuditResult) -> int:
    """The exit code under --fail-if-suspicious: a gate that nobody could check has not been passed."""
    if any(found.suspects.values()) or found.works:
        return 1
    if found.unchecked:
        sys.stderr.write(f"gauntlet: --fail-if-suspicious: the gate was not checked: {found.unchecked}\n")
        return 2
    return 0


def _positive(flag: str, value: int | None) -> int:
    """The number, or 0 where none was given."""
    if value is not None and value < 1:
        raise SettingError(f"{flag} {value}: legal: from 1")
    return value or 0


def _progress() -> tuple[Progress, Callable[[], None]]:
    from gauntlet.live import LiveLine, open_terminal
    from gauntlet.progress import Silent

    terminal = open_terminal() if sys.stderr.isatty() else None
    if terminal is None:
        return Silent(), lambda: None
    line = LiveLine(terminal)

    def close() -> None:
        line.clear()
        terminal.close()

    return line, close


def _tell(console: Any, record: Record) -> None:
    from rich.text import Text

    from gauntlet.summary import defense_label, seconds
    from gauntlet.wording import duration

    reason = f": {record.reason}" if record.reason else ""
    # As it is: names and settings have brackets, which rich would take for markup.
    line = Text(f"{defense_label(record)} {record.verdict} ({duration(seconds(record))}){reason}")
    console.print(line, soft_wrap=True)


def _warn(text: str) -> None:
    sys.stderr.write(f"gauntlet: warning: {text}\n")


def _predict(chosen: argparse.Namespace) -> int:
    from gauntlet.audit.bundle import open_bundle, open_file
    from gauntlet.audit.inputs import one_image
    from gauntlet.registry import Registry

    registry = Registry.discover(chosen.plugin)
    if chosen.bundle.is_file():
        bundle = open_file(chosen.bundle, chosen.input_range, registry)
    elif chosen.input_range == "0..1":
        bundle = open_bundle(chosen.bundle, registry)
    else:
        raise SettingError("--input-range is for model files: a bundle says itself what it takes pixels as")
    image = one_image(chosen.image, bundle.shape, resize=chosen.resize)
    sys.stdout.write(f"{int(bundle.predict(image))}\n")
    return 0


def _eval(chosen: argparse.Namespace) -> int:
    from gauntlet.audit.inputs import accuracy
    from gauntlet.audit.request import Request, parse_setting, parse_size

    request = Request(
        model=chosen.model,
        clean=chosen.data,
        network=chosen.network,
        input_range=chosen.input_range,
        classes=_positive("--classes", chosen.classes),
        only=("none",),
        resize=chosen.resize,
        input_size=parse_size(chosen.input_size) if chosen.input_size else None,
        data_settings=tuple(parse_setting(text) for text in chosen.data_setting),
    )
    try:
        share = accuracy(request, tuple(chosen.plugin), _warn)
    except RecursionError as error:
        raise GauntletError(f"{chosen.model} is nested too deep") from error
    sys.stdout.write(f"Classification accuracy: {100 * share}\n")
    return 0
