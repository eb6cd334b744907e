from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from filelock import FileLock

from gauntlet import entry, keys, store
from gauntlet.artifacts import TensorsCodec
from gauntlet.errors import LeakError, StoreError
from gauntlet.keys import canonical
from gauntlet.measure import machine, measured
from gauntlet.store import Obtained, Store
from tests.sample_codecs import JsonCodec

KIND = "victims"
SPEC: dict[str, object] = {"name": "badnets", "seed": 3, "recipe": {"epochs": 1.0}}
KEY = keys.key(SPEC)
WEIGHTS = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


@dataclass
class Shop:
    """A store with what it warned of, and how often its value was made."""

    root: Path
    made: int = 0

    def __post_init__(self) -> None:
        self.warnings: list[str] = []
        self.store = Store(self.root, self.warnings.append)

    def make(self) -> dict[str, torch.Tensor]:
        self.made += 1
        return WEIGHTS

    def obtain(self, key: str = KEY, **options: Any) -> Obtained[dict[str, torch.Tensor]]:
        return self.store.obtain(KIND, key, SPEC, TensorsCodec(), self.make, **options)

    @property
    def folder(self) -> Path:
        return self.root / KIND / KEY[:2] / KEY

    def below(self, name: str) -> list[Path]:
        return list((self.root / name).iterdir())


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path / "store")


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> ForkServerContext:
    """Processes forked from one that has loaded this module: it finds what it preloads by the environment alone."""
    here = Path(__file__)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(store.__file__).parents[1]), str(here.parent)]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([here.stem])
    return context


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def bar(root: Path) -> None:
    """Files where the store's own folders were: nobody can write it, not even root, for whom a mode is no bar."""
    for name in ("tmp", "locks", "damaged"):
        shutil.rmtree(root / name)
        (root / name).write_text("in the way")


def test_made_once_and_loaded_afterwards(shop: Shop) -> None:
    assert not shop.store.contains(KIND, KEY)
    first, second = shop.obtain(), shop.obtain()
    assert (first.cached, second.cached, shop.made) == (False, True, 1)
    assert same(first.value, WEIGHTS)
    assert same(second.value, WEIGHTS)
    assert (second.seconds, second.peak_memory, second.device) == (first.seconds, first.peak_memory, "cpu")
    assert shop.store.contains(KIND, KEY)
    assert shop.warnings == []
    assert shop.below("tmp") == []


def test_finding_makes_nothing(shop: Shop) -> None:
    assert shop.store.find(KIND, KEY, TensorsCodec()) is None
    assert shop.store.glance(KIND, KEY) is None
    made = shop.obtain()
    found, seen = shop.store.find(KIND, KEY, TensorsCodec()), shop.store.glance(KIND, KEY)
    assert found is not None
    assert seen is not None
    assert same(found.value, WEIGHTS)
    assert (found.cached, found.seconds, found.peak_memory) == (True, made.seconds, made.peak_memory)
    assert (seen.value, seen.cached, seen.seconds, seen.device) == (None, True, made.seconds, "cpu")
    later = Shop(shop.root).store
    assert later.find(KIND, KEY, TensorsCodec(), recompute=True) is None
    assert later.glance(KIND, KEY, recompute=True) is None
    flip(shop.folder / "tensors.safetensors")
    assert shop.store.find(KIND, KEY, TensorsCodec()) is None
    truncate(shop.folder / "entry.json")
    assert shop.store.glance(KIND, KEY) is None
    assert shop.below("damaged") == []


