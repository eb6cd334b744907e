"""The audit's own report: what was handed over, what every defense says, which repair was exported."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from gauntlet.audit.pictures import Recovered, recovered
from gauntlet.audit.run import AuditResult, guessing, untouched
from gauntlet.audit.setup import Audit
from gauntlet.case import label
from gauntlet.defense import Stage
from gauntlet.errors import DataError
from gauntlet.files import content
from gauntlet.findings import Findings
from gauntlet.records import Record, Status
from gauntlet.stats import Rate
from gauntlet.summary import BackdoorFigures, defense_label, figures
from gauntlet.wording import DASH, duration, percent, provenance_lines, rate_text

__all__ = ["Page", "headline", "page", "write_audit"]


@dataclass(frozen=True)
class Page:
    """The whole report as plain values. triggers: of each model verdict, by its label."""

    title: str
    verdict: str
    facts: tuple[tuple[str, str], ...]
    tables: tuple[Findings, ...]
    triggers: tuple[tuple[str, tuple[Recovered, ...]], ...]
    repair: str
    provenance: tuple[tuple[str, str], ...]


def page(audit: Audit, found: AuditResult) -> Page:
    """The report's content."""
    named = {case.id: label(case.defense) for case in audit.session.cases}
    triggers = tuple((named[key], tuple(recovered(each))) for key, each in found.inspections.items())
    return Page(
        title=f"Audit of {audit.request.model.name}",
        verdict=headline(found),
        facts=tuple(_facts(audit)),
        tables=tuple(table for table in _tables(found.records) if table.rows),
        triggers=triggers,
        repair=_repair(found),
        provenance=tuple(provenance_lines(found.records)),
    )


def headline(found: AuditResult) -> str:
    """What the verdicts and the triggers say of the model as it was handed over, and first why that may be wrong."""
    first = found.records[0]
    if not first.scores:
        return f"The model could not be run: {first.reason}"
    before = untouched(first)
    parts = [_trigger(backdoor, backdoor.name in found.works) for backdoor in (before.backdoors if before else ())]
    flagged = {name: suspects for name, suspects in found.suspects.items() if suspects}
    quiet = [name for name, suspects in found.suspects.items() if not suspects]
    parts += [f"{name} calls class {_listed(suspects)} a target" for name, suspects in flagged.items()]
    if quiet:
        parts.append(f"{' and '.join(quiet)} flag{'s' * (len(quiet) == 1)} nothing")
    text = f"{'; '.join(parts)}." if parts else _nothing(found.records)
    if parts and not flagged and not found.works:
        text += " That is no proof that the model is clean."
    warning = "" if found.chance is None else f"{guessing(first, found.chance)} "
    return f"{warning}{text}{_incomplete(found.broken)}"


def _trigger(backdoor: BackdoorFigures, works: bool) -> str:
    """The share of images that it succeeds on, and without it, with intervals."""
    what = "works: it" if works else "isn't shown to work: it"
    with_it, without = _rate(backdoor.asr), _rate(backdoor.untriggered)
    return f"{backdoor.name} {what} succeeds on {with_it} % of {backdoor.asr.n} images (without it {without} %)"


def _nothing(records: Sequence[Record]) -> str:
    """Where no trigger was given and no verdict speaks."""
    asked = any(record.stage == Stage.MODEL_VERDICT for record in records)
    verdicts = "No model verdict came to an answer" if asked else "No model verdict was asked"
    return f"{verdicts} and no trigger was given: only the repairs and the false alarms were measured."


def _incomplete(broken: Sequence[Record]) -> str:
    """What came to no result, and why; the cases of one reason together."""
    reasons: dict[tuple[Status, str], list[str]] = {}
    for record in broken:
        reasons.setdefault((record.status, record.reason), []).append(defense_label(record))
    return "".join(
        f" {'Broke off' if status is Status.ERROR else 'Not run'}: {_listed(names)} ({reason})."
        for (status, reason), names in reasons.items()
    )


