"""The loopback Hub, driven by the real `huggingface_hub` client in a process of its own."""

import http.client
import json
import subprocess
import sys

import pytest

from .hub_server import LoopbackHub


PRELUDE = """
import json, sys
from pathlib import Path
import huggingface_hub as hf

api, folder = hf.HfApi(), Path(sys.argv[1])

def error(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as raised:
        return [type(raised).__name__, getattr(getattr(raised, "response", None), "status_code", None), str(raised)]
"""


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def client(hub, tmp_path):
    """Run code in a client process; returns the value that the code hands to `answer`."""

    def run(code, token="write"):
        code = f"{PRELUDE}\nanswer = lambda value: print(json.dumps(value))\n{code}"
        env = hub.env(token=token, cache=tmp_path / "home")
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture
def folder(tmp_path):
    """A folder to push: text, an empty file, a file in a sub-folder, and three LFS objects."""
    files = {"README.md": b"---\nlicense: mit\n---\n", "empty.txt": b"", "sub/notes ü.txt": b"notes\r\n"}
    files |= {f"model-{i}.safetensors": bytes(range(256)) * 300 + bytes([i]) for i in range(3)}
    for path, content in files.items():
        (tmp_path / "push" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "push" / path).write_bytes(content)
    return files


def test_a_pushed_folder_comes_back_byte_equal(hub, client, folder):
    pulled = client("""
api.create_repo("tester/model")
commit = api.upload_folder(repo_id="tester/model", folder_path=folder / "push")
local = Path(api.snapshot_download("tester/model"))
answer({str(path.relative_to(local)): path.read_bytes().hex() for path in local.rglob("*") if path.is_file()})
""")
    assert {path: bytes.fromhex(content) for path, content in pulled.items()} == folder
    assert hub.files("tester/model") == folder
    assert len(hub.uploaded) == 3


def test_an_unchanged_folder_makes_no_commit_and_a_deleted_file_makes_one(hub, client, folder):
    shas = client("""
api.create_repo("model")
push = lambda **kwargs: api.upload_folder(repo_id="tester/model", folder_path=folder / "push", **kwargs).oid
first, second = push(), push()
api.delete_file("empty.txt", "tester/model")
answer([first, second, api.model_info("tester/model").sha])
""")
    assert shas[0] == shas[1] != shas[2]
    assert hub.files("tester/model", shas[0]) == folder
    assert hub.files("tester/model") == {path: data for path, data in folder.items() if path != "empty.txt"}


def test_a_branch_a_tag_and_a_sha_each_name_their_commit(client):
    texts, errors = client("""
api.create_repo("model")
push = lambda text, **at: api.upload_file(path_or_fileobj=text, path_in_repo="a", repo_id="tester/model", **at).oid
sha = push(b"one")
api.create_tag("tester/model", tag="v1.0", revision=sha)
api.create_branch("tester/model", branch="dev/next", revision="v1.0")
push(b"two")
push(b"three", revision="dev/next")
read = lambda name: Path(api.hf_hub_download("tester/model", "a", revision=name)).read_text()
again = error(api.create_tag, "tester/model", tag="v1.0"), error(push, b"late", parent_commit=sha)
answer([[read(name) for name in (sha, "v1.0", None, "main", "dev/next")], again])
""")
    assert texts == ["one", "one", "two", "two", "three"]
    assert [error[:2] for error in errors] == [["HfHubHTTPError", 409], ["HfHubHTTPError", 412]]


def test_a_missing_file_a_missing_revision_and_a_missing_repository_are_told_apart(client):
    errors, exists = client("""
api.create_repo("model")
fetch = lambda repo_id, **kwargs: error(api.hf_hub_download, repo_id, "a", **kwargs)
missing = fetch("tester/model"), fetch("tester/model", revision="v9"), fetch("tester/none")
exists = api.file_exists("tester/model", "a"), api.repo_exists("tester/model")
answer([[*missing, fetch("tester/none", token=False)], exists])
""")
    names = ["RemoteEntryNotFoundError", "RevisionNotFoundError", "RepositoryNotFoundError", "RepositoryNotFoundError"]
    assert [error[:2] for error in errors] == [[name, status] for name, status in zip(names, (404, 404, 404, 401))]
    assert exists == [False, True]