def test_the_entry_says_what_was_obtained_inside_and_where(shop: Shop) -> None:
    inner = keys.key({"inner": True})

    def train() -> int:
        time.sleep(0.05)
        return 1

    def make() -> int:
        return sum(int(shop.store.obtain("inner", inner, {}, JsonCodec(), train).value) for _ in range(2))

    shop.store.obtain("outer", KEY, SPEC, JsonCodec(), make)
    said = entry.read(shop.store.folder("outer", KEY), "outer", KEY)
    assert said.inner.keys() == {f"inner/{inner}"}
    assert said.inner[f"inner/{inner}"] >= 0.05
    assert said.own_seconds == pytest.approx(said.seconds - said.inner[f"inner/{inner}"])
    assert said.own_seconds < 0.05
    assert (said.machine, said.threads) == (machine("cpu"), torch.get_num_threads())
    assert entry.read(shop.store.folder("inner", inner), "inner", inner).inner == {}


def test_an_entry_of_an_older_version_is_read(shop: Shop) -> None:
    shop.obtain()
    path = shop.folder / "entry.json"
    content = json.loads(path.read_text())["entry"]
    for name in ("machine", "threads", "inner"):
        del content[name]
    checksum = xxhash.xxh3_128(canonical(content).encode()).hexdigest()
    path.write_text(json.dumps({"entry": content, "checksum": checksum}))
    assert shop.obtain().cached


def test_the_entry_says_what_it_is(shop: Shop) -> None:
    shop.obtain()
    said = json.loads((shop.folder / "entry.json").read_text())["entry"]
    assert said["spec"] == SPEC
    assert said["versions"]["torch"] == torch.__version__
    assert said["files"].keys() == {"tensors.safetensors"}
    assert said["files"]["tensors.safetensors"]["size"] == (shop.folder / "tensors.safetensors").stat().st_size
    assert datetime.now(UTC) - datetime.fromisoformat(said["created"]) < timedelta(minutes=1)


def test_cost_is_measured(shop: Shop) -> None:
    def make() -> int:
        time.sleep(0.05)
        return 1

    made = shop.store.obtain(KIND, KEY, SPEC, JsonCodec(), make)
    assert 0.05 <= made.seconds < 1
    assert 10_000_000 < made.peak_memory < 100_000_000_000


@pytest.mark.parametrize("key", ["", "ab", KEY.upper(), KEY[:-1], f"{KEY}0", f"{KEY}\n", "../" + KEY[3:]])
def test_malformed_keys(shop: Shop, key: str) -> None:
    with pytest.raises(ValueError, match="64 hex"):
        shop.obtain(key)


@pytest.mark.parametrize("kind", ["", "tmp", "locks", "damaged", "Victims", "../up", "a-b", "a1"])
def test_malformed_kinds(shop: Shop, kind: str) -> None:
    with pytest.raises(ValueError, match="kind"):
        shop.store.contains(kind, KEY)


def test_what_make_raises_leaves_nothing(shop: Shop) -> None:
    def make() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shop.store.obtain(KIND, KEY, SPEC, JsonCodec(), make)
    assert not shop.store.contains(KIND, KEY)
    assert shop.below("tmp") == []
    assert shop.obtain().cached is False


def test_other_keys_inside_make(shop: Shop) -> None:
    inner = keys.key({"inner": True})

    def make() -> int:
        return 1 + int(shop.store.obtain("inner", inner, {}, JsonCodec(), lambda: 1).value)

    assert shop.store.obtain("outer", KEY, SPEC, JsonCodec(), make).value == 2
    assert shop.store.contains("inner", inner)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def mangle_seconds(path: Path) -> None:
    document = json.loads(path.read_text())
    document["entry"]["seconds"] = 1e9
    path.write_text(json.dumps(document))


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("tensors.safetensors", truncate, "has .* bytes instead of"),
    ("tensors.safetensors", flip, "does not match its checksum"),
    ("tensors.safetensors", Path.unlink, "No such file"),
    ("entry.json", truncate, "mangled"),
    ("entry.json", Path.unlink, "No such file"),
    ("entry.json", lambda path: path.write_bytes(b"\xff\x00"), "mangled"),
    ("entry.json", lambda path: path.write_text("[]"), "mangled"),
    ("entry.json", lambda path: path.write_text("[" * 100_000), "mangled"),
    ("entry.json", lambda path: path.write_text('{"entry": {"seconds": NaN}, "checksum": ""}'), "mangled"),
    ("entry.json", mangle_seconds, "checksum"),
]


