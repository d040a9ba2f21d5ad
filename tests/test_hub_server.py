"""The loopback Hub, driven by the real `huggingface_hub` and `datasets` clients in a process of its own."""

import http.client
import io
import json
import subprocess
import sys
import tarfile

import pyarrow
import pyarrow.parquet
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


ROWS = [{"id": number, "caption": f"caption {number} ü"} for number in range(6)]


def lines(rows):
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def parquet(rows):
    with io.BytesIO() as file:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        return file.getvalue()


def tar(rows):
    with io.BytesIO() as file:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for row in rows:
                member = tarfile.TarInfo(f"{row['id']:04}.json")
                member.size = len(content := json.dumps(row).encode())
                archive.addfile(member, io.BytesIO(content))
        return file.getvalue()


@pytest.fixture
def layouts(tmp_path):
    """ROWS as the folders of three datasets to push, {name: {path: content}}."""
    half = len(ROWS) // 2
    layouts = {
        "columns": {f"data/train-{i:05}-of-00002.parquet": parquet(ROWS[i * half :][:half]) for i in range(2)},
        "lines": {"README.md": b"---\nlicense: mit\n---\n", "train.jsonl": lines(ROWS)},
        "tars": {f"train/{i}.tar": tar(ROWS[i * half :][:half]) for i in range(2)},
    }
    for name, files in layouts.items():
        for path, content in files.items():
            (tmp_path / "push" / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "push" / name / path).write_bytes(content)
    return layouts


PUSH_LAYOUTS = """
import datasets, fsspec
for name in ("columns", "lines", "tars"):
    api.create_repo(name, repo_type="dataset")
    api.upload_folder(repo_id=f"tester/{name}", folder_path=folder / "push" / name, repo_type="dataset")
"""


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


def test_a_model_and_a_dataset_of_one_name_are_different_repositories(hub, client):
    urls, commits, texts, error = client("""
types, names = ("model", "dataset"), ("a", "b.bin")
urls = [api.create_repo("twin", repo_type=repo_type) for repo_type in types]
def push(name, repo_type):
    at = dict(path_in_repo=name, repo_id="tester/twin", repo_type=repo_type)
    return api.upload_file(path_or_fileobj=repo_type.encode(), **at).repo_url
commits = [push(name, repo_type) for repo_type in types for name in names]
pulled = [Path(api.snapshot_download("tester/twin", repo_type=repo_type)) for repo_type in types]
texts = [[(local / name).read_text() for name in names] for local in pulled]
answer([urls, commits, texts, error(api.create_repo, "twin", repo_type="space", space_sdk="static")])
""")
    model, dataset = urls
    assert urls == [f"{hub.url}/tester/twin", f"{hub.url}/datasets/tester/twin"]
    assert commits == [model, model, dataset, dataset]
    assert texts == [["model"] * 2, ["dataset"] * 2]
    assert hub.files("tester/twin") == {"a": b"model", "b.bin": b"model"}
    assert hub.files("tester/twin", repo_type="dataset") == {"a": b"dataset", "b.bin": b"dataset"}
    assert error[:2] == ["BadRequestError", 400]


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


def test_a_dataset_loads_whole_and_as_a_stream_from_every_layout(hub, client, layouts):
    builders, rows = client(
        PUSH_LAYOUTS
        + """
builders, rows = {}, {}
for name in ("columns", "lines", "tars"):
    builder = datasets.load_dataset_builder(f"tester/{name}")
    builders[name] = [builder.name, builder.config.data_files["train"]]
    load = lambda **options: datasets.load_dataset(f"tester/{name}", split="train", **options)
    rows[name] = [[row.get("json", row) for row in dataset] for dataset in (load(), load(streaming=True))]
answer([builders, rows])
"""
    )
    assert rows == {name: [ROWS, ROWS] for name in layouts}
    for name, (builder, urls) in builders.items():
        assert hub.files(f"tester/{name}", repo_type="dataset") == layouts[name]
        sha = hub.repos[f"datasets/tester/{name}"].branches["main"]
        paths = [path for path in layouts[name] if path != "README.md"]
        assert urls == [f"hf://datasets/tester/{name}@{sha}/{path}" for path in paths]
        assert builder == {"columns": "parquet", "lines": "json", "tars": "webdataset"}[name]


def test_a_datasets_files_are_downloaded_and_opened_by_their_urls(hub, client, layouts):
    downloaded, opened = client(
        PUSH_LAYOUTS
        + """
urls = [f"hf://datasets/tester/tars@{api.dataset_info('tester/tars').sha}/train/{i}.tar" for i in range(2)]
opened = []
for url in urls:
    with fsspec.open(url, "rb") as file:
        opened.append(file.read().hex())
answer([[Path(path).read_bytes().hex() for path in datasets.DownloadManager().download(urls)], opened])
"""
    )
    assert downloaded == opened == [content.hex() for content in layouts["tars"].values()]


