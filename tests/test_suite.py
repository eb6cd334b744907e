from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from gauntlet.case import Case
from gauntlet.errors import SettingError, UnknownNameError
from gauntlet.expansion import cells, expand, merged, unmatched
from gauntlet.facts import TaskFacts
from gauntlet.options import Options
from gauntlet.paths import suite_folders
from gauntlet.registry import Registry
from gauntlet.session import open_session
from gauntlet.suite import Selector, Subject, find_suite, read_suite
from gauntlet.task import TaskSource
from tests.sample_scores import REGISTRY, TINY, facts, suite


def facts_of(_source: TaskSource, name: str) -> TaskFacts:
    return facts(name)


def expanded(folder: Path, text: str = TINY, **options: object) -> list[Case]:
    return expand(suite(folder, text), REGISTRY, facts_of, **options)  # type: ignore[arg-type]


def problem(folder: Path, text: str) -> str:
    with pytest.raises(SettingError) as caught:
        expanded(folder, text)
    message = str(caught.value)
    assert "\n" not in message
    return message


SUITES = sorted((Path(__file__).parents[1] / "bench").glob("*.toml"))


@pytest.mark.parametrize("file", SUITES, ids=lambda file: file.stem)
def test_the_suites_of_the_project_hold(file: Path) -> None:
    """Every name is known, every rule matches, and the undefended row of a case stands before it."""
    found = read_suite(file)
    assert found.description
    assert find_suite(file.stem, suite_folders()).samefile(file)
    planned = [cell for block in found.blocks for cell in cells(block, REGISTRY)]
    assert unmatched(found, [cell.subject for cell in planned]) == []
    assert planned[0].subject.defense == ("none", "none")
    for block in found.blocks:
        ids = [cell.subject.id for cell in cells(block, REGISTRY)]
        assert len(set(ids)) == len(ids)


def test_a_case_has_what_the_suite_says(tmp_path: Path) -> None:
    text = TINY.replace("seeds = [0]", "seeds = [3, 4]\nreserve = 50") + "[recipe]\nepochs = 2\n"
    cases = expanded(tmp_path, text + "[thresholds]\nmin_undefended_asr = 0.6\n")
    assert [case.id for case in cases] == [
        "digits-shallow_net-none-none",
        "digits-shallow_net-none-fine_tuning",
        "digits-shallow_net-badnets-none",
        "digits-shallow_net-badnets-fine_tuning",
    ]
    first = cases[0]
    assert (first.suite, first.seeds, first.reserve, first.recipe.epochs) == ("tiny", (3, 4), 50, 2.0)
    assert (first.min_undefended_asr, first.collapse) == (0.6, 0.5)


def test_the_undefended_row_comes_first_wherever_the_suite_writes_it(tmp_path: Path) -> None:
    text = TINY.replace('["fine_tuning"]', '["fine_tuning", "none"]')
    assert [case.id.rpartition("-")[2] for case in expanded(tmp_path, text)] == ["none", "fine_tuning"] * 2


def test_a_list_is_a_grid_where_the_setting_takes_one_value(tmp_path: Path) -> None:
    text = TINY.replace('"badnets"', '{ name = "badnets", poison_ratio = [0.01, 0.2], patch = [3, 5] }')
    attacks = {case.id.split("-")[2] for case in expanded(tmp_path, text)} - {"none"}
    assert attacks == {
        "badnets[poison_ratio=0.01]",
        "badnets[poison_ratio=0.2]",
        "badnets[poison_ratio=0.01,patch=5]",
        "badnets[poison_ratio=0.2,patch=5]",
    }


def test_a_list_is_a_value_where_the_setting_takes_a_list(tmp_path: Path) -> None:
    one = TINY.replace('"badnets"', '{ name = "badnets", pixels = [[1, 0], [0, 1]] }')
    two = TINY.replace('"badnets"', '{ name = "badnets", pixels = [[[1, 0]], [[0, 1]]] }')
    assert len(expanded(tmp_path, one)) == 4
    assert len(expanded(tmp_path, two)) == 6


def test_a_combination_that_stands_there_twice_is_one_case(tmp_path: Path) -> None:
    text = TINY.replace('"badnets"', '"badnets", { name = "badnets", poison_ratio = [0.1, 0.2] }')
    ids = [case.id for case in expanded(tmp_path, text)]
    assert len(ids) == len(set(ids)) == 6


