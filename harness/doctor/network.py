"""Check that ranks reach each other and W&B, how fast, and that their clocks agree."""

import socket
import ssl
import time
import urllib.request
from collections.abc import Sequence
from urllib.parse import urlsplit

from harness.doctor import limits
from harness.doctor.check import Check, Facts, PlannedRun, measured
from harness.logging.wandb_run import choose_mode, has_key, server
from harness.monitor import probes


def collect(run: PlannedRun) -> Facts:
    """Return whether rank 0's address and W&B can be reached; needs no process group."""
    return {"rank_0": _rank_0(run), "wandb": _wandb(run) if run.world.is_main else None}


def all_reduce(run: PlannedRun, buckets: Sequence[int]) -> Facts:
    """Return how fast gradients are all-reduced in buckets of these bytes; a collective call."""
    limit_s = limits.ALL_REDUCE_S
    # In one order on all ranks: they must measure the same size at the same time.
    took_s = {
        size: probes.all_reduce_s(run.world, size, limit_s=limit_s) for size in sorted(set(buckets))
    }
    return {
        "all_reduce_ms": sum(1e3 * took_s[size] for size in buckets),
        "all_reduce_gb_per_s": probes.bus_bandwidth(*max(took_s.items()), run.world.size) / 1e9,
        "all_reduce_latency_us": 1e6 * probes.all_reduce_s(run.world, 4, limit_s=limit_s),
        "buckets": list(buckets),
    }


def judge(ranks: Sequence[Facts], run: PlannedRun) -> list[Check]:
    """Return the checks of one node from its ranks' facts, local rank 0 first."""
    worst = max((facts["rank_0"] for facts in ranks), key=lambda rank_0: "error" in rank_0)
    if "error" in worst:
        do = "MASTER_ADDR must be a name that all nodes resolve, its port free and not firewalled"
        if "MASTER_ADDR" not in run.environ:
            do = "add it to /etc/hosts, or give torchrun --local-addr 127.0.0.1, for doctor as well"
        return [Check("rank 0's address", "red", worst["error"], do)]
    if "skipped" in worst:
        return [Check("rank 0's address", "not checked", worst["skipped"])]
    return [Check("rank 0's address", "green", worst["value"])]


def judge_all(ranks: Sequence[Facts], run: PlannedRun) -> list[Check]:
    """Return the checks that concern all ranks together."""
    return [_judge_all_reduce(ranks, run), _judge_clocks(ranks), _judge_wandb(ranks[0])]


def _rank_0(run: PlannedRun) -> Facts:
    """Return whether rank 0's hostname resolves on this node and its port answers."""
    environ = run.environ
    given, port = environ.get("MASTER_ADDR"), environ.get("MASTER_PORT", "")
    name = given or socket.gethostname()  # plain torchrun waits for this one without an end
    lookup = measured(
        limits.LOOKUP_S,
        lambda: {"address": socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0]},
    )
    if "error" in lookup:
        whose = "" if given else "this host's name, "
        return {"error": f"{whose}{name}: does not resolve ({lookup['error']})"}
    if not given:
        return {"skipped": "a single process"}
    address = lookup["address"]
    if "RANK" not in environ or not port.isdigit():
        return {"value": f"{name} is {address}; its port is open once the job runs"}
    if run.world.is_main and "TORCHELASTIC_RUN_ID" not in environ:
        return {"value": f"{name} is {address}, this process"}  # it opens the port itself
    until, reason = time.monotonic() + limits.PORT_S, "no answer"
    while time.monotonic() < until:
        try:
            began = time.perf_counter()
            socket.create_connection((address, int(port)), timeout=limits.CONNECT_S).close()
            took_ms = 1e3 * (time.perf_counter() - began)
            return {"value": f"{name} is {address}, port {port} answers in {took_ms:.1f} ms"}
        except OSError as refused:
            reason = refused.strerror or str(refused)
            time.sleep(0.2)  # rank 0 may not have opened it yet
    return {"error": f"{name} ({address}) port {port}: {reason}, for {limits.PORT_S:.0f} s"}


