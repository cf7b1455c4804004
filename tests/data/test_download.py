import hashlib
import json
import os
import subprocess
import sys

import filelock
import pytest
from file_server import Server
from shard_files import NUMBERS, decoded, pixels, three_shards

from convnext.data import download as fetch_module
from convnext.data.download import download
from convnext.data.sources.packed.shards import open_shards
from convnext.errors import ConvnextError, UsageError


@pytest.fixture
def server(tmp_path, monkeypatch):
    root = three_shards(tmp_path / "origin")
    files = {f"set/{path.name}": path.read_bytes() for path in root.iterdir()}
    server = Server(files | {"set/classes.txt": b"ant\nbee\nwasp\n"})
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch_module, "_WAITS", (0, 0, 0, 0))
    yield server
    server.shutdown()
    server.server_close()


def test_remote_shards_are_fetched_once_and_then_need_no_network(server):
    where = server.address + "/set/train-{000..002}.tar"
    source = open_shards(where)
    assert [pixels(source, i) for i in range(13)] == [decoded(n) for n in NUMBERS]
    assert source.classes == ["ant", "bee", "wasp"]
    assert len(server.log) == 4
    server.shutdown()
    server.server_close()
    assert len(open_shards(where)) == 13


def test_that_nothing_beside_the_shards_names_classes_is_found_out_once(server):
    del server.files["set/classes.txt"]
    for _ in range(2):
        assert open_shards(server.address + "/set/train-{000..002}.tar").classes == ["0", "1", "2"]
    assert [path for path, _ in server.log].count("set/classes.txt") == 1


def test_a_transfer_cut_off_is_resumed_where_it_ended(server, tmp_path):
    server.cuts, server.most = 3, 2000
    download(server.address + "/set/train-000.tar", tmp_path / "a.tar")
    assert [wanted for _, wanted in server.log] == [None, "bytes=2000-", "bytes=4000-", "bytes=6000-"]
    assert (tmp_path / "a.tar").read_bytes() == server.files["set/train-000.tar"]
    assert not (tmp_path / ".a.tar.part").exists()


def test_a_later_run_resumes_unless_the_file_has_changed(server, tmp_path):
    address, path = server.address + "/set/train-000.tar", tmp_path / "a.tar"
    for changed in (False, True):
        server.cuts, server.most = 5, 400
        with pytest.raises(
            ConvnextError, match=f"could not download {address} .the connection ended after 2000 of 20480 bytes.* put it at {path}"
        ):
            download(address, path)
        assert not path.exists()
        if changed:
            server.files["set/train-000.tar"] = server.files["set/train-002.tar"]
        server.log.clear()
        download(address, path)
        assert server.log == [("set/train-000.tar", "bytes=2000-")]
        assert path.read_bytes() == server.files["set/train-000.tar"]
        path.unlink()


def test_an_error_that_passes_is_retried_and_one_that_stays_is_reported(server, tmp_path):
    address = server.address + "/set/train-009.tar"
    with pytest.raises(ConvnextError, match=f"could not download {address} .*404.* put it at .*train-009.tar"):
        open_shards(address)
    assert len(server.log) == 1
    server.files["set/train-009.tar"] = 503
    with pytest.raises(ConvnextError, match="503"):
        open_shards(address)
    assert len(server.log) == 6
    with pytest.raises(ConvnextError, match="could not download http://127.0.0.1:9/a.tar .*Connection refused"):
        open_shards("http://127.0.0.1:9/a.tar")


def test_a_shard_that_is_cut_at_its_origin_is_reported_by_its_path_in_the_cache(server, tmp_path):
    server.files["set/train-001.tar"] = server.files["set/train-001.tar"][:1000]
    with pytest.raises(
        ConvnextError, match=f"{tmp_path}/cache/shards/.*/train-001.tar has 488 of the .* bytes of its file '0010.jpg': remove it"
    ):
        open_shards(server.address + "/set/train-{000..002}.tar")


