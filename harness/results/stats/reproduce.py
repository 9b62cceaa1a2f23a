"""Compare runs with a published result: does a recipe reproduce it?"""

from collections.abc import Iterable
from dataclasses import replace

from harness.config import Config
from harness.errors import BadInput
from harness.results.measured import Measured
from harness.results.references import DATASETS, Reference
from harness.results.stats.compare import Cell, Comparison, Difference, Finding, doubts
from harness.results.stats.metrics import Metric, accuracy, field, metrics, sample
from harness.results.stats.statistics import Sample

MEDIAN = "median_last5_top1_pct"


def reproduce(cell: Cell, reference: Reference, margin: float | None = None) -> Comparison:
    """Compare runs with a published result; by default with the margin of its metric.

    Raises:
        BadInput: the runs do not have the published metric.
    """
    metric = _metric(reference)
    if margin is not None:
        metric = replace(metric, margin=margin)
    ours, base = sample(metric, cell.runs), Cell(f"ref:{reference.id}", reference=reference)
    if ours is None:
        what = f"{metric.title}, which {base.label} is about"
        raise BadInput(f"{cell.label}: its runs have no {what}")
    std = reference.std
    if std is not None and metric.scale == "relative":
        std /= reference.value
    theirs = Sample(metric.transform(reference.value), std, reference.n or 1)
    return Comparison(
        cell, base, tuple(_differences(cell.runs[0], reference)),
        (*doubts(cell), *_unlike(cell.runs[0], reference, metric)),
        (Finding.of(metric, ours, theirs, primary=True, published=True),),
    )  # fmt: skip


def _metric(reference: Reference) -> Metric:
    known = metrics()
    top1, time, to_target_s = known["top1"], known["train_s_to_target"], field("target", "wall_s")
    if reference.statistic == "median_last5":
        median = accuracy(MEDIAN)
        known["top1"] = replace(
            top1, title="top-1, median of the last 5 epochs",
            read=lambda run: top1.read(run) if (value := median(run)) is None else value,
        )  # fmt: skip
    for metric in (
        replace(top1, name="top5", title="top-5", read=accuracy("val_top5_pct")),
        # To the target, else of the whole run; with start-up and validations.
        replace(time, name="minutes_to_train", title="time to train", unit="min",
                read=lambda run: (to_target_s(run) or float(run.result["wall_s"])) / 60),
        replace(time, name="epochs_to_target", title="epochs to the target", unit="epochs",
                read=field("target", "epoch")),
    ):  # fmt: skip
        known[metric.name] = metric
    if reference.metric not in known:
        raise BadInput(
            f"ref:{reference.id}: is a {reference.metric}, which no single run has; compare runs "
            "of both sizes instead"
        )
    return known[reference.metric]


def _differences(run: Measured, reference: Reference) -> Iterable[Difference]:
    result = run.result
    settings = {key: result.get(key) for key in ("global_batch", "epochs", "precision")} | {
        "gpus": result["world_size"] if result["device"] == "cuda" else 0,
        "gpu": (run.environment.get("device") or {}).get("name"),
    }
    for key, ours in settings.items():
        theirs = getattr(reference, key)
        # A full name (`NVIDIA H100 80GB HBM3`) contains the model (`H100`).
        same = set(theirs.split()) <= set(str(ours).split()) if key == "gpu" and theirs else False
        if theirs is not None and theirs != ours and not same:
            yield Difference("publication", key, ours, theirs)


def _unlike(run: Measured, reference: Reference, metric: Metric) -> Iterable[str]:
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
    if metric.per_seed and reference.protocol != (protocol := _protocol(run.config)):
        yield f"validated in another way: {protocol} | {reference.protocol}"
    if metric.name == "images_per_second":
        differing = {difference.key for difference in _differences(run, reference)}
        if hardware := sorted(differing & {"gpus", "gpu"}):
            yield f"measured on other hardware ({', '.join(hardware)})"


def _protocol(config: Config) -> str:
    """Return the validation protocol as references.yaml writes it."""
    px, resize_px = config.data.image_px, config.data.eval_resize_px
    if config.eval.views == "ten_crop":
        return f"10 crops of {px} px"
    return f"centre crop {px} px of {resize_px}" if resize_px else f"single view of {px} px"
