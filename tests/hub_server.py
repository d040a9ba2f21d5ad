"""A Hugging Face Hub on 127.0.0.1: tests drive the real clients offline, transformers and datasets among them.

    with LoopbackHub() as hub:
        subprocess.run([sys.executable, "-c", code], env=hub.env(token="write", cache=tmp_path), check=True)
        assert hub.files("tester/model")["config.json"] == ...

`HF_ENDPOINT` is read when `huggingface_hub` is imported, so the client belongs in a subprocess. There are model and
dataset repositories with commits, branches, tags, LFS objects, listings, ranged downloads and privacy, kept in memory;
no Spaces, buckets, pull requests, Xet storage, log of commits, list of branches, listing of more than one page, folder
deletion, check of a card's metadata, or dataset viewer with its Parquet export. The file has more than 250 lines
because one push and pull crosses all of the protocol in it.
"""

import base64
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote


PREFIXES = {"model": "", "dataset": "datasets/"}  # of a repository's id, by its type
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf", ".parquet", ".arrow", ".tar", ".zip", ".jpg", ".png")
LFS_BYTES = 10 * 2**20  # a larger file is an LFS object whatever its name


class HubError(Exception):
    """An error answer: status, message, `X-Error-Code`, and the commit in which a file was looked for.

    The codes RepoNotFound, RevisionNotFound and EntryNotFound become the client's RepositoryNotFoundError,
    RevisionNotFoundError and RemoteEntryNotFoundError; a bare 400 its BadRequestError, the rest its HfHubHTTPError.
    """

    def __init__(self, status, message, code=None, commit=None):
        super().__init__(message)
        headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}
        self.status, self.headers = status, {name: value for name, value in headers.items() if value}


class Blob:
    """A file: `data`, `oid` (git's SHA-1, or an LFS object's SHA-256) and `lfs`, an LFS object's listing or None."""

    def __init__(self, data, lfs=False):
        digest = hashlib.sha256(data) if lfs else hashlib.sha1(b"blob %d\0%b" % (len(data), data))
        self.data, self.oid = data, digest.hexdigest()
        self.lfs = {"oid": self.oid, "size": len(data), "pointerSize": 134} if lfs else None


def entry(path, files):
    """What the Hub lists for a file or a folder among `files`, {path: Blob}; None if there is neither."""
    if path in files:
        blob = files[path]
        return {"type": "file", "path": path, "oid": blob.oid, "size": len(blob.data), "lfs": blob.lfs}
    inside = sorted((name, blob.oid) for name, blob in files.items() if name.startswith(f"{path}/"))
    oid = hashlib.sha1(json.dumps(inside).encode()).hexdigest()
    return {"type": "directory", "path": path, "oid": oid, "size": 0} if inside else None


def cut(content, span):
    """(status, bytes, headers) for a `Range` header: 206, or 416 for no bytes; all of it if not `bytes=M-[N]`."""
    if (match := re.fullmatch(r"bytes=(\d+)-(\d*)", span)) is None:
        return 200, content, {}
    start, stop = int(match[1]), min(int(match[2] or len(content)) + 1, len(content))
    if start >= stop:
        return 416, b"", {"Content-Range": f"bytes */{len(content)}"}
    return 206, content[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}


