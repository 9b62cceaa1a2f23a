"""Does it reproduce? A cell of runs beside a published result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from harness.config import Config
from harness.errors import BadInput
from harness.results.measured import Measured
from harness.results.references import DATASETS, Reference
from harness.results.stats.compare import Cell, Difference, doubts
from harness.results.stats.metrics import Metric, accuracy, metrics, sample
from harness.results.stats.statistics import ALPHA, Estimate, Sample, compare, runs_to_tell

Word = Literal["reproduced", "not reproduced", "cannot tell"]
MEDIAN = "median_last5_top1_pct"


@dataclass(frozen=True)
class Reproduction:
    """What can be said of runs that were to reach a published number.

    Attributes:
        estimate: of `ours - theirs`.
        runs_needed: runs in all that would tell, if they come out as these; none: no number does.
    """

    cell: Cell
    reference: Reference
    metric: Metric
    ours: Sample
    theirs: Sample
    estimate: Estimate | None
    runs_needed: int | None
    differences: tuple[Difference, ...]
    doubts: tuple[str, ...]

    @property
    def word(self) -> Word:
        """Reproduced: surely not worse than the publication by the margin or more."""
        if self.estimate is None:
            return "cannot tell"
        bound, higher = _bound(self.metric), self.metric.better == "higher"
        above, below = self.estimate.p_above(bound), self.estimate.p_below(bound)
        if (above if higher else below) <= ALPHA:
            return "reproduced"
        return "not reproduced" if (below if higher else above) <= ALPHA else "cannot tell"


def reproduce(cell: Cell, reference: Reference, margin: float | None = None) -> Reproduction:
    """Hold runs against a published result.

    Args:
        margin: what may be lacking, in points or percent; by default the metric's.

    Raises:
        BadInput: the publication tells something that runs do not.
    """
    metric = _metric(reference)
    if margin is not None:
        metric = replace(metric, margin=margin)
    ours = sample(metric, cell.runs)
    if ours is None:
        raise BadInput(
            f"{cell.label}: its runs do not tell {metric.title}, which ref:{reference.id} is about"
        )
    spread = reference.std
    if spread is not None and metric.scale == "relative":
        spread = spread / reference.value
    theirs = Sample(metric.inner(reference.value), spread, reference.n or 1)
    std = None if metric.assumed_std is None else metric.step(metric.assumed_std)
    estimate = compare(ours, theirs, std)
    needed = runs_to_tell(ours, theirs, _bound(metric))
    found = tuple(_differences(cell.runs[0], reference))
    unlike = (*doubts(cell), *_unlike(cell.runs[0], reference, metric))
    return Reproduction(cell, reference, metric, ours, theirs, estimate, needed, found, unlike)


def _bound(metric: Metric) -> float:
    """The least difference that is still as good."""
    return metric.step(-metric.margin if metric.better == "higher" else metric.margin)


def _metric(reference: Reference) -> Metric:
    known = metrics()
    known["top5"] = replace(known["top1"], name="top5", title="top-5", of=accuracy("val_top5_pct"))
    if reference.statistic == "median_last5":
        last, median = known["top1"].of, accuracy(MEDIAN)
        known["top1"] = replace(
            known["top1"], title="top-1, median of the last 5 epochs",
            of=lambda run: last(run) if (found := median(run)) is None else found,
        )  # fmt: skip
    time = replace(known["train_s_to_target"], assumed_std=None)
    known["minutes_to_train"] = replace(
        time, name="minutes_to_train", title="time to train", unit="min", of=_minutes
    )
    known["epochs_to_target"] = replace(
        time, name="epochs_to_target", title="epochs to the target", unit="epochs",
        of=_of_target("epoch"),
    )  # fmt: skip
    if reference.metric not in known:
        raise BadInput(
            f"ref:{reference.id}: is a {reference.metric}, which no single run tells; compare runs "
            "of both sizes instead"
        )
    return known[reference.metric]


def _of_target(key: str) -> Callable[[Measured], float | None]:
    def of(run: Measured) -> float | None:
        target = run.result.get("target")
        return float(target[key]) if target else None

    return of


def _minutes(run: Measured) -> float | None:
    """To the target, or of the whole run: start-up, validations and checkpoints included."""
    wall_s = _of_target("wall_s")(run) or float(run.result["wall_s"])
    return wall_s / 60


def _differences(run: Measured, reference: Reference) -> Iterable[Difference]:
    """What the publication says of itself, and is another here."""
    result = run.result
    here = {
        "global_batch": result.get("global_batch"),
        "epochs": result.get("epochs"),
        "precision": result.get("precision"),
        "gpus": result["world_size"] if result["device"] == "cuda" else 0,
        "gpu": (run.environment.get("device") or {}).get("name"),
    }
    for key, ours in here.items():
        theirs = getattr(reference, key)
        if theirs is not None and theirs != ours and not (key == "gpu" and _is(ours, theirs)):
            yield Difference("publication", key, ours, theirs)


def _unlike(run: Measured, reference: Reference, metric: Metric) -> Iterable[str]:
    """Reasons for which a run is not comparable with a published result."""
    result = run.result
    if result["model"] != reference.model:
        yield f"the publication is about {reference.model}, the runs about {result['model']}"
    classes, images = DATASETS[reference.dataset]
    if (result["classes"], result["val_images"]) != (classes, images):
        yield (
            f"{reference.dataset} has {classes} classes and {images:,} validation images, the runs "
            f"{result['classes']} and {result['val_images']:,}"
        )
    if reference.statistic == "median_last5" and result.get(MEDIAN) is None:
        yield "the publication takes the median of the last 5 epochs, which were not all validated"
    if metric.of_seed and reference.protocol != (here := short_protocol(run.config)):
        yield f"validated in another way: {here} | {reference.protocol}"
    if metric.name == "images_per_second":
        differing = {each.key for each in _differences(run, reference)}
        if unlike := sorted(differing & {"gpus", "gpu"}):
            yield f"measured on other hardware ({', '.join(unlike)})"


def short_protocol(config: Config) -> str:
    """How validation images are shown, in the words of the shelf."""
    data = config.data
    if config.eval.views == "ten_crop":
        return f"10 crops of {data.image_px} px"
    if data.eval_resize_px:
        return f"centre crop {data.image_px} px of {data.eval_resize_px}"
    return f"single view of {data.image_px} px"


def _is(name: object, model: str) -> bool:
    """Whether a device's full name, `NVIDIA H100 80GB HBM3`, is of a model, `H100`."""
    return set(model.split()) <= set(str(name).split())