def _wandb(run: PlannedRun) -> Facts:
    """Return whether a W&B key exists and the server answers; the key is neither read nor sent."""
    mode, reason = choose_mode(run.config.log.wandb, run.environ)
    if mode != "online":
        return {"mode": mode, "reason": reason}
    facts: Facts = {"mode": mode, "server": server(run.environ), "key": has_key(run.environ)}
    return facts | measured(limits.LOOKUP_S, lambda: _connect(facts["server"]))


def _connect(address: str) -> Facts:
    """Connect to the server, or to the proxy in front of it; return how long that took."""
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
    return {"ms": 1e3 * (time.perf_counter() - began)}


def _judge_all_reduce(ranks: Sequence[Facts], run: PlannedRun) -> Check:
    facts, name = ranks[0], "all-reduce"
    if "all_reduce_ms" not in facts:
        reason = "a single process; start several: torchrun -m harness doctor"
        return Check(name, "not checked", reason)
    sizes = [size / probes.MIB for size in facts["buckets"]]
    value = (
        f"{facts['all_reduce_ms']:,.1f} ms for the {len(sizes)} gradient buckets of "
        f"{run.config.model.name} ({', '.join(f'{size:.3g}' for size in sizes)} MiB); "
        f"{facts['all_reduce_gb_per_s']:,.2f} GB/s, "
        f"{facts['all_reduce_latency_us']:,.0f} us latency"
    )
    bound = min(rank_facts["images_per_second_bound"] for rank_facts in ranks)
    hidden_ms = 1e3 * limits.BACKWARD_SHARE * run.local_images / bound
    if facts["all_reduce_ms"] > hidden_ms:
        do = (
            f"a backward pass hides {hidden_ms:,.0f} ms of it at most: check with NCCL_DEBUG=INFO "
            "whether NVLink and InfiniBand are used; or raise train.global_batch"
        )
        return Check(name, "yellow", value, do)
    return Check(name, "green", value)


def _judge_clocks(ranks: Sequence[Facts]) -> Check:
    name = "clock skew"
    if len(ranks) == 1:
        return Check(name, "not checked", "a single process")
    furthest = max(ranks, key=lambda facts: abs(facts["clock_offset_s"][0]))
    offset_s, error_s = furthest["clock_offset_s"]
    value = (
        f"{1e3 * abs(offset_s):,.1f} ms at most, on rank {furthest['rank']} "
        f"({furthest['host']}), measured to {1e3 * error_s:,.1f} ms"
    )
    if abs(offset_s) - error_s > limits.CLOCK_SKEW_S:
        do = "start NTP there: times in logs of several hosts mislead"
        return Check(name, "yellow", value, do)
    return Check(name, "green", value)


def _judge_wandb(rank_0: Facts) -> Check:
    name, facts = "W&B", rank_0.get("wandb")
    if facts is None:
        return Check(name, "not checked", "rank 0 did not check it")
    if facts["mode"] == "off":
        return Check(name, "not checked", "log.wandb is off")
    if facts["mode"] == "offline" and "no key" not in (facts["reason"] or ""):
        return Check(name, "not checked", "offline, as configured")
    if facts["mode"] == "offline":
        value = "no key: rows are mirrored offline"
        return Check(name, "yellow", value, "wandb login, or --log.wandb off")
    if "error" in facts:
        do = "rows will be mirrored offline; for no mirror give --log.wandb off"
        return Check(name, "yellow", f"{facts['server']}: {facts['error']}", do)
    if not facts["key"]:
        return Check(name, "yellow", f"{facts['server']} answers, but no key", "wandb login")
    return Check(name, "green", f"a key, and {facts['server']} answers in {facts['ms']:,.0f} ms")