class Repo:
    """A repository, empty at first.

    `commits` maps a SHA to {path: Blob}, `branches` and `tags` a name to a SHA, `objects` a SHA-256 to LFS content.
    """

    def __init__(self, url, private):
        self.url, self.private = url, private
        self.commits, self.branches, self.tags, self.objects = {}, {}, {}, {}
        self._store("main", {})

    def _store(self, branch, files):
        listing = sorted((path, blob.oid) for path, blob in files.items())
        sha = hashlib.sha1(json.dumps([self.url, len(self.commits), listing]).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def resolve(self, revision):
        """The SHA and the files of a branch, a tag or a SHA. Raises HubError: RevisionNotFound."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        if sha not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha, self.commits[sha]

    def point(self, references, name, revision):
        """Create a branch or a tag. Raises HubError: 409 if it exists, RevisionNotFound."""
        if name in references:
            raise HubError(409, f"Reference already exists: {name}")
        references[name], _ = self.resolve(revision)
        return {}

    def info(self, revision):
        """A revision's SHA and the names of its files."""
        sha, files = self.resolve(revision)
        repo_id, siblings = "/".join(self.url.split("/")[-2:]), [{"rfilename": path} for path in sorted(files)]
        return {"id": repo_id, "sha": sha, "private": self.private, "siblings": siblings}

    def tree(self, revision, folder, recursive):
        """The files and folders in a folder ("" or with a final "/"). Raises HubError: EntryNotFound."""
        sha, files = self.resolve(revision)
        paths = {str(path) for file in files for path in (PurePosixPath(file), *PurePosixPath(file).parents)} - {"."}
        inside = [path for path in sorted(paths) if path.startswith(folder)]
        if folder and not inside:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound", sha)
        return [entry(path, files) for path in inside if recursive or "/" not in path.removeprefix(folder)]

    def paths_info(self, revision, paths):
        """The files and folders among `paths`."""
        _, files = self.resolve(revision)
        return [found for path in paths if (found := entry(path, files))]

    def download(self, revision, path):
        """A file, with the headers by which the client caches it. Raises HubError: EntryNotFound."""
        sha, files = self.resolve(revision)
        if path not in files:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound", sha)
        blob, etag = files[path], f'"{files[path].oid}"'
        headers = {"Content-Type": "application/octet-stream", "X-Repo-Commit": sha, "ETag": etag}
        return 200, blob.data, headers | ({"X-Linked-ETag": etag, "X-Linked-Size": len(blob.data)} if blob.lfs else {})

    def preupload(self, revision, additions):
        """How each file travels; by `oid`, what the revision holds, the client leaves equal files out of a commit."""
        _, files = self.resolve(revision)
        for file in additions:
            lfs = file["path"].endswith(LFS_SUFFIXES) or file["size"] > LFS_BYTES
            oid = files[file["path"]].oid if file["path"] in files else None
            file |= {"uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}
        return {"files": additions}

    def lfs_batch(self, objects):
        """Upload links; none for an object that is here, by which the client knows not to send it again."""
        for item in objects:
            if item["oid"] not in self.objects:
                link = {"href": f"{self.url}/lfs/{item['oid']}"}
                item["actions"] = {"upload": link, "verify": link}
        return {"transfer": "basic", "objects": objects}

    def commit(self, branch, operations):
        """Apply the client's operations to a branch, all or none.

        Raises HubError: RevisionNotFound for no branch, 412 if `parentCommit` is not its head, EntryNotFound for the
        deletion of no file, 400 for LFS content never uploaded.
        """
        head, files = self.resolve(branch)
        if branch not in self.branches:
            raise HubError(404, f"{branch} is not a branch", "RevisionNotFound")
        files = dict(files)
        for operation in operations:
            match operation["key"], operation["value"]:
                case "header", header:
                    if not head.startswith(header.get("parentCommit", "")):
                        raise HubError(412, "A commit has happened since. Please refresh and try again.")
                case "file", {"path": path, "content": content}:
                    files[path] = Blob(base64.b64decode(content))
                case "lfsFile", {"path": path, "oid": oid} if oid in self.objects:
                    files[path] = Blob(self.objects[oid], lfs=True)
                case "deletedFile", {"path": path}:
                    if files.pop(path, None) is None:
                        raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound", head)
                case key, value:
                    raise HubError(400, f"{key} {value}: not uploaded, or an operation this hub does not have")
        sha = self._store(branch, files)
        return {"commitOid": sha, "commitUrl": f"{self.url}/commit/{sha}"}


class HubHandler(BaseHTTPRequestHandler):
    """One connection: reads each request, has the hub answer it, replies."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave together, else each answer waits 40 ms for a delayed ACK
    disable_nagle_algorithm = True

    def log_message(self, format, *args):
        """Keep stderr clean: `LoopbackHub.requests` has it all."""

    def respond(self):
        hub, length = self.server.hub, int(self.headers.get("Content-Length", 0))
        path, _, query = self.path.partition("?")
        admitted = self.command != "PUT" or hub.admit_upload()
        if hub.drop and not admitted:
            self.rfile.read(length // 2)
            hub.requests.append((self.command, path, None))
            self.close_connection = True
            return
        body, token = self.rfile.read(length), self.headers.get("Authorization", "").removeprefix("Bearer ")
        if admitted:
            status, payload, headers = hub.answer(self.command, path, parse_qs(query), body, token)
        else:
            status, payload, headers = 507, {"error": "Insufficient Storage"}, {}
        if self.command == "GET" and "Range" in self.headers and isinstance(payload, bytes):
            status, payload, extent = cut(payload, self.headers["Range"])
            headers = headers | extent
        hub.requests.append((self.command, path, status))
        content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers, "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else content)

    do_GET = do_HEAD = do_POST = do_PUT = do_CONNECT = respond


class LoopbackHub:
    """The running server at `url`, as a context manager.

    `tokens` maps a token to (user, may write): "write" and "read" of the user `tester`, "stranger" of another one.
    `repos` maps an id to its Repo, for a dataset "datasets/" and its id. `uploaded` lists the SHA-256 of each LFS
    object received, `requests` each (method, path, status), the status None where the connection was dropped.
    """

    def __init__(self):
        self.tokens = {"write": ("tester", True), "read": ("tester", False), "stranger": ("stranger", True)}
        self.repos, self.uploaded, self.requests, self._lock = {}, [], [], threading.Lock()
        self.heal()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception):
        self._server.shutdown()
        self._server.server_close()

    def env(self, token=None, cache=None):
        """The environment for a client process: this one's without its Hub settings; `cache` becomes its HF_HOME.

        What the client asks of another host is asked here, of a proxy that has nothing: `datasets` counts downloads
        in a bucket on S3 and looks for a dataset viewer.
        """
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
        env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        env |= {"HF_ENDPOINT": self.url, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        env |= {"http_proxy": self.url, "https_proxy": self.url}
        env |= {f"HF_HUB_DISABLE_{what}": "1" for what in ("XET", "TELEMETRY", "PROGRESS_BARS")}
        return env | ({"HF_TOKEN": token} if token else {}) | ({"HF_HOME": str(cache)} if cache else {})

    def files(self, repo_id, revision="main", repo_type="model"):
        """{path: content} at a revision. Raises KeyError for an unknown repository, HubError for the revision."""
        repo = self.repos[PREFIXES[repo_type] + repo_id]
        return {path: blob.data for path, blob in repo.resolve(revision)[1].items()}

    def fail_uploads(self, after=0, drop=False):
        """Store `after` more LFS objects, then none until `heal()`.

        The others get a 507, which the client does not retry; with `drop` the connection closes in mid-body, which the
        client retries five times within 23 seconds.
        """
        self._admissions, self.drop = after, drop

    def heal(self):
        """Store every LFS object again."""
        self.fail_uploads(after=float("inf"))

    def admit_upload(self):
        """Whether to store the LFS object about to arrive; counted here, because the client sends five at a time."""
        with self._lock:
            self._admissions -= 1
            return self._admissions >= 0

    def answer(self, method, path, query, body, token):
        """(status, JSON value or bytes, headers) for one request."""
        with self._lock:
            try:
                if token and token not in self.tokens:  # a public repository refuses it too
                    raise HubError(401, "Invalid credentials in Authorization header")
                segments = [unquote(segment) for segment in path.split("/")[1:]]
                result = self._route(method, segments, query, body, *self.tokens.get(token, (None, False)))
                if result is None:
                    raise HubError(404, f"the loopback hub has no {method} {path}")
                return result if isinstance(result, tuple) else (200, result, {})
            except HubError as error:
                return error.status, {"error": str(error)}, error.headers

    def _route(self, method, segments, query, body, account, may_write):
        prefix = PREFIXES["model"]
        match segments:  # a dataset's routes are a model's, told apart by their beginning
            case ["datasets", *rest]:
                prefix, segments = PREFIXES["dataset"], rest
            case ["api", "datasets", *rest]:
                prefix, segments = PREFIXES["dataset"], ["api", "models", *rest]

        def repo(user, name, writing=False):
            found = self.repos.get(f"{prefix}{user}/{name}")
            if found is None or (found.private and account != user):
                raise HubError(404 if account else 401, "Repository not found", "RepoNotFound")
            if writing and not (may_write and account == user):
                raise HubError(403 if account else 401, f"this token may not write to {user}/{name}")
            return found

        match method, *segments:
            case "GET", "api", "whoami-v2":
                if account is None:
                    raise HubError(401, "Invalid username or password.")
                role = "write" if may_write else "read"
                return {"type": "user", "name": account, "orgs": [], "auth": {"accessToken": {"role": role}}}
            case "POST", "api", "validate-yaml":
                return {"errors": [], "warnings": []}
            case "POST", "api", "repos", "create":
                return self._create_repo(account, may_write, **json.loads(body))
            case "GET" | "HEAD", user, name, "resolve", revision, *path:
                return repo(user, name).download(revision, "/".join(path))
            case "GET", "api", "models", user, name:
                return repo(user, name).info("main")
            case "GET", "api", "models", user, name, "revision", revision:
                return repo(user, name).info(revision)
            case "GET", "api", "models", user, name, "tree", revision, *path:
                folder = "".join(f"{part}/" for segment in path for part in segment.split("/"))
                return repo(user, name).tree(revision, folder, recursive=query.get("recursive") == ["true"])
            case "POST", "api", "models", user, name, "paths-info", revision:
                return repo(user, name).paths_info(revision, parse_qs(body.decode())["paths"])
            case "POST", "api", "models", user, name, "branch", branch:
                target = repo(user, name, writing=True)
                return target.point(target.branches, branch, json.loads(body).get("startingPoint", "main"))
            case "POST", "api", "models", user, name, "tag", revision:
                target = repo(user, name, writing=True)
                return target.point(target.tags, json.loads(body)["tag"], revision)
            case "POST", "api", "models", user, name, "preupload", revision:
                return repo(user, name, writing=True).preupload(revision, json.loads(body)["files"])
            case "POST", "api", "models", user, name, "commit", branch if "create_pr" not in query:
                return repo(user, name, writing=True).commit(branch, map(json.loads, body.splitlines()))
            case "POST", user, name, "info", "lfs", "objects", "batch":
                return repo(user, name.removesuffix(".git"), writing=True).lfs_batch(json.loads(body)["objects"])
            case "PUT", user, name, "lfs", oid:  # a signed link on the Hub, so it comes without a token
                if hashlib.sha256(body).hexdigest() != oid:
                    raise HubError(400, f"the SHA-256 of the content is not {oid}: did the file change meanwhile?")
                self.repos[f"{prefix}{user}/{name}"].objects[oid] = body
                self.uploaded.append(oid)
                return {}
            case "POST", user, name, "lfs", oid if oid in repo(user, name, writing=True).objects:
                return {}
        return None

    def _create_repo(self, account, may_write, name, organization=None, visibility="public", **other):
        repo_id = f"{organization or account}/{name}"
        if not may_write or repo_id.split("/")[0] != account:
            raise HubError(403 if account else 401, f"this token may not create {repo_id}")
        repo_type = other.get("type", "model")
        if repo_type not in PREFIXES:
            raise HubError(400, f"the loopback hub has no {repo_type} repositories")
        key = PREFIXES[repo_type] + repo_id
        status = 409 if key in self.repos else 200
        repo = self.repos.setdefault(key, Repo(f"{self.url}/{key}", private=visibility == "private"))
        return status, {"url": repo.url}, {}  # with exist_ok the client reads the URL from the 409 too