@pytest.mark.slow
def test_of_processes_that_start_at_once_one_fetches_each_shard(server):
    code = "import sys; from convnext.data.sources.packed.shards import open_shards; print(len(open_shards(sys.argv[1])))"
    command = [sys.executable, "-c", code, server.address + "/set/train-{000..002}.tar"]
    server.cuts, server.most = 1, 3000
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0] for process in running] == ["13\n"] * 3
    assert len([path for path, wanted in server.log if wanted is None]) == 4
    assert len(server.log) == 5


@pytest.mark.slow
def test_shards_on_the_hub_are_downloaded_by_its_own_client(server, tmp_path):
    for name in ("train-000.tar", "train-001.tar"):
        server.files[f"datasets/some/body/resolve/main/data/{name}"] = server.files[f"set/{name}"]
    code = """if True:
        from convnext.data.sources.packed.shards import open_shards
        source = open_shards("hf://datasets/some/body/data/train-{000..001}.tar")
        print(len(source), source.classes)
        try:
            open_shards("hf://datasets/some/body/data/train-007.tar")
        except Exception as error:
            print(type(error).__name__, error)
    """
    env = os.environ | {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    for offline in ("0", "1"):
        done = subprocess.run([sys.executable, "-c", code], env=env | {"HF_HUB_OFFLINE": offline}, capture_output=True, text=True)
        first, second = done.stdout.splitlines()
        assert first == f"7 {json.dumps(['0', '1', '2'])}".replace('"', "'")
        assert second.startswith("ConvnextError could not download hf://datasets/some/body/data/train-007.tar (")
        assert "hf download some/body --repo-type dataset" in second


def test_queries_of_shards_are_kept_for_what_lies_beside_them(server):
    for name in ("train-000.tar", "train-001.tar"):
        server.files[f"set/{name}?download=true"] = server.files[f"set/{name}"]
    server.files["set/classes.txt?download=true"] = server.files["set/classes.txt"]
    source = open_shards(server.address + "/set/train-{000..001}.tar?download=true")
    assert len(source) == 7
    assert source.classes == ["ant", "bee", "wasp"]


def test_caches_of_shards_stay_valid_and_names_stay_within_the_cache():
    address = "https://host.example/set/train-000.tar"
    assert fetch_module.cached(address).parts[-3:] == (
        "shards",
        hashlib.sha256(b"https://host.example/set").hexdigest()[:16],
        "train-000.tar",
    )
    for odd in ("..", "%2E%2E", "a%2Fb", "", "x" * 400 + ".tar", "a?b=../../c"):
        path = fetch_module.cached(f"https://host.example/set/{odd}")
        assert path.parents[2] == fetch_module.cache_folder()
        assert "/" not in path.name
        assert path.name not in ("", "..")
        assert len(path.name) < 200


def test_who_has_no_home_is_reported_where_to_name_one(monkeypatch):
    monkeypatch.delenv("CONVNEXT_CACHE", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: (_ for _ in ()).throw(KeyError(uid)))
    with pytest.raises(UsageError, match="CONVNEXT_CACHE"):
        fetch_module.cached("https://host.example/a.tar")


def test_a_lock_whose_holder_does_nothing_is_not_waited_for_for_ever(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "_PATIENCE", 0)
    with filelock.FileLock(tmp_path / ".a.tar.lock"), pytest.raises(ConvnextError, match="another process holds .*a.tar.lock"):
        download(server.address + "/set/train-000.tar", tmp_path / "a.tar")


def test_a_redirect_does_not_leave_encryption():
    request = fetch_module._request("https://host.example/a.tar", 0, "")
    for target in ("http://host.example/a.tar", "ftp://host.example/a.tar", "file:///etc/passwd"):
        with pytest.raises(OSError, match="not encrypted"):
            fetch_module._Redirects().redirect_request(request, None, 302, "", {}, target)