def test_tasks_seeds_and_recipe_can_be_overridden(tmp_path: Path) -> None:
    cases = expanded(tmp_path, tasks=["mnist"], seeds=[7], recipe={"compile": True})
    assert {(case.task_name, case.seeds, case.recipe.compile) for case in cases} == {("mnist", (7,), True)}


def test_recipes_for_tasks_and_architectures(tmp_path: Path) -> None:
    text = TINY.replace('["shallow_net"]', '["shallow_net", "le_net"]')
    recipes = """
[recipe]
epochs = 1
batch_size = 32
[recipe_for.digits]
epochs = 2
[recipe_for.le_net]
epochs = 3
"""
    found = {case.id.split("-")[1]: case.recipe for case in expanded(tmp_path, text + recipes)}
    assert (found["shallow_net"].epochs, found["le_net"].epochs) == (2, 3)
    assert found["le_net"].batch_size == 32


def test_a_share_as_reserve(tmp_path: Path) -> None:
    assert expanded(tmp_path, TINY + "reserve = 0.05\n")[0].reserve == 50


PART = """
[recipe]
epochs = 3
learning_rate = 0.5
[[gate]]
task = "mnist"
min_clean_accuracy = 0.7
[[part]]
tasks = ["mnist"]
attacks = ["single_pixel"]
seeds = [5]
reserve = 20
recipe = { epochs = 1 }
"""


def test_a_part_is_a_cross_product_of_its_own(tmp_path: Path) -> None:
    """What it leaves out is the suite's; its recipe is not mixed with the suite's; gates are for all."""
    cases = expanded(tmp_path, TINY + PART)
    assert [case.id for case in cases[:4]] == [case.id for case in expanded(tmp_path)]
    assert [case.id for case in cases[4:]] == [
        "mnist-shallow_net-single_pixel-none",
        "mnist-shallow_net-single_pixel-fine_tuning",
    ]
    own, part = cases[0], cases[-1]
    assert (own.seeds, own.reserve, own.recipe.epochs, own.recipe.learning_rate) == ((0,), 100, 3.0, 0.5)
    assert (part.seeds, part.reserve, part.recipe.epochs) == ((5,), 20, 1.0)
    assert part.recipe.learning_rate != 0.5
    assert (own.gate.min_clean_accuracy, part.gate.min_clean_accuracy) == (None, 0.7)


@pytest.mark.parametrize(
    ("tasks", "attacks"),
    [
        (["mnist"], {"single_pixel"}),
        (["digits"], {"none", "badnets"}),
        (["cifar10"], {"none", "badnets"}),
        (["digits", "mnist"], {"none", "badnets", "single_pixel"}),
    ],
)
def test_chosen_tasks_go_where_they_belong(tmp_path: Path, tasks: list[str], attacks: set[str]) -> None:
    cases = expanded(tmp_path, TINY + PART, tasks=tasks)
    assert {case.id.split("-")[2] for case in cases} == attacks
    assert {case.task_name for case in cases} == set(tasks)


def test_a_part_without_tasks_follows_the_chosen_one(tmp_path: Path) -> None:
    part = '[[part]]\nattacks = ["single_pixel"]\n'
    cases = expanded(tmp_path, TINY + part, tasks=["mnist"])
    assert [case.id.split("-")[2] for case in cases] == ["none"] * 2 + ["badnets"] * 2 + ["single_pixel"] * 2


def test_parts_may_not_mean_two_things_by_one_id(tmp_path: Path) -> None:
    assert len(expanded(tmp_path, TINY + '[[part]]\nattacks = ["badnets"]\n')) == 4
    part = '[[part]]\nattacks = ["badnets"]\n'
    message = problem(tmp_path, f"{TINY}{part}seeds = [9]\n")
    assert "digits-shallow_net-badnets-none: seeds = (0,) and (9,)" in message
    assert "badnets-none: recipe.epochs = 10.0 and 3.0" in problem(tmp_path, f"{TINY}{part}recipe = {{ epochs = 3 }}\n")
    assert "badnets-fine_tuning: reserve = 100 and 50," in problem(tmp_path, f"{TINY}{part}reserve = 50\n")


def test_a_part_with_a_reserve_of_its_own_shares_undefended_rows(tmp_path: Path) -> None:
    cases = expanded(tmp_path, TINY + '[[part]]\nattacks = ["badnets"]\ndefenses = ["fine_pruning"]\nreserve = 50\n')
    assert [(case.id.partition("net-")[2], case.reserve) for case in cases[2:]] == [
        ("badnets-none", 100),
        ("badnets-fine_tuning", 100),
        ("badnets-fine_pruning", 50),
    ]
    assert [case.parts for case in cases] == [(0,), (0,), (0, 1), (0,), (1,)]