def test_creating_a_repository_twice_is_an_error_unless_exist_ok(client):
    error, repo_id = client("""
api.create_repo("model")
answer([error(api.create_repo, "model"), api.create_repo("model", exist_ok=True).repo_id])
""")
    assert error[:2] == ["HfHubHTTPError", 409]
    assert repo_id == "tester/model"


def test_a_private_repository_is_hidden_without_its_owners_token(client):
    errors = client("""
for name in ("secret", "open"):
    api.create_repo(name, private=name == "secret")
    api.upload_file(path_or_fileobj=b"text", path_in_repo="a", repo_id=f"tester/{name}")
pull = lambda name, token: error(api.snapshot_download, f"tester/{name}", token=token, cache_dir=folder / str(token))
answer({name: [pull(name, token) for token in (False, "stranger", "read")] for name in ("secret", "open")})
""")
    assert [error and error[:2] for error in errors["secret"]] == [
        ["RepositoryNotFoundError", 401],
        ["RepositoryNotFoundError", 404],
        None,
    ]
    assert errors["open"] == [None, None, None]


def test_a_bad_token_gets_a_401_that_says_so_even_for_a_public_repository(hub, client):
    client('answer(api.create_repo("model").repo_id)')
    errors = client(
        """
pulls = error(api.snapshot_download, "tester/model"), error(api.hf_hub_download, "tester/model", "a")
answer([*pulls, error(api.create_repo, "other"), error(api.whoami)])
""",
        token="expired",
    )
    assert [error[:2] for error in errors] == [["HfHubHTTPError", 401]] * 4
    assert all("Invalid credentials in Authorization header" in error[2] for error in errors[:3])
    assert "HF_TOKEN environment variable is invalid" in errors[3][2]
    assert list(hub.repos) == ["tester/model"]


def test_a_read_only_token_reads_but_may_not_write(hub, client):
    errors, role = client("""
api.create_repo("model", private=True)
api = hf.HfApi(token="read")
upload = dict(path_or_fileobj=b"text", path_in_repo="a", repo_id="tester/model")
calls = error(api.model_info, "tester/model"), error(api.upload_file, **upload), error(api.create_repo, "other")
answer([calls, api.whoami()["auth"]["accessToken"]["role"]])
""")
    assert [error and error[:2] for error in errors] == [None, ["HfHubHTTPError", 403], ["HfHubHTTPError", 403]]
    assert role == "read"
    assert hub.files("tester/model") == {}


def test_a_push_that_failed_half_way_completes_without_sending_stored_objects_again(hub, client, folder):
    client('answer(api.create_repo("model").repo_id)')
    push = 'answer(error(api.upload_folder, repo_id="tester/model", folder_path=folder / "push"))'
    hub.fail_uploads(after=1)
    assert client(push)[0] == "RuntimeError"
    refused = [path for _, path, status in hub.requests if status == 507]
    assert 0 < len(refused) == len(set(refused))  # the client did not try again, which would take 23 seconds
    assert len(hub.uploaded) == 1
    assert hub.files("tester/model") == {}
    hub.heal()
    assert client(push) is None
    assert len(hub.uploaded) == len(set(hub.uploaded)) == 3
    assert hub.files("tester/model") == folder


def test_an_upload_whose_connection_drops_is_tried_five_more_times_and_then_fails(hub, client, folder):
    hub.fail_uploads(after=3, drop=True)
    error = client("""
import time
time.sleep = lambda seconds: None  # the client's pauses, 23 seconds in all
api.create_repo("model")
push = lambda data: api.upload_file(path_or_fileobj=data, path_in_repo="a.bin", repo_id="tester/model")
api.upload_folder(repo_id="tester/model", folder_path=folder / "push")
answer(error(push, b"0" * 10**6))
""")
    assert error[0] == "RuntimeError"
    assert [status for method, _, status in hub.requests if method == "PUT"] == [200] * 3 + [None] * 6
    assert hub.files("tester/model") == folder


def test_content_with_another_digest_is_not_stored(hub, client):
    client('answer(api.create_repo("model").repo_id)')
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"))
    connection.request("PUT", f"/tester/model/lfs/{'0' * 64}", body=b"changed while it was sent")
    assert connection.getresponse().status == 400
    assert hub.uploaded == []


def test_the_environment_has_this_hub_and_none_of_the_callers_settings(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "the caller's")
    env = hub.env(cache=tmp_path)
    assert {name: value for name, value in env.items() if name.startswith("HF_")} == {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    assert hub.env(token="read")["HF_TOKEN"] == "read"