def _listed(classes: Sequence[object], most: int = 8) -> str:
    text = ", ".join(map(str, classes[:most]))
    return text if len(classes) <= most else f"{text} and {len(classes) - most} more"


def _facts(audit: Audit) -> Iterator[tuple[str, str]]:
    request, case, facts = audit.request, audit.session.cases[0], audit.facts
    channels, height, width = facts.shape
    yield "model", f"{request.model.name}, sha256 {content(request.model)[:16]}, {label(case.architecture)}"
    colours = f"{channels} channel{'s' * (channels > 1)}"
    yield "input", f"{height}x{width}, {colours}, pixels {request.input_range}; {facts.classes} classes"
    yield "clean images", f"{case.reserve} for the defender, {facts.test_size} for the evaluator ({facts.provenance})"
    if request.resize:
        yield "resized", f"images of another size to {height}x{width}, bilinear"
    for trigger, share in audit.found:
        how = (
            "as given" if math.isnan(share) else f"found: {percent(share)} % of the defender's images go there with it"
        )
        place = f"{trigger.picture.name} at column {trigger.x}, row {trigger.y}"
        yield "trigger", f"{place}; target {trigger.target}, {how}"
    for path in request.poisoned:
        yield "poisoned images", path.name


def _tables(records: Sequence[Record]) -> Iterator[Findings]:
    yield Findings(
        "Defenses",
        "Clean accuracy and attack success rate (ASR) on the evaluator's images, in percent, with 95 % Wilson "
        "intervals; untriggered: clean images of other classes that go to the target without any trigger. An input "
        "that a detector rejects counts neither as right nor as a success of the attack.",
        ("defense", "stage", "clean accuracy", "backdoor", "ASR", "untriggered", "gate", "took"),
        tuple(row for record in records for row in _measured(record)),
    )
    yield Findings(
        "Input detectors",
        "Flagged images in percent. False alarms: clean images of the evaluator; caught: triggered ones.",
        ("defense", "threshold", "false alarms", "backdoor", "caught", "AUROC"),
        tuple(row for record in records for row in _detected(record)),
    )
    yield Findings(
        "Model verdicts",
        "Suspects by their anomaly index; the index of every class stands in anomaly.csv.",
        ("defense", "flagged", "suspects", "highest index", "median index"),
        tuple(row for record in records for row in _judged(record)),
    )


def _measured(record: Record) -> Iterator[tuple[str, ...]]:
    found = figures(record)
    # What stands in brackets is said by the row itself.
    reason = record.reason.partition(" (")[0]
    gate = f"{record.verdict}: {reason}" if reason else record.verdict
    name, took = defense_label(record), duration(_seconds(record))
    if found is None:
        yield name, record.stage, DASH, DASH, DASH, DASH, gate, took
        return
    clean = rate_text(found.clean)
    if not found.backdoors:
        yield name, record.stage, clean, DASH, DASH, DASH, gate, took
    for backdoor in found.backdoors:
        shares = (_rate(backdoor.asr), _rate(backdoor.untriggered))
        yield name, record.stage, clean, backdoor.name, *shares, gate, took


def _seconds(record: Record) -> float:
    """What the defense took: a repair in its own step, a detector while it is scored."""
    return sum(cost.seconds for cost in record.costs if cost.step in ("defense", "score"))


def _detected(record: Record) -> Iterator[tuple[str, ...]]:
    found = [score.detector for score in record.scores if score.detector]
    if not found:
        return
    head = (defense_label(record), f"{found[0].threshold:.4g}", _rate(Rate.of([each.clean for each in found])))
    if not found[0].backdoors:
        yield *head, DASH, DASH, DASH
    for place, backdoor in enumerate(found[0].backdoors):
        caught = Rate.of([each.backdoors[place].flagged for each in found])
        yield *head, backdoor.name, _rate(caught), f"{100 * backdoor.auroc:.1f}"


