"""As much of the Hugging Face hub as `datasets` needs to stream from it, on loopback."""

import hashlib
import json
from urllib.parse import unquote, urlsplit

from fault_proxy import Files, part


def commit_of(files: dict[str, bytes]) -> str:
    """What stands for the commit that holds these files."""
    digest = hashlib.sha1()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha1(files[name]).digest())
    return digest.hexdigest()


class Hub(Files):
    """Data sets by `org/name`, each a list of commits, the last of which is `main`."""

    def __init__(self, repos: dict[str, list[dict[str, bytes]]]) -> None:
        super().__init__({})
        self.repos = repos
        self.respond = self._respond

    def _commit(self, repo: str, revision: str) -> dict[str, bytes] | None:
        commits = self.repos.get(repo, [])
        known = {commit_of(files): files for files in commits}
        return known.get(revision) or (commits[-1] if commits and revision == "main" else None)

    def _respond(self, path, headers):
        parts = unquote(urlsplit(path).path).strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            deep = "recursive=true" in urlsplit(path).query.lower()
            return self._api("/".join(parts[2:4]), parts[4:], headers, deep)
        if parts[0] == "datasets" and parts[3:4] == ["resolve"]:
            return self._file("/".join(parts[1:3]), parts[4], "/".join(parts[5:]), headers)
        return 404, {}, b"{}"

    def _api(self, repo, rest, headers, deep):
        what, revision = (rest[0], rest[1]) if len(rest) > 1 else ("info", "main")
        files = self._commit(repo, revision)
        if files is None:
            known = repo in self.repos
            code = "RevisionNotFound" if known else "RepoNotFound"
            return 404 if known else 401, {"X-Error-Code": code}, b"{}"
        entries = [self._entry(name, body) for name, body in sorted(files.items())]
        reply: object
        if what == "tree":
            reply = self._tree(entries, "".join(f"{part}/" for part in rest[2:]), deep)
            if not reply:
                return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        elif what == "paths-info":
            asked = headers["body"]
            reply = [entry for entry in entries if entry["path"] in asked]
        else:
            siblings = [{"rfilename": entry["path"]} for entry in entries]
            reply = {"id": repo, "sha": commit_of(files), "siblings": siblings, "tags": []}
            reply |= {"private": False, "gated": False, "disabled": False, "downloads": 0}
        return 200, {"Content-Type": "application/json"}, json.dumps(reply).encode()

    def _tree(self, entries, under, deep):
        below = [entry for entry in entries if entry["path"].startswith(under)]
        names = {entry["path"][len(under) :] for entry in below}
        folders = sorted({name.split("/")[0] for name in names if "/" in name})
        about = {"type": "directory", "oid": "0" * 40, "size": 0}
        found = [about | {"path": under + folder} for folder in folders]
        return found + [e for e in below if deep or "/" not in e["path"][len(under) :]]

    def _entry(self, name, body):
        oid = hashlib.sha1(body).hexdigest()
        return {"type": "file", "path": name, "size": len(body), "oid": oid}

    def _file(self, repo, revision, name, headers):
        files = self._commit(repo, revision)
        if files is None or name not in files:
            code = "EntryNotFound" if files is not None else "RevisionNotFound"
            return 404, {"X-Error-Code": code}, b""
        body = files[name]
        about = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": commit_of(files)}
        return part(body, about, headers.get("Range"))