def test_a_part_of_a_file_is_read_without_the_rest(hub, client, tmp_path):
    content = bytes(range(256)) * 40
    (tmp_path / "a.tar").write_bytes(content)
    parts = client("""
import fsspec
api.create_repo("parts", repo_type="dataset")
at = dict(path_in_repo="a.tar", repo_id="tester/parts", repo_type="dataset")
api.upload_file(path_or_fileobj=folder / "a.tar", **at)
with fsspec.open("hf://datasets/tester/parts/a.tar", "rb", block_size=100, cache_type="none") as file:
    file.seek(1000)
    parts = [file.read(300).hex()]
    file.seek(-7, 2)
    parts.append(file.read().hex())
answer(parts)
""")
    assert [bytes.fromhex(part) for part in parts] == [content[1000:1300], content[-7:]]
    path = "/datasets/tester/parts/resolve/main/a.tar"
    assert [status for *request, status in hub.requests if request == ["GET", path]] == [206, 206]

    def ask(span):
        connection = http.client.HTTPConnection(hub.url.removeprefix("http://"))
        connection.request("GET", path, headers={"Range": span})
        response = connection.getresponse()
        return response.status, response.headers["Content-Range"], response.read()

    assert ask("bytes=5-9") == (206, "bytes 5-9/10240", content[5:10])
    assert ask("bytes=10230-99999") == (206, "bytes 10230-10239/10240", content[-10:])
    assert ask("bytes=10230-") == (206, "bytes 10230-10239/10240", content[-10:])
    assert ask("bytes=10240-") == (416, "bytes */10240", b"")
    assert ask("lines=1-2") == (200, None, content)


def test_a_branch_a_tag_and_a_sha_each_name_their_rows_of_a_dataset(hub, client):
    counts, errors = client("""
import datasets, fsspec
api.create_repo("pairs", repo_type="dataset")
kind, at = dict(repo_type="dataset"), dict(path_in_repo="test.jsonl", repo_id="tester/pairs")
push = lambda rows, **where: api.upload_file(path_or_fileobj=b'{"id": 1}\\n' * rows, **at, **kind, **where).oid
sha = push(1)
api.create_tag("tester/pairs", tag="v1.0", revision=sha, **kind)
api.create_branch("tester/pairs", branch="dev/next", revision="v1.0", **kind)
push(2)
push(3, revision="dev/next")
def counts(revision):
    for streaming in (False, True):
        dataset = datasets.load_dataset("tester/pairs", split="test", revision=revision, streaming=streaming)
        yield sum(1 for row in dataset)
    quoted = revision.replace("/", "%2F")
    with fsspec.open(f"hf://datasets/tester/pairs@{quoted}/test.jsonl", "rb") as file:
        yield len(list(file))
errors = error(datasets.load_dataset, "tester/pairs", revision="v9"), error(datasets.load_dataset, "tester/none")
answer([[list(counts(revision)) for revision in (sha, "v1.0", "main", "dev/next")], errors])
""")
    assert counts == [[1] * 3, [1] * 3, [2] * 3, [3] * 3]
    assert [error[0] for error in errors] == ["DatasetNotFoundError"] * 2
    assert ["Revision 'v9' doesn't exist" in error[2] for error in errors] == [True, False]


def test_a_private_dataset_is_hidden_without_its_owners_token(hub, client):
    errors = client("""
import datasets
api.create_repo("secret", repo_type="dataset", private=True)
api.upload_file(path_or_fileobj=b'{"id": 1}', path_in_repo="a.jsonl", repo_id="tester/secret", repo_type="dataset")
def pulls(token):
    load = lambda: datasets.load_dataset("tester/secret", token=token, cache_dir=folder / str(token))
    read = lambda: hf.HfFileSystem(token=token).read_bytes("datasets/tester/secret/a.jsonl")
    return error(load), error(read), error(api.dataset_info, "tester/secret", token=token)
answer({str(token): pulls(token) for token in (False, "stranger", "expired", "read")})
""")
    names = ["DatasetNotFoundError", "FileNotFoundError", "RepositoryNotFoundError"]
    assert [error[0] for error in errors["False"]] == [error[0] for error in errors["stranger"]] == names
    assert [errors[token][2][1] for token in ("False", "stranger")] == [401, 404]
    assert [error[:2] for error in errors["expired"]] == [["HfHubHTTPError", 401]] * 3
    assert errors["read"] == [None] * 3


def test_a_repository_lists_its_folders(client, folder):
    listings = client("""
api.create_repo("model")
api.upload_folder(repo_id="tester/model", folder_path=folder / "push")
files, root = hf.HfFileSystem(), "tester/model"
answer([
    [sorted(entry.path for entry in api.list_repo_tree("tester/model", recursive=deep)) for deep in (False, True)],
    [files.isdir(f"{root}/sub"), files.isfile(f"{root}/empty.txt"), files.exists(f"{root}/none")],
    files.glob(f"{root}/**/*.txt"),
    [type(info).__name__ for info in api.get_paths_info("tester/model", ["sub", "empty.txt", "none"])],
])
""")
    root = sorted({path.split("/")[0] for path in folder})
    assert listings == [
        [root, sorted([*folder, "sub"])],
        [True, True, False],
        ["tester/model/empty.txt", "tester/model/sub/notes ü.txt"],
        ["RepoFolder", "RepoFile"],
    ]


def test_a_split_pushed_again_by_datasets_takes_the_place_of_the_first(hub, client):
    splits = client("""
import datasets
push = lambda split, ids, **options: datasets.Dataset.from_dict({"id": ids}).push_to_hub(
    "tester/pairs", split=split, **options
)
push("train", [1, 2, 3, 4], num_shards=2)
push("test", [5])
push("train", [6, 7])
answer({split: rows["id"][:] for split, rows in datasets.load_dataset("tester/pairs").items()})
""")
    assert splits == {"train": [6, 7], "test": [5]}
    names = ["README.md", "data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"]
    assert sorted(hub.files("tester/pairs", repo_type="dataset")) == names


def test_what_a_client_asks_of_another_host_is_refused_by_the_hub(hub, client):
    plain, encrypted = client("""
get = hf.utils.get_session().get
answer([get("http://other.invalid/file").status_code, error(get, "https://other.invalid/file")])
""")
    assert plain == 404
    assert encrypted[0] == "ProxyError"
    assert hub.requests == [("GET", "http://other.invalid/file", 404), ("CONNECT", "other.invalid:443", 404)]


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