@pytest.mark.parametrize(("name", "harm", "reason"), DAMAGES, ids=map(str, range(len(DAMAGES))))
def test_damage_is_set_aside_and_made_anew(shop: Shop, name: str, harm: Callable[[Path], object], reason: str) -> None:
    shop.obtain()
    harm(shop.folder / name)
    again = shop.obtain()
    assert (again.cached, shop.made) == (False, 2)
    assert same(again.value, WEIGHTS)
    (warning,) = shop.warnings
    assert KEY[:12] in warning
    assert re.search(reason, warning)
    assert len(shop.below("damaged")) == 1
    assert shop.obtain().cached is True


def test_an_entry_under_another_key_is_not_believed(shop: Shop) -> None:
    shop.obtain()
    other = keys.key({"other": 1})
    shutil.copytree(shop.folder, shop.root / KIND / other[:2] / other)
    assert shop.obtain(other).cached is False
    assert "another entry" in shop.warnings[0]


def test_a_payload_that_the_codec_can_not_read(shop: Shop) -> None:
    shop.store.obtain(KIND, KEY, SPEC, JsonCodec(), lambda: 1)
    assert shop.obtain().cached is False
    assert "can't be read" in shop.warnings[0]


@pytest.mark.parametrize("error", [MemoryError(), LeakError("no")])
def test_a_load_that_fails_for_other_reasons_harms_no_entry(shop: Shop, error: Exception) -> None:
    class Failing(JsonCodec):
        def load(self, folder: Path) -> Any:
            raise error

    shop.store.obtain(KIND, KEY, SPEC, JsonCodec(), lambda: 1)
    with pytest.raises(type(error)):
        shop.store.obtain(KIND, KEY, SPEC, Failing(), lambda: 2)
    assert shop.store.obtain(KIND, KEY, SPEC, JsonCodec(), lambda: 3).value == 1


def test_own_folders_may_vanish(shop: Shop) -> None:
    for name in ("locks", "tmp", "damaged"):
        shutil.rmtree(shop.root / name)
    assert shop.obtain().cached is False
    assert shop.obtain().cached is True
    flip(shop.folder / "tensors.safetensors")
    assert shop.obtain().cached is False


def test_recompute_makes_it_once_in_a_store(shop: Shop) -> None:
    shop.obtain()
    later = Shop(shop.root)
    assert [later.obtain(recompute=True).cached for _ in range(3)] == [False, True, True]
    assert later.made == 1
    assert later.below("tmp") == []
    assert Shop(shop.root).obtain().cached is True


def test_recompute_takes_what_a_fellow_worker_made_meanwhile(shop: Shop) -> None:
    fellow = Shop(shop.root)
    shop.obtain(recompute=True)
    assert fellow.obtain(recompute=True).cached is True


def test_a_full_disk_loses_no_result(shop: Shop) -> None:
    class Full(JsonCodec):
        def save(self, value: Any, folder: Path) -> None:
            super().save(value, folder)
            raise OSError(errno.ENOSPC, "No space left on device")

    made = shop.store.obtain(KIND, KEY, SPEC, Full(), lambda: 5)
    assert made.value == 5
    assert "No space left" in shop.warnings[0]
    assert not shop.store.contains(KIND, KEY)
    assert shop.below("tmp") == []