def _judged(record: Record) -> Iterator[tuple[str, ...]]:
    for score in record.scores:
        if score.verdict:
            anomaly = sorted(score.verdict.anomaly)
            flagged = "yes" if score.verdict.flagged else "no"
            suspects = _listed(score.verdict.suspects) or DASH
            yield defense_label(record), flagged, suspects, f"{anomaly[-1]:.2f}", f"{anomaly[len(anomaly) // 2]:.2f}"


def _rate(rate: Rate) -> str:
    return rate_text(rate) if rate.n else DASH


def _repair(found: AuditResult) -> str:
    if found.chance is not None:
        return "Nothing was exported: beside a model that may only be guessing no repair can be judged."
    if found.interrupted:
        return "Nothing was exported: the audit was interrupted."
    if found.best is None:
        return "No repair passes the gate: nothing was exported."
    return f"{found.best.why}. It was exported: `repaired/` alone, `n_plus_1/` with the model as it was handed over."


def write_audit(folder: Path, audit: Audit, found: AuditResult) -> list[Path]:
    """audit.md, audit.html (when jinja2 is there), anomaly.csv and the pictures of recovered triggers."""
    made = page(audit, found)
    files: dict[str, bytes] = {"audit.md": markdown(made).encode()}
    for name, triggers in made.triggers:
        files |= {_file(name, each): each.picture for each in triggers if each.picture}
    anomalies = [(record, score.verdict) for record in found.records for score in record.scores[:1] if score.verdict]
    if anomalies:
        lines = ["defense,class,anomaly_index,suspect"]
        for record, verdict in anomalies:
            suspects = set(verdict.suspects)
            name = defense_label(record).replace('"', "'")
            lines += [
                f'"{name}",{each},{value!r},{int(each in suspects)}' for each, value in enumerate(verdict.anomaly)
            ]
        files["anomaly.csv"] = ("\n".join(lines) + "\n").encode()
    if (rendered := html(made)) is not None:
        files["audit.html"] = rendered.encode()
    try:
        for name, data in files.items():
            (folder / f".{name}.tmp").write_bytes(data)
            (folder / f".{name}.tmp").replace(folder / name)
    except OSError as error:
        raise DataError(f"the results folder {folder} can't be written: {error.strerror}; choose another") from error
    return [folder / name for name in files]


def _file(name: str, trigger: Recovered) -> str:
    return f"trigger_{re.sub(r'[^A-Za-z0-9.]+', '_', name).strip('_')}_{trigger.target}.png"


def markdown(made: Page) -> str:
    """The report for a terminal or a merge request."""
    lines = [f"# {made.title}", "", f"**{made.verdict}**", ""]
    lines += [f"- {what}: {value}" for what, value in made.facts]
    for table in made.tables:
        rows = [[cell.replace("|", "\\|") for cell in row] for row in table.rows]
        lines += [
            "",
            f"## {table.title}",
            "",
            table.legend,
            "",
            tabulate(rows, table.headings, "github", disable_numparse=True),
        ]
    for name, triggers in made.triggers:
        lines += ["", f"## Recovered triggers: {name}", ""]
        for each in triggers:
            what = "suspect" if each.suspect else "not suspect"
            shown = f", ![class {each.target}]({_file(name, each)})" if each.picture else ""
            lines.append(
                f"- class {each.target}: index {each.index:.2f}, {what}, mask of {each.size:.1f} pixels{shown}"
            )
    lines += ["", "## Repair", "", made.repair, ""]
    lines += [f"- {what}: {value}" for what, value in made.provenance]
    return "\n".join(lines) + "\n"


def html(made: Page) -> str | None:
    """One self-contained page; None without jinja2."""
    try:
        import jinja2
    except ImportError:
        return None
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["inline"] = lambda data: f"data:image/png;base64,{base64.b64encode(data).decode()}"
    template = Path(__file__).with_name("page.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(page=made) + "\n"
