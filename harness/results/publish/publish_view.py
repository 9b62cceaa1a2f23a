"""Save a W&B workspace whose panels compare runs over time, over epochs and by speed."""

from harness.errors import BadInput
from harness.logging.schema import RESULT_PREFIX, ROW_KEYS
from harness.results.wandb import api as wandb_api

NAME = "Compare"
COLUMNS = ("val_top1_pct", "images_per_second", "world_size")
SECONDS, EPOCH = ROW_KEYS["train_s"], ROW_KEYS["epoch"]
TOP1, RATE = ROW_KEYS["val_top1_pct"], ROW_KEYS["images_per_second"]

PANELS: dict[str, list[tuple[str, str | None, str]]] = {
    "Accuracy": [
        ("top-1 over training time, %", SECONDS, TOP1),
        ("top-1 over epochs, %", EPOCH, TOP1),
    ],
    "Speed": [
        ("images/s over training time", SECONDS, RATE),
        ("images/s of the whole run", None, f"{RESULT_PREFIX}images_per_second"),
        ("median step, ms", SECONDS, ROW_KEYS["step_ms_p50"]),
        ("waiting for data, %", SECONDS, ROW_KEYS["data_wait_pct"]),
    ],
}
"""Section -> title, x-axis and y-axis of its line plots; a bar chart has no x-axis."""


def save_view(project: str, entity: str | None) -> str:
    """Save a new workspace and return its URL.

    W&B identifies workspaces by its own ids, not by name, so each call makes another one.

    Raises:
        BadInput: wandb-workspaces is not installed, there is no key, or W&B refuses it.
    """
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
        from wandb_workspaces.expr import Metric
    except ImportError:
        raise BadInput(
            "--to wandb-view: needs wandb-workspaces; "
            "install it: pip install 'imagenet-harness[publish]'"
        ) from None
    with wandb_api.client("--to wandb-view") as api:
        sections = []
        for name, rows in PANELS.items():
            panels: list[reports.LinePlot | reports.BarPlot] = [
                reports.LinePlot(title=title, x=x, y=[y]) if x
                else reports.BarPlot(title=title, metrics=[y]) for title, x, y in rows
            ]  # fmt: skip
            sections.append(workspaces.Section(name=name, panels=panels, is_open=True))
        columns = [f"summary:{RESULT_PREFIX}{name}" for name in COLUMNS]
        # Runs of a group differ only in their seed, so panels show their mean and spread.
        runs = workspaces.RunsetSettings(groupby=[Metric("Group")], pinned_columns=columns)
        owner = wandb_api.entity_of(api, entity)
        workspace = workspaces.Workspace(
            entity=owner, project=project, name=NAME, sections=sections, runset_settings=runs
        )
        return str(workspace.save().url)