def write_too_much(root: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    warnings: list[str] = []
    value = {"big": torch.zeros(100_000)}
    made = Store(root, warnings.append).obtain(KIND, KEY, SPEC, TensorsCodec(), lambda: value)
    assert made.value is value
    assert "can't be kept" in warnings[0]
    assert list((root / "tmp").iterdir()) == []


def test_a_full_disk_is_told_once(shop: Shop) -> None:
    class Full(JsonCodec):
        def save(self, value: Any, folder: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    for number in range(3):
        shop.store.obtain(KIND, f"{number:064x}", SPEC, Full(), lambda: 5)
    assert len(shop.warnings) == 1


def test_a_real_limit_on_file_sizes(shop: Shop, processes: ForkServerContext) -> None:
    assert exit_code(processes.Process(target=write_too_much, args=(shop.root,))) == 0
    assert not shop.store.contains(KIND, KEY)


def test_a_lock_that_can_not_be_taken(shop: Shop) -> None:
    shutil.rmtree(shop.root / "locks")
    (shop.root / "locks").write_text("in the way")
    assert same(shop.obtain().value, WEIGHTS)
    assert "can't be locked" in shop.warnings[0]
    assert shop.obtain().cached is True


@pytest.mark.parametrize("below", ["file", "file/store"])
def test_an_unwritable_store(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file.* can't be written"):
        Store(tmp_path / below, pytest.fail)


def test_a_store_that_is_only_read_needs_no_permission_to_write(shop: Shop) -> None:
    shop.obtain()
    shop.store.obtain("tasks", KEY, SPEC, JsonCodec(), lambda: 1)
    bar(shop.root)
    with pytest.raises(StoreError, match=r"can't be written: .*; make it writable, or choose another"):
        Store(shop.root, pytest.fail)
    store = Store(shop.root, pytest.fail, read_only=True)
    assert [item.kind for item in store.entries()] == ["tasks", KIND]
    assert store.obtain(KIND, KEY, SPEC, TensorsCodec(), shop.make).cached
    assert list(store.verify()) == []
    flip(shop.folder / "tensors.safetensors")
    (damage,) = store.verify()
    assert (damage.kind, damage.reason, damage.moved_to) == (
        KIND,
        "tensors.safetensors does not match its checksum",
        None,
    )
    assert shop.folder.is_dir()


def test_a_store_that_is_only_read_is_not_made(tmp_path: Path) -> None:
    store = Store(tmp_path / "none", pytest.fail, read_only=True)
    assert list(store.entries()) == []
    assert list(store.verify()) == []
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file can't be read: Not a directory"):
        Store(tmp_path / "file", pytest.fail, read_only=True)


def exit_code(process: ForkServerProcess) -> int | None:
    process.start()
    process.join(60)
    return process.exitcode


def make_slowly(root: Path, log: Path) -> None:
    def make() -> int:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        return 42

    warnings: list[str] = []
    made = Store(root, warnings.append).obtain(KIND, KEY, SPEC, JsonCodec(), make)
    sys.exit(0 if made.value == 42 and not warnings else 1)


def test_workers_that_race_make_it_once(shop: Shop, tmp_path: Path, processes: ForkServerContext) -> None:
    workers = [processes.Process(target=make_slowly, args=(shop.root, tmp_path / "log")) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def die_in_make(root: Path) -> None:
    Store(root, print).obtain(KIND, KEY, SPEC, JsonCodec(), lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_a_kill_while_making_frees_the_lock(shop: Shop, processes: ForkServerContext) -> None:
    assert exit_code(processes.Process(target=die_in_make, args=(shop.root,))) == -signal.SIGKILL
    assert not shop.store.contains(KIND, KEY)
    assert shop.obtain().cached is False
    assert shop.warnings == []


FILE_OPERATIONS = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate"})


def die_at(root: Path, step: int, value: int) -> None:
    """Obtain anew, and be killed before the file operation number `step` below the store's root."""
    shared = Store(root, print)
    left = step

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        # rmtree names what it removes relative to an open folder.
        if event in FILE_OPERATIONS and (str(root) in (path := str(arguments[0])) or not os.path.isabs(path)):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)
    shared.obtain(KIND, KEY, SPEC, JsonCodec(), lambda: value, recompute=True)
    # Not one operation of this process was the fatal one.
    os._exit(3)


@pytest.mark.parametrize("before", [None, 1])
def test_a_kill_at_any_file_operation(tmp_path: Path, processes: ForkServerContext, before: int | None) -> None:
    """A later run finds the old value, the new one or none; never half of one, and nothing to warn of."""
    outcomes = []
    for step in range(100):
        root = tmp_path / f"store{step}"
        shop = Shop(root)
        if before is not None:
            shop.store.obtain(KIND, KEY, SPEC, JsonCodec(), lambda: before)
        code = exit_code(processes.Process(target=die_at, args=(root, step, 2)))
        found = shop.store.obtain(KIND, KEY, SPEC, JsonCodec(), lambda: 3)
        assert (found.value, found.cached) in {(before, True), (2, True), (3, False)}
        assert shop.warnings == []
        assert list(shop.store.verify()) == []
        shop.store.prune()
        assert shop.below("tmp") == []
        assert shop.store.obtain(KIND, KEY, SPEC, JsonCodec(), lambda: 4).value == found.value
        outcomes.append(found.value)
        if code == 3:
            break
        assert code == -signal.SIGKILL
    else:
        pytest.fail("a hundred file operations were not enough")
    assert len(outcomes) > 8
    assert outcomes[0] == (before or 3)
    assert outcomes[-1] == 2


def test_a_summary_names_the_parts_and_hides_the_hashes(shop: Shop) -> None:
    spec = {"attack": {"name": "badnets", "patch": 3}, "code": "0f" * 32, "recipe": {"epochs": 1}, "seed": 2}
    shop.store.obtain(KIND, KEY, spec, JsonCodec(), lambda: 1)
    (listed,) = shop.store.entries()
    assert listed.summary == "attack=badnets, seed=2"


def test_entries(shop: Shop) -> None:
    shop.obtain()
    shop.store.obtain("tasks", KEY, {"text": "x" * 500}, JsonCodec(), lambda: [1])
    (shop.root / "notes.txt").write_text("not the store's")
    first, second = shop.store.entries()
    assert (first.kind, first.key, first.summary) == ("tasks", KEY, f"text={'x' * 94}…")
    assert (first.bytes, second.kind, second.summary) == (3, KIND, "name=badnets, seed=3")
    truncate(shop.folder / "entry.json")
    assert [item.kind for item in shop.store.entries()] == ["tasks"]


def test_verify_sets_damaged_entries_aside(shop: Shop) -> None:
    shop.obtain()
    shop.store.obtain("tasks", KEY, SPEC, JsonCodec(), lambda: 1)
    assert list(shop.store.verify()) == []
    flip(shop.folder / "tensors.safetensors")
    (damage,) = shop.store.verify()
    assert (damage.kind, damage.key, damage.reason) == (KIND, KEY, "tensors.safetensors does not match its checksum")
    assert damage.moved_to is not None
    assert (damage.moved_to / "entry" / "tensors.safetensors").is_file()
    assert not shop.folder.exists()
    assert [item.kind for item in shop.store.entries()] == ["tasks"]


def test_prune_alone_touches_no_entry(shop: Shop) -> None:
    shop.obtain()
    half = shop.root / "tmp" / f"{KIND}-{KEY}-abc"
    half.mkdir()
    (half / "x").write_bytes(b"1234")
    (shop.root / "tmp" / "foreign").write_text("not the store's")
    pruned = shop.store.prune()
    assert pruned.bytes == 4
    assert set(pruned.removed) == {f"tmp/{half.name}", f"locks/{KIND}-{KEY}.lock"}
    assert shop.obtain().cached is True


def test_prune_removes_what_is_damaged(shop: Shop) -> None:
    shop.obtain()
    size = sum(path.stat().st_size for path in shop.folder.iterdir())
    flip(shop.folder / "tensors.safetensors")
    assert len(list(shop.store.verify())) == 1
    assert shop.store.prune().bytes == size
    assert shop.below("damaged") == []


@pytest.mark.parametrize(
    ("age", "kinds", "left"),
    [
        (None, (), ["tasks", "victims"]),
        (None, ("tasks",), ["victims"]),
        (1.0, (), ["tasks", "victims"]),
        (0.0, (), []),
        (0.0, ("victims",), ["tasks"]),
        (1.0, ("victims",), ["tasks", "victims"]),
    ],
)
def test_prune_by_age_and_kind(shop: Shop, age: float | None, kinds: tuple[str, ...], left: list[str]) -> None:
    for kind in ("tasks", "victims"):
        shop.store.obtain(kind, KEY, SPEC, JsonCodec(), lambda: 12345)
    pruned = shop.store.prune(age, kinds)
    assert [item.kind for item in shop.store.entries()] == left
    assert pruned.bytes == 5 * (2 - len(left))
    assert sum(name.endswith(KEY) for name in pruned.removed) == 2 - len(left)
    assert shop.below("tmp") == []


def test_what_is_in_use_stays(shop: Shop) -> None:
    shop.obtain()
    flip(shop.folder / "tensors.safetensors")
    (shop.root / "tmp" / f"{KIND}-{KEY}-abc").mkdir()
    with FileLock(shop.root / "locks" / f"{KIND}-{KEY}.lock"):
        assert list(shop.store.verify()) == []
        assert shop.store.prune(older_than_days=0.0).removed == ()
    assert len(list(shop.store.verify())) == 1


def test_nothing_is_pickled(shop: Shop) -> None:
    shop.obtain()
    assert {path.name for path in shop.folder.iterdir()} == {"entry.json", "tensors.safetensors"}
    assert "pickle" not in Path(store.__file__).read_text()


def test_tensors_of_every_layout(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 2, 2)
    value = {
        "view": base[:, 1],
        "alias": base,
        "transposed": base.transpose(0, 1),
        "channels_last": base.to(memory_format=torch.channels_last),
        "empty": torch.empty(0, 3),
        "flags": torch.tensor([True, False]),
        "bytes": torch.tensor([0, 255], dtype=torch.uint8),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "grad": torch.ones(2, requires_grad=True),
    }
    TensorsCodec().save(value, tmp_path)
    loaded = TensorsCodec().load(tmp_path)
    assert same(loaded, value)
    assert loaded["channels_last"].stride() == value["channels_last"].stride()
    assert loaded["transposed"].is_contiguous()


def test_changing_a_loaded_tensor_leaves_the_file_alone(shop: Shop) -> None:
    shop.obtain()
    shop.obtain().value["weight"].add_(1)
    assert same(shop.obtain().value, WEIGHTS)
    assert list(shop.store.verify()) == []


def test_nested_measurements_include_the_inner_one() -> None:
    with measured("cpu") as outer:
        with measured("cpu") as inner:
            time.sleep(0.02)
        time.sleep(0.01)
    assert inner.seconds >= 0.02
    assert outer.seconds >= inner.seconds + 0.01
    assert outer.peak_memory >= inner.peak_memory > 0


CHILD = """
from gauntlet.measure import measured
with measured("cpu") as cost:
    pass
print(cost.peak_memory)
"""


STATUS = Path("/proc/self/status")


@pytest.mark.skipif(
    not STATUS.exists() or "VmHWM:" not in STATUS.read_text(encoding="ascii", errors="replace"),
    reason="the system tells no peak of a process by itself",
)
def test_a_process_has_no_peak_of_its_parents() -> None:
    """What getrusage tells of a child begins with the memory of the process that started it."""
    large = torch.ones(512 << 20, dtype=torch.uint8)
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 64 << 20
    with measured("cpu") as cost:
        pass
    assert cost.peak_memory - int(done.stdout) > large.nbytes / 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_memory_of_a_gpu_nested() -> None:
    with measured("cuda") as outer:
        torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
        with measured("cuda") as inner:
            torch.empty(8 << 20, dtype=torch.uint8, device="cuda")
    assert 8 << 20 <= inner.peak_memory < 64 << 20 <= outer.peak_memory