def test_later_gates_override_earlier_ones(tmp_path: Path) -> None:
    gates = """
[[gate]]
min_clean_accuracy = 0.9
max_asr = 0.5
[[gate]]
attack = "badnets"
stage = "repair"
max_asr = 0.2
[[gate]]
id = "*-badnets-none"
min_asr = 0.95
max_asr = 1
"""
    found = {case.id: case.gate for case in expanded(tmp_path, TINY + gates)}
    assert found["digits-shallow_net-none-none"].max_asr == 0.5
    defended = found["digits-shallow_net-badnets-fine_tuning"]
    assert (defended.min_clean_accuracy, defended.max_asr, defended.min_asr) == (0.9, 0.2, None)
    assert found["digits-shallow_net-badnets-none"].min_asr == 0.95


def test_expected_failures_keep_their_reason(tmp_path: Path) -> None:
    entry = '[[expected_failure]]\nid = "*-badnets-fine*"\nreason = "known to fail"\n'
    expected = {case.id: case.expected for case in expanded(tmp_path, TINY + entry)}
    assert expected.pop("digits-shallow_net-badnets-fine_tuning") == "known to fail"
    assert set(expected.values()) == {""}


def test_rules_that_match_nothing_are_named(tmp_path: Path) -> None:
    rules = """
[[gate]]
attack = "badnetz"
max_asr = 0.1
[[gate]]
family = "dirty_label"
max_asr = 0.1
[[expected_failure]]
id = "mnist-*"
reason = "gone"
"""
    found = suite(tmp_path, TINY + rules)
    assert unmatched(found, [cell.subject for cell in cells(found, REGISTRY)]) == [
        'suite tiny: the gate with attack = "badnetz" matches no case',
        'suite tiny: the expected failure with id = "mnist-*" matches no case',
    ]


SUBJECT = Subject(
    id="digits-le_net-badnets[mode=all_to_all,patch=5]-jpeg_compression[quality=10]",
    task=("digits", "digits"),
    architecture=("le_net", "le_net"),
    attack=("badnets", "badnets[mode=all_to_all,patch=5]"),
    family="dirty_label",
    defense=("jpeg_compression", "jpeg_compression[quality=10]"),
    stage=("in training", "in_training"),
)


