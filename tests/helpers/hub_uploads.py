"""The uploading half of a hub on loopback: repos and branches made, files offered, sent to storage and committed.

As huggingface.co does it for clients without Xet: /preupload says which files go to storage, /objects/batch where to
and which are there already, PUT takes them, and /commit names what was sent. Writing needs the server's token.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from helpers.hub_server import HubServer

LARGE = (".safetensors", ".parquet", ".jpg")  # what goes to storage
Answer = tuple[int, dict[str, Any]]


def answer_post(hub: HubServer, words: list[str], body: bytes) -> Answer | None:
    """The answer to a POST of the uploading half; None for one that isn't."""
    if words == ["api", "repos", "create"]:
        return _create(hub, json.loads(body))
    if words == ["api", "validate-yaml"]:
        return 200, {"errors": [], "warnings": []}
    if words[0] == "datasets" and words[2:] == ["info", "lfs", "objects", "batch"]:
        return 200, _batch(hub, json.loads(body))
    if words[0] == "datasets" and words[3:] == ["info", "lfs", "objects", "batch"]:
        return 200, _batch(hub, json.loads(body))
    if words[:2] == ["api", "datasets"] and len(words) > 5:
        name, kind, revision = "/".join(words[2:4]), words[4], words[5]
        if kind == "branch":
            return _branch(hub, name, revision)
        if kind == "preupload":
            return 200, _preupload(hub, name, revision, json.loads(body))
        if kind == "commit":
            return _commit(hub, name, revision, body)
    return None


def file_info(path: str, data: bytes) -> dict[str, object]:
    """What a listing says of a file; of a large one its sha256 too."""
    info: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
    if path.endswith(LARGE):
        info["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return info


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _create(hub: HubServer, asked: dict[str, Any]) -> Answer:
    from helpers.hub_server import Repo

    name = f"{asked['organization']}/{asked['name']}"
    if name in hub.repos:
        return 409, {"error": "You already created this dataset repo", "url": f"{hub.url}/datasets/{name}"}
    hub.repos[name] = Repo({".gitattributes": b"*.parquet lfs"}, visibility=asked.get("visibility", "public"))
    return 200, {"url": f"{hub.url}/datasets/{name}"}


def _branch(hub: HubServer, name: str, branch: str) -> Answer:
    from helpers.hub_server import Repo

    if f"{name}@{branch}" in hub.repos:
        return 409, {"error": "Reference already exists"}
    hub.repos[f"{name}@{branch}"] = Repo(dict(hub.repos[name].files))
    return 201, {}


def _preupload(hub: HubServer, name: str, revision: str, asked: dict[str, Any]) -> dict[str, Any]:
    held = hub.at(name, revision).files
    answers = []
    for file in asked["files"]:
        large, data = file["path"].endswith(LARGE), held.get(file["path"])
        oid = None if data is None else hashlib.sha256(data).hexdigest() if large else git_hash(data)
        mode = "lfs" if large else "regular"
        answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return {"files": answers}


def _batch(hub: HubServer, asked: dict[str, Any]) -> dict[str, Any]:
    objects = []
    for item in asked["objects"]:
        if hub.blob(item["oid"]) is None:
            href = f"{hub.cdn}/storage/{item['oid']}?X-Signature=very-secret"
            objects.append({**item, "actions": {"upload": {"href": href}}})
        else:
            objects.append(item)
    return {"transfer": "basic", "objects": objects}


def _commit(hub: HubServer, name: str, revision: str, body: bytes) -> Answer:
    """All of it or, where something wasn't sent, nothing."""
    repo = hub.at(name, revision)
    files = dict(repo.files)
    for line in body.splitlines():
        item = json.loads(line)
        kind, value = item["key"], item["value"]
        if kind == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            data = hub.blob(value["oid"])
            if data is None or len(data) != value["size"]:
                return 400, {"error": f"{value['path']} was not sent"}
            files[value["path"]] = data
        elif kind == "deletedFile":
            del files[value["path"]]
        else:
            hub.commits.append(value["summary"])
    repo.files = files
    repo.commit = hashlib.sha1(f"{repo.commit}{len(hub.commits)}".encode()).hexdigest()
    return 200, {"commitUrl": f"{hub.url}/datasets/{name}/commit/{repo.commit}", "commitOid": repo.commit}
