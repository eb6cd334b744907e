from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import save_file

from gauntlet import weights
from gauntlet.errors import DataError
from gauntlet.options import Options
from gauntlet.session import open_context
from gauntlet.weights import OFFLINE, Published

STATE = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2)}


class _Quiet(SimpleHTTPRequestHandler):
    requests: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.requests.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's folder of checkpoints: absent as yet."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(OFFLINE, raising=False)
    return tmp_path / "home" / "hub" / "checkpoints"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which it is served."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "site"
    folder.mkdir()
    _Quiet.requests.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def _publish(folder: Path) -> str:
    """The name of a file of weights in `folder` that carries its own digest."""
    torch.save(STATE, folder / "net.pth")
    digest = hashlib.sha256((folder / "net.pth").read_bytes()).hexdigest()
    return (folder / "net.pth").rename(folder / f"net-{digest[:8]}.pth").name


def test_name_and_digest() -> None:
    published = Published("https://example.org/models/net_a-b-0123abcd.pth")
    assert (published.name, published.digest) == ("net_a-b-0123abcd.pth", "0123abcd")


def test_a_file_is_downloaded_once_and_checked(hub: Path, site: tuple[Path, str]) -> None:
    folder, address = site
    name = _publish(folder)
    published = Published(f"{address}/{name}")
    assert weights.find(published) == hub / name
    assert weights.find(published) == hub / name
    assert _Quiet.requests == [f"/{name}"]
    assert [path.name for path in hub.iterdir()] == [name]
    assert torch.equal(weights.read(hub / name)["layer.weight"], STATE["layer.weight"])


def test_a_wrong_file_is_not_kept(hub: Path, site: tuple[Path, str]) -> None:
    folder, address = site
    (folder / "net-00000000.pth").write_bytes(b"other")
    assert weights.find(Published(f"{address}/net-00000000.pth")) is None
    assert not list(hub.iterdir())


def test_an_absent_file_is_asked_for_once(hub: Path, site: tuple[Path, str]) -> None:
    published = Published(f"{site[1]}/absent-00000000.pth")
    assert weights.find(published) is None
    assert weights.find(published) is None
    assert len(_Quiet.requests) == 1


def test_offline_asks_nobody(hub: Path, site: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    name = _publish(site[0])
    monkeypatch.setenv(OFFLINE, "1")
    assert weights.find(Published(f"{site[1]}/{name}")) is None
    assert _Quiet.requests == []


def test_offline_is_the_sessions_own(hub: Path, site: tuple[Path, str], tmp_path: Path) -> None:
    """A later session that may download does."""
    name = _publish(site[0])
    offline = Options(store=tmp_path / "store", device="cpu", offline=True)
    open_context(offline, pytest.fail)
    assert weights.find(Published(f"{site[1]}/{name}")) is None
    assert _Quiet.requests == []

    open_context(replace(offline, offline=False), pytest.fail)
    assert weights.find(Published(f"{site[1]}/{name}")) == hub / name
    assert OFFLINE not in os.environ


def test_a_silent_server_costs_no_more_than_the_patience(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(weights, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        start = time.monotonic()
        assert weights.find(Published(f"http://127.0.0.1:{server.getsockname()[1]}/net-00000000.pth")) is None
        assert time.monotonic() - start < 2
        time.sleep(0.1)  # the asking thread gives up on its own


def test_a_damaged_file_on_disk_is_named(hub: Path) -> None:
    hub.mkdir(parents=True)
    (hub / "net-00000000.pth").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"net-00000000\.pth is damaged .*00000000\): delete it"):
        weights.find(Published("https://example.invalid/net-00000000.pth"))


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"one", b"three"):
        path.write_bytes(content)
        assert weights.sha256(path) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
def test_both_forms_are_read(tmp_path: Path, name: str) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(STATE, tmp_path / name)
    state = weights.read(tmp_path / name)
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[key], STATE[key]) for key in STATE)


class _Unpickled:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("unpickled"),))  # type: ignore[return-value]


@pytest.mark.parametrize("content", [_Unpickled(), {"weight": _Unpickled()}, [torch.ones(1)], {"weight": 1}])
def test_anything_but_tensors_is_refused(tmp_path: Path, content: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "net.pth")
    with pytest.raises(DataError, match=r"net\.pth (can't be read as a file of weights|is no state_dict)"):
        weights.read(Path("net.pth"))
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(STATE, tmp_path / name)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:60])
    with pytest.raises(DataError, match="can't be read as a file of weights"):
        weights.read(tmp_path / name)
