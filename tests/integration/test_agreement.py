"""The worker's own quality counters and the offline replay mean the same: one pipeline, two ways to feed it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.services.deployment import Deployment, deployment, until_consumed
from tests.services.kafka import KafkaBroker
from tests.services.streams import make_events, make_items
from tests.services.worker import ROOT, WorkerProcess, until

# The two differ only where a wall clock or the cut into batches could come in; neither may.
TOLERANCE = 0.002
# The last part of a stream is what `backtest` scores.
SCORED_SHARE = 0.2

pytestmark = pytest.mark.integration


def counters(worker: WorkerProcess, shown: str) -> tuple[float, float, float]:
    """Scored events, hits and the sum of nDCG of one kind of list so far."""
    names = ("scored_events_total", "hits_total", "ndcg_sum_total")
    scored, hits, ndcg = (worker.metric(f"streamrec_online_{name}", list=shown) for name in names)
    return scored, hits, ndcg


async def online(deployed: Deployment, events: Sequence[Mapping[str, Any]], items: int) -> dict[str, float]:
    """Quality over the last part of the events, as a worker that plays them all counts it."""
    worker = await deployed.started()
    await until(
        lambda: worker.metric("streamrec_items_total", outcome="encoded") >= items, "the items are encoded", seconds=180
    )
    await until_consumed([worker], deployed)
    head = len(events) - int(SCORED_SHARE * len(events))
    await deployed.send_events(events[:head])
    await until_consumed([worker], deployed)
    before = {shown: counters(worker, shown) for shown in ("asked", "last_published")}
    await deployed.send_events(events[head:])
    await until_consumed([worker], deployed)
    out: dict[str, float] = {}
    for shown, start in before.items():
        scored, hits, ndcg = (after - earlier for after, earlier in zip(counters(worker, shown), start, strict=True))
        prefix = "" if shown == "asked" else "last_published_"
        out |= {f"{prefix}hr_at_10": hits / scored, f"{prefix}ndcg_at_10": ndcg / scored, f"{prefix}scored": scored}
    worker.stop()
    return out


def offline(folder: Path, bundle: Path, events: Sequence[Mapping[str, Any]], items: Sequence[Any]) -> dict[str, Any]:
    """What `streamrec backtest` says of the same events."""
    for name, lines in (("events.jsonl", events), ("items.jsonl", items)):
        (folder / name).write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    command = ["backtest", "events.jsonl", "--items", "items.jsonl", "--bundle", str(bundle), "--json", "out.json"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("STREAMREC_")}
    done = subprocess.run(
        [sys.executable, "-m", "streams.cli.main", *command],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = msgspec.json.decode((folder / "out.json").read_bytes())
    return figures


async def test_a_worker_with_one_partition_agrees_with_the_backtest(
    kafka: KafkaBroker, topic_prefix: str, tmp_path: Path, worker_bundle: Path
) -> None:
    # Without repeats of a stamp: the offline replay sorts by time.
    events, items = make_events(5_000, users=120, items=200), make_items(200)
    async with deployment(kafka, topic_prefix, tmp_path, worker_bundle, partitions=1) as deployed:
        await deployed.send(deployed.names.items, [(item["item_id"], item) for item in items])
        live = await online(deployed, events, len(items))
    replayed = offline(tmp_path, worker_bundle, events, items)
    for name, value in live.items():
        print(f"{name}: worker {value:.4f}, backtest {replayed.get(name)}")
    for name in ("hr_at_10", "ndcg_at_10", "last_published_hr_at_10", "last_published_ndcg_at_10"):
        assert live[name] == pytest.approx(replayed[name], abs=TOLERANCE), name
