"""Synthesizers: triggers as settings, for any attack.

An attack that takes them derives from `Triggered`, which gives it the setting `triggers`, its check and its backdoors.
`painters` then makes triggered training samples. A new synthesizer is a file here and a member of `Trigger`.
"""

from __future__ import annotations

from gauntlet.synthesizers._base import Synthesizer
from gauntlet.synthesizers.calculator import Calculator
from gauntlet.synthesizers.complex import Complex
from gauntlet.synthesizers.dynamic import Dynamic
from gauntlet.synthesizers.pattern import Pattern
from gauntlet.synthesizers.physical import Physical
from gauntlet.synthesizers.pixel import Pixel
from gauntlet.synthesizers.semantic import Semantic
from gauntlet.synthesizers.triggers import (
    Painter,
    Trigger,
    Triggered,
    Triggers,
    backdoors_of,
    check_triggers,
    clean_part,
    painters,
)

__all__ = [
    "Calculator",
    "Complex",
    "Dynamic",
    "Painter",
    "Pattern",
    "Physical",
    "Pixel",
    "Semantic",
    "Synthesizer",
    "Trigger",
    "Triggered",
    "Triggers",
    "backdoors_of",
    "check_triggers",
    "clean_part",
    "painters",
]
