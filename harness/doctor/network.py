"""Network: can ranks reach each other and W&B, how fast, and do their clocks agree?"""

from __future__ import annotations

import socket
import ssl
import time
import urllib.request
from collections.abc import Mapping, Sequence
from functools import partial
from urllib.parse import urlsplit

from harness.doctor import limits
from harness.doctor.check import Asked, Check, Facts, green, not_checked, red, yellow
from harness.logging.wandb_run import choose_mode, has_key, server
from harness.monitor import probes
from harness.system.deadline import NoAnswer, within


def look(asked: Asked) -> Facts:
    """What needs no process group: names, rank 0's port, the way to W&B."""
    return {"rank_0": _rank_0(asked), "wandb": _wandb(asked) if asked.world.is_main else None}


def look_together(asked: Asked) -> Facts:
    """What all ranks measure with each other; a collective call."""
    return {"clock_offset_s": probes.clock_offsets(asked.world)[asked.world.rank]}


def all_reduce(asked: Asked, buckets: Sequence[int]) -> Facts:
    """How long the gradients' all-reduce takes, bucket by bucket; a collective call.

    Args:
        buckets: sizes in bytes, the same on all ranks.
    """
    limit_s = limits.ALL_REDUCE_S
    took_s = {
        size: probes.all_reduce_s(asked.world, size, limit_s=limit_s) for size in set_of(buckets)
    }
    largest = max(took_s)
    speed = probes.bus_bandwidth(largest, took_s[largest], asked.world.size)
    return {
        "all_reduce_ms": sum(1e3 * took_s[size] for size in buckets),
        "all_reduce_gb_per_s": speed / 1e9,
        "all_reduce_latency_us": 1e6 * probes.all_reduce_s(asked.world, 4, limit_s=limit_s),
        "buckets": list(buckets),
        "bucket_ms": [1e3 * took_s[size] for size in buckets],
    }


def judge(ranks: Sequence[Facts], asked: Asked) -> list[Check]:
    """The checks of one node, from the facts of its ranks; the first is local rank 0."""
    worst = max((facts["rank_0"] for facts in ranks), key=lambda each: "error" in each)
    if "error" in worst:
        do = "MASTER_ADDR must be a name that all nodes resolve, its port free and not firewalled"
        return [red("rank 0's address", worst["error"], do)]
    if "skipped" in worst:
        return [not_checked("rank 0's address", worst["skipped"])]
    return [green("rank 0's address", worst["value"])]


def judge_all(ranks: Sequence[Facts], asked: Asked) -> list[Check]:
    """The checks that concern all ranks together."""
    return [_judge_all_reduce(ranks, asked), _judge_clocks(ranks), _judge_wandb(ranks[0])]


def set_of(sizes: Sequence[int]) -> list[int]:
    """Each size once, in order: every rank must measure the same, one after another."""
    return sorted(set(sizes))


def _rank_0(asked: Asked) -> Facts:
    """Whether rank 0's host has an address here, and its port answers."""
    environ = asked.environ
    name, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT", "")
    if not name:
        return {"skipped": "a single process"}
    try:
        address = within(limits.NAME_S, partial(_resolve, name))
    except NoAnswer as error:
        return {"error": f"{name}: {error} from the name service"}
    except OSError as error:
        return {"error": f"{name}: does not resolve ({error.strerror})"}
    if "RANK" not in environ or not port.isdigit():
        return {"value": f"{name} is {address}; its port is open once the job runs"}
    if asked.world.is_main and "TORCHELASTIC_RUN_ID" not in environ:
        return {"value": f"{name} is {address}, this process"}  # it opens the port itself
    until, why = time.monotonic() + limits.PORT_S, "no answer"
    while time.monotonic() < until:
        try:
            began = time.perf_counter()
            socket.create_connection((address, int(port)), timeout=limits.CONNECT_S).close()
            took_ms = 1e3 * (time.perf_counter() - began)
            return {"value": f"{name} is {address}, port {port} answers in {took_ms:.1f} ms"}
        except OSError as refused:
            why = refused.strerror or str(refused)
            time.sleep(0.2)  # rank 0 may not have come so far
    return {"error": f"{name} ({address}) port {port}: {why}, for {limits.PORT_S:.0f} s"}