@pytest.mark.parametrize(
    ("selectors", "matches"),
    [
        ({}, True),
        ({"id": SUBJECT.id}, True),
        ({"id": "*badnets[mode=all_to_all,*]-jpeg*"}, True),
        ({"id": "*badnet[sz]*"}, False),
        ({"id": "digits"}, False),
        ({"attack": "badnets"}, True),
        ({"attack": "badnets[mode=all_to_all,patch=?]"}, True),
        ({"attack": "badnets[patch=5]"}, False),
        ({"attack": "badnets", "defense": "none"}, False),
        ({"family": "dirty*", "stage": "in_training"}, True),
        ({"stage": "in training"}, True),
        ({"stage": "repair"}, False),
        ({"task": "Digits"}, False),
    ],
)
def test_selectors(selectors: dict[str, str], matches: bool) -> None:
    assert Selector(**selectors).matches(SUBJECT) is matches


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("attacks =", "attack ="), ["unknown key 'attack'", "attacks"]),
        (('tasks = ["digits"]', ""), ["the key tasks is missing"]),
        (("seeds = [0]", "seeds = [0, 0]"), ["seeds", "twice"]),
        (("seeds = [0]", "seeds = []"), ["seeds = []: the list must not be empty"]),
        (("seeds = [0]", "seeds = 3"), ["seeds = 3: legal: a list"]),
        (("seeds = [0]", "seeds = [-1]"), ["seeds.0 = -1"]),
        (("seeds = [0]", f"seeds = [{2**63}]"), ["seeds.0 = 9223372036854775808", "less than or equal to 92233"]),
        (("seeds = [0]", f"seeds = [1{'0' * 5000}]"), ["no valid TOML", "4300 digits"]),
        (("seeds = [0]", f"seeds = {list(range(1001))}"), ["seeds: the list has more than 1,000 entries"]),
        (("seeds = [0]", "reserve = 1.5"), ["reserve = 1.5", "below 1.0"]),
        (("seeds = [0]", "reserve = -1"), ["reserve = -1", "from 0"]),
        (("seeds = [0]", "reserve = 300"), ["reserve = 300", "200 clean images", "legal: 0 to 200"]),
        (("seeds = [0]", "reserve = 0.5"), ["reserve = 500 (0.5 of 1,000)", "legal: 0 to 200"]),
        (("seeds = [0]", "reserve = 0"), ["digits-shallow_net-none-fine_tuning", "clean reserve", "from 1 image"]),
        (('"badnets"', '"badnetz"'), ["unknown attack 'badnetz'", "did you mean badnets"]),
        (('"fine_tuning"', '"fine_tune"'), ["unknown defense", "fine_tuning"]),
        (('"shallow_net"', '"shallownet"'), ["unknown model", "shallow_net"]),
        (('"digits"', '"digit"'), ["unknown task", "digits"]),
        (('"badnets"', '{ name = "badnets", poison = 0.1 }'), ["attack badnets", "unknown setting", "poison_ratio"]),
        (('"badnets"', '{ name = "badnets", poison_ratio = 1.5 }'), ["poison_ratio = 1.5", "less than or equal to 1"]),
        (('"badnets"', '{ name = "badnets", poison_ratio = 0.95 }'), ["badnets[poison_ratio=0.95]", "at most 0.9"]),
        (('"badnets"', '{ name = "badnets", patch = 29 }'), ["badnets[patch=29]", "patch 29x29", "legal"]),
        (('"badnets"', '{ name = "badnets", target = 10 }'), ["target = 10", "legal: 0 to 9"]),
        (('"badnets"', '{ name = "badnets", target = true }'), ["attack badnets", "target = true", "no numbers"]),
        (('"badnets"', '{ name = "badnets", pixels = [[0, true]] }'), ["pixels = 0+true", "no numbers"]),
        (('"badnets"', "{ poison_ratio = 0.1 }"), ["attacks.1", "needs a name"]),
        (('"badnets"', "3"), ["attacks.1 = 3: legal: a name in quotes"]),
        (('"badnets"', '{ name = "badnets", patch = [] }'), ["patch = []", "at least one"]),
    ],
)
def test_mistakes_are_told_in_one_sentence(tmp_path: Path, change: tuple[str, str], words: list[str]) -> None:
    message = problem(tmp_path, TINY.replace(*change))
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("addition", "words"),
    [
        ("[recipe]\nepoch = 1", ["recipe of shallow_net on digits", "unknown setting 'epoch'", "epochs"]),
        ("[recipe]\nepochs = 0", ["epochs = 0", "greater than 0"]),
        ("[recipe_for.lenet]\nepochs = 1", ["[recipe_for]", "lenet", "le_net"]),
        ("[[gate]]\nmax_asr = 2", ["tiny.toml", "gate.0.max_asr = 2"]),
        ("[[gate]]\nmax_asrr = 0.2", ["[gate]", "unknown key 'max_asrr'", "max_asr"]),
        ("[[gate]]\nfamily = 3", ["gate.0.family"]),
        ("[[gate]]\nmax_asr = true", ["gate.0.max_asr = True", "no shares"]),
        ('[[gate]]\nattack = "badnets"', ["gate.0", "badnets", "no threshold", "min_clean_accuracy"]),
        ("[[gate]]\nmin_asr = 0.9\nmax_asr = 0.2", ["-none-none", "at least 0.9 (min_asr)", "at most 0.2 (max_asr)"]),
        ('[[gate]]\nmin_asr = 0.3\n[[gate]]\nattack = "bad*"\nmax_asr = 0.2', ["badnets-none", "at least 0.3"]),
        ("[gate]\nmax_asr = 0.2", ["[[gate]], in double brackets"]),
        ('[[expected_failure]]\nid = "*"', ["expected_failure.0.reason is missing"]),
        ('[[expected_failure]]\nid = "*"\nreason = ""', ["expected_failure.0.reason"]),
        ("[thresholds]\ncollapse = true", ["thresholds.collapse = True", "no shares"]),
        ("[thresholds]\ncollapse = 1.1", ["thresholds.collapse = 1.1"]),
        ("[thresholds]\ncolapse = 0.1", ["[thresholds]", "collapse"]),
        ('file = "x"', ["unknown key 'file'"]),
        ("[[gate", ["no valid TOML", "line"]),
    ],
)
def test_mistakes_in_tables(tmp_path: Path, addition: str, words: list[str]) -> None:
    message = problem(tmp_path, f"{TINY}{addition}\n")
    for word in words:
        assert word in message


