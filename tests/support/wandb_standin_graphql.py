"""What the W&B stand-in answers to the client's GraphQL operations, and the runs that it keeps."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]
Place = tuple[str, str, str]  # entity, project, run id
ENTITY = "lab"


@dataclass
class Run:
    """One run, as the client has told it so far."""

    entity: str
    project: str
    id: str
    fields: Json = field(default_factory=dict)  # last value of each variable of UpsertBucket
    raw_config: Json = field(default_factory=dict)
    files: dict[str, dict[int, str]] = field(default_factory=dict)  # name -> offset -> line
    state: str = "running"
    exit_code: int | None = None
    stopped: bool = False  # set it: as if someone pressed Stop in the UI

    def lines(self, file: str) -> list[str]:
        return [line for _, line in sorted(self.files.get(file, {}).items())]

    @property
    def history(self) -> list[Json]:
        return [json.loads(line) for line in self.lines("wandb-history.jsonl")]

    @property
    def summary(self) -> Json:
        lines = self.lines("wandb-summary.json")
        summary: Json = json.loads(lines[-1] if lines else "{}")
        return summary

    @property
    def config(self) -> Json:
        return {k: v["value"] for k, v in self.raw_config.items() if k != "_wandb"}

    def node(self) -> Json:
        """The run as queries see it."""
        history, events = self.lines("wandb-history.jsonl"), self.lines("wandb-events.jsonl")
        rows = self.history
        nothing = dict.fromkeys(("notes", "description", "commit", "sweepName"))
        return nothing | {
            "id": _b64(f"Run:v1:{self.id}:{self.project}:{self.entity}"),
            "internalId": "1",
            "projectId": "1",
            "project": _project(self.project, self.entity),
            "name": self.id,
            "displayName": self.fields.get("displayName"),
            "tags": self.fields.get("tags") or [],
            "group": self.fields.get("groupName"),
            "groupName": self.fields.get("groupName"),
            "jobType": self.fields.get("jobType"),
            "readOnly": False,
            "state": self.state,
            "stopped": self.stopped,
            "createdAt": "2026-01-01T00:00:00Z",
            "heartbeatAt": "2026-01-01T00:00:00Z",
            "user": {"name": "tester", "username": "tester"},
            "config": json.dumps(self.raw_config),
            "wandbConfig": json.dumps({"t": 1}),
            "summaryMetrics": json.dumps(self.summary),
            "systemMetrics": events[-1] if events else "{}",
            "historyLineCount": len(history),
            "historyTail": json.dumps(history[-1:]),
            "historyKeys": {"lastStep": len(rows) - 1, "keys": {k: {} for r in rows for k in r}},
            "eventsLineCount": len(events),
            "eventsTail": json.dumps(events[-1:]),
            "logLineCount": 0,
        }


@dataclass
class Store:
    """All runs that the server knows."""

    url: str
    runs: dict[Place, Run] = field(default_factory=dict)
    views: dict[int, Json] = field(default_factory=dict)  # saved workspaces

    def find(self, variables: Json) -> Run | None:
        return self.runs.get(place(variables))

    def history(self, variables: Json) -> list[Json]:
        run = self.find(variables)
        return run.history if run else []


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _project(name: str, entity: str) -> Json:
    return {"id": "UA==", "name": name, "entity": {"id": "RQ==", "name": entity}}


def place(variables: Json) -> Place:
    """Entity, project and run id, under the names that the operations use."""
    entity = variables.get("entity") or variables.get("entityName") or ENTITY
    project = variables.get("project") or variables.get("projectName") or "uncategorized"
    ids = (variables.get(key) for key in ("name", "run", "runName", "runId"))
    return entity, project, next(filter(None, ids), "")


def _viewer(store: Store, variables: Json) -> Json:
    teams = {"edges": [{"node": {"name": ENTITY}}]}
    who = {"id": "VQ==", "entity": ENTITY, "username": "tester", "name": "tester", "email": ""}
    return {
        "viewer": who | {"flags": "{}", "admin": False, "apiKeys": {"edges": []}, "teams": teams}
    }


def _upsert(store: Store, variables: Json) -> Json:
    where = place(variables)
    inserted = where not in store.runs
    run = store.runs.setdefault(where, Run(*where))
    given = {key for key, value in variables.items() if value is not None}
    # As documented: a run that starts without resuming, so without this id, replaces its namesake.
    if "id" not in given and given - {"name", "project", "entity", "config"}:
        run.files.clear()
    run.fields.update({key: value for key, value in variables.items() if value is not None})
    if variables.get("config"):
        run.raw_config = json.loads(variables["config"])
    return {"upsertBucket": {"bucket": run.node(), "inserted": inserted}}


def _resume_status(store: Store, variables: Json) -> Json:
    entity, project, _ = place(variables)
    run = store.find(variables)
    return {"model": _project(project, entity) | {"bucket": run.node() if run else None}}


def _create_files(store: Store, variables: Json) -> Json:
    folder = "/".join((store.url, "upload", *place(variables)))
    files = [{"name": name, "uploadUrl": f"{folder}/{name}"} for name in variables["files"]]
    return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": files}}


def _run(store: Store, variables: Json, **more: Any) -> Json:
    run = store.find(variables)
    return {"project": {"run": run.node() | more if run else None}}


def _full_history(store: Store, variables: Json) -> Json:
    rows = [json.dumps(row) for row in store.history(variables)]
    return _run(store, variables, history=rows, events=[])


def _history_page(store: Store, variables: Json) -> Json:
    rows = store.history(variables)[variables["minStep"] : variables["maxStep"]]
    return _run(store, variables, history=[json.dumps(row) for row in rows])


def _sampled(store: Store, variables: Json) -> Json:
    specs = [json.loads(spec) for spec in variables.get("specs") or [variables["spec"]]]
    tables = [_columns(store.history(variables), spec) for spec in specs]
    return _run(store, variables, sampledHistory=tables)


def _columns(history: list[Json], spec: Json) -> list[Json]:
    """The rows from minStep to maxStep inclusive that have all keys of the spec."""
    keys = set(spec["keys"])
    rows = history[spec.get("minStep", 0) : spec.get("maxStep", len(history)) + 1]
    return [{key: row[key] for key in keys} for row in rows if keys <= row.keys()]


def _runs(store: Store, variables: Json) -> Json:
    """Runs of a project, by filters such as {"group": "a", "tags": {"$in": ["b"]}}."""
    nodes = [run.node() for there, run in store.runs.items() if there[:2] == place(variables)[:2]]
    wanted = json.loads(variables.get("filters") or "{}")
    edges = [{"node": node, "cursor": node["name"]} for node in nodes if _fits(node, wanted)]
    runs = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}
    return {"project": {"internalId": "1", "runCount": len(edges), "readOnly": False, "runs": runs}}


def _fits(node: Json, wanted: Json) -> bool:
    """Whether a run has all that is wanted; of the filter language, what our code uses."""
    for name, asked in wanted.items():
        if name == "$and":
            fits = all(_fits(node, each) for each in asked)
        else:
            found = node[{"display_name": "displayName"}.get(name, name)]
            if isinstance(asked, dict):
                fits = not set(found).isdisjoint(asked["$in"])
            else:
                fits = found == asked
        if not fits:
            return False
    return True


def _upsert_view(store: Store, variables: Json) -> Json:
    """A saved workspace; one without an id is a new one, whatever its name."""
    view = {key: value for key, value in variables.items() if value is not None}
    number = int(view.get("id") or len(store.views) + 1)
    store.views[number] = view
    saved = {"id": str(number), "name": view["name"]}
    return {"upsertView": {"view": saved, "inserted": "id" not in view}}


OPERATIONS: dict[str, Callable[[Store, Json], Json]] = {
    "ServerFeaturesQuery": lambda store, v: {"serverInfo": {"features": []}},
    "Viewer": _viewer,
    "GetDefaultEntity": _viewer,
    "OrganizationCoreWeaveOrganizationID": lambda store, v: {"entity": {"organization": None}},
    "UpsertBucket": _upsert,
    "RunResumeStatus": _resume_status,
    "RunStoppedStatus": _run,
    "CreateRunFiles": _create_files,
    "Run": _run,
    "RunHistoryKeys": _run,
    "RunParquetHistory": lambda store, v: _run(
        store, v, parquetHistory={"parquetUrls": [], "liveData": []}
    ),
    "RunFullHistory": _full_history,
    "HistoryPage": _history_page,
    "RunSampledHistory": _sampled,
    "SampledHistoryPage": _sampled,
    "Runs": _runs,
    "UpsertView2": _upsert_view,
}