def _resolve(name: str) -> str:
    return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])


def _wandb(asked: Asked) -> Facts:
    """Whether there is a key, and a server that answers; the key is neither read nor sent."""
    environ = asked.environ
    wanted = asked.config.log.wandb
    mode, why = choose_mode(wanted, environ)
    if mode != "online":
        return {"mode": mode, "why": why}
    address = server(environ)
    facts: Facts = {"mode": mode, "server": address, "key": has_key(environ)}
    try:
        took_s = within(limits.NAME_S, partial(_connect, address, environ))
    except NoAnswer as error:
        return facts | {"error": str(error)}
    except OSError as error:
        return facts | {"error": error.strerror or str(error)}
    return facts | {"ms": 1e3 * took_s}


def _connect(address: str, environ: Mapping[str, str]) -> float:
    """Seconds until the server, or the proxy before it, has said hello."""
    url = urlsplit(address)
    secure = url.scheme == "https"
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and not urllib.request.proxy_bypass(url.hostname or ""):
        url, secure = urlsplit(proxy), False
    port = url.port or (443 if url.scheme == "https" else 80)
    began = time.perf_counter()
    with socket.create_connection((url.hostname, port), timeout=limits.CONNECT_S) as plain:
        if secure:
            ssl.create_default_context().wrap_socket(plain, server_hostname=url.hostname).close()
    return time.perf_counter() - began


def _judge_all_reduce(ranks: Sequence[Facts], asked: Asked) -> Check:
    facts, name = ranks[0], "all-reduce"
    if "all_reduce_ms" not in facts:
        return not_checked(name, "a single process; start several: torchrun -m harness doctor")
    sizes = [size / probes.MIB for size in facts["buckets"]]
    value = (
        f"{facts['all_reduce_ms']:,.1f} ms for the {len(sizes)} gradient buckets of "
        f"{asked.config.model.name} ({', '.join(f'{size:.3g}' for size in sizes)} MiB); "
        f"{facts['all_reduce_gb_per_s']:,.2f} GB/s, "
        f"{facts['all_reduce_latency_us']:,.0f} us latency"
    )
    bound = min(each["images_per_second_bound"] for each in ranks)
    hidden_ms = 1e3 * limits.BACKWARD_SHARE * asked.local_images / bound
    if facts["all_reduce_ms"] > hidden_ms:
        do = (
            f"a backward pass hides {hidden_ms:,.0f} ms of it at most: look with NCCL_DEBUG=INFO "
            "whether NVLink and InfiniBand are used; or raise train.global_batch"
        )
        return yellow(name, value, do)
    return green(name, value)


def _judge_clocks(ranks: Sequence[Facts]) -> Check:
    name = "clock skew"
    if len(ranks) == 1:
        return not_checked(name, "a single process")
    far = max(ranks, key=lambda facts: abs(facts["clock_offset_s"][0]))
    offset_s, sure_s = far["clock_offset_s"]
    value = (
        f"{1e3 * abs(offset_s):,.1f} ms at most, on rank {far['rank']} ({far['host']}), "
        f"measured to {1e3 * sure_s:,.1f} ms"
    )
    if abs(offset_s) - sure_s > limits.CLOCK_SKEW_S:
        return yellow(name, value, "start NTP there: times in logs of several hosts mislead")
    return green(name, value)


def _judge_wandb(facts: Facts) -> Check:
    name, found = "W&B", facts.get("wandb")
    if found is None:
        return not_checked(name, "rank 0 did not say")
    if found["mode"] == "off":
        return not_checked(name, "log.wandb is off")
    if found["mode"] == "offline":
        if found["why"] is None:
            return not_checked(name, "offline, as asked")
        return yellow(name, "no key: rows are mirrored offline", "wandb login, or --log.wandb off")
    if "error" in found:
        do = "rows are mirrored offline then; for no mirror give --log.wandb off"
        return yellow(name, f"{found['server']}: {found['error']}", do)
    if not found["key"]:
        return yellow(name, f"{found['server']} answers, but no key", "wandb login")
    return green(name, f"a key, and {found['server']} answers in {found['ms']:,.0f} ms")