def test_an_image_too_small_for_the_architecture_names_the_case(tmp_path: Path) -> None:
    text = TINY.replace('"shallow_net"', '"alex_net"')
    with pytest.raises(SettingError, match=r"^digits-alex_net-none-none: .*8x8"):
        expand(suite(tmp_path, text), REGISTRY, lambda _source, name: facts(name, (1, 8, 8)))


CHECKED = """from dataclasses import dataclass
from gauntlet.defense import Preprocessing
from gauntlet.errors import NotApplicableError
from gauntlet.plugin import defense


@defense
@dataclass(frozen=True)
class Checked(Preprocessing):
    '''Invented for this test.'''

    def check(self, facts):
        {}

    def transform(self, images, generator):
        return images
"""


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{}['depth']", "check raised KeyError: 'depth'"),
        ("raise ValueError('two\\nlines')", "check raised ValueError: two lines"),
        (
            "raise NotApplicableError('too few colours')",
            "check raised NotApplicableError: too few colours; raise it where",
        ),
    ],
)
def test_a_check_that_fails_otherwise_names_the_case(tmp_path: Path, body: str, words: str) -> None:
    plugin = tmp_path / "checked.py"
    plugin.write_text(CHECKED.replace("{}", body, 1))
    with pytest.raises(SettingError) as caught:
        expand(suite(tmp_path, TINY.replace("fine_tuning", "checked")), Registry.discover([plugin]), facts_of)
    assert str(caught.value).startswith(f"digits-shallow_net-none-checked: {words}")
    assert "\n" not in str(caught.value)


def test_unknown_suites_list_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean quick"):
        find_suite("quikc", suite_folders())
    with pytest.raises(SettingError, match="does not exist"):
        find_suite(str(tmp_path / "no.toml"), [])


def test_one_id_may_not_mean_two_things(tmp_path: Path) -> None:
    first = expand(suite(tmp_path, TINY, "one"), REGISTRY, facts_of)
    second = expand(suite(tmp_path, TINY, "two"), REGISTRY, facts_of)
    assert merged([first, first]) == first
    with pytest.raises(SettingError, match="stands in suite one and in suite two"):
        merged([first, second])


@pytest.mark.parametrize("apart", ["parts", "suites"])
def test_two_data_sets_of_one_name_are_not_taken_for_one(apart: str, tmp_path: Path) -> None:
    one, two = (f'tasks = [{{ name = "h5:{tmp_path}/train.h5", test = "{tmp_path}/{name}/test.h5" }}]' for name in "ab")
    for name in ("train", "a/test", "b/test"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["data"], file["label"] = np.zeros((40, 1, 8, 8), np.uint8), np.arange(40) % 4
    rest = 'architectures = ["shallow_net"]\nattacks = ["none"]\ndefenses = ["none"]\nreserve = 2\nseeds = [0]\n'
    more = f'[[part]]\n{two}\nattacks = ["badnets"]\n' if apart == "parts" else ""
    (tmp_path / "one.toml").write_text(f"{one}\n{rest}{more}")
    (tmp_path / "two.toml").write_text(f"{two}\n{rest}".replace('"none"]\ndef', '"badnets"]\ndef'))
    options = Options(suites=(f"{tmp_path}/one.toml", f"{tmp_path}/two.toml"), store=tmp_path / "store", device="cpu")
    if apart == "parts":
        options = replace(options, suites=options.suites[:1])

    with pytest.raises(SettingError, match=r"both called h5:.*\[test=test\.h5\]; give their files different names"):
        open_session(options, pytest.fail)


def test_a_fresh_network_is_not_handed_over(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"handed_over.*: nothing is handed over: \w+ brings no trained network"):
        expanded(tmp_path, TINY.replace('"badnets"', '"handed_over"'))


def test_two_files_of_one_name_are_not_taken_for_one(tmp_path: Path) -> None:
    """Ids show the file's name alone."""
    weights = '["one/net.h5", "two/net.h5"]'
    text = TINY.replace('"badnets"', f'{{ name = "handed_over", weights = {weights} }}')
    with pytest.raises(SettingError, match=r"both called handed_over\[weights=net\.h5\]; give their files different"):
        expanded(tmp_path, text)
