"""Switches of the model version under load: what they cost events, and that nothing is lost, doubled or mixed by them.

python -m tests.benchmarks.bench_switching [--switches 100] [--rate 300] [--pause 1] [--json FILE] [--broker embedded]
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import psutil
import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition

from models.domain.events import EventContract, Recommendation
from models.domain.state import unpack_body
from models.encoders.manifest import read_manifest
from streams.cli.common import resolve_bundle
from streams.demo.stand import Samples, Stand
from streams.registry import Registry
from streams.releases import ReleaseLog
from streams.settings import Settings
from streams.stores.embedded import EmbeddedStores
from tests.benchmarks.contest import Bench, Contender, bench, machine
from tests.benchmarks.outside import FETCH_WAIT_MS, publish
from tests.services.versions import learned, told_by

# Three versions in turn, every item's vector another one in each: a switch back finds what was dropped before.
MARKS = (1, 2, 3)
# Seconds of events at the rate before and after the switches.
QUIET_SECONDS = 20.0
# Events published at once: a tenth of a second.
SLICES_A_SECOND = 10
POLL_SECONDS = 0.05
# A release that failed is tried again after half a minute.
SWITCH_SECONDS = 120.0
# A list that has not come by then is lost.
PATIENCE_SECONDS = 60.0


class Seen(NamedTuple):
    """One list as it came."""

    event_id: str
    sent: float
    arrived: float
    version: str
    whole: bool
    """All its scores are of the version that it names."""


class Memory(NamedTuple):
    """Resident bytes of a process."""

    anonymous: int
    files: int

    @classmethod
    def of(cls, process: psutil.Process) -> Memory:
        found = process.memory_info()
        return cls(found.rss - found.shared, found.shared)


class Lists:
    """Reads `recommendations` beside the publishing."""

    def __init__(self, stand: Stand, marks: dict[str, int]) -> None:
        self.seen: list[Seen] = []
        self._stand, self._marks, self._contract = stand, marks, EventContract()

    async def follow(self) -> None:
        consumer: AIOKafkaConsumer[Any, Any] = AIOKafkaConsumer(
            bootstrap_servers=self._stand.broker.bootstrap_servers,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=4 << 20,
        )
        await consumer.start()
        try:
            place = TopicPartition(self._stand.names.recommendations, 0)
            consumer.assign([place])
            consumer.seek(place, 0)
            while True:
                batches = await consumer.getmany(timeout_ms=200)
                now = time.time()
                for records in batches.values():
                    for record in records:
                        self._take(self._contract.decode_recommendation(record.value), now)
        finally:
            await consumer.stop()

    async def until_by(self, version: str) -> None:
        """Returns when the newest list is of that version; asking the worker would cost it milliseconds each time."""
        async with asyncio.timeout(SWITCH_SECONDS):
            while not self.seen or self.seen[-1].version != version:
                await asyncio.sleep(POLL_SECONDS)

    def _take(self, made: Recommendation, now: float) -> None:
        event_id = str(made.trigger_event_id)
        sent = int(event_id.rpartition("@")[2]) / 1_000
        mark = self._marks.get(made.model_version)
        told = told_by(made)
        whole = mark is None or not made.items or told == ({mark}, {mark})
        self.seen.append(Seen(event_id, sent, now, made.model_version, whole))


class Load:
    """Publishes events at a rate until it is stopped; knows whose events it sent."""

    def __init__(self, contender: Contender, rate: float) -> None:
        self._contender, self._rate = contender, rate
        self.sent: dict[str, str] = {}
        """Event id -> user."""

    async def run(self) -> None:
        one = self._contender
        size = max(1, int(self._rate / SLICES_A_SECOND))

        def make(position: int, now_ms: int) -> tuple[bytes, bytes]:
            key, value = one.make(position, now_ms)
            self.sent[msgspec.json.decode(value)["event_id"]] = key.decode()
            return key, value

        for _ in count():
            positions = range(one.position, one.position + size)
            one.position += size
            await publish(one.publisher, one.events, make, positions, self._rate)


@asynccontextmanager
async def running(*work: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        failed = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in failed:
            task.result()


def percentiles(seen: Sequence[Seen]) -> dict[str, float]:
    """Milliseconds from an event's Kafka timestamp to its list's arrival here."""
    if not seen:
        return {"lists": 0}
    p50, p99, largest = np.percentile([(one.arrived - one.sent) * 1e3 for one in seen], [50, 99, 100]).tolist()
    return {"lists": len(seen), "p50_ms": p50, "p99_ms": p99, "max_ms": largest}


def by_second(seen: Sequence[Seen], windows: Sequence[tuple[float, float]]) -> list[dict[str, float]]:
    """`percentiles` of the events sent in the first, second, ... second after a promotion, until the next one."""
    begins = np.array([began for began, _ in windows])
    turns: dict[int, list[Seen]] = {}
    for each in seen:
        number = int(np.searchsorted(begins, each.sent)) - 1
        if number >= 0:
            turns.setdefault(int(each.sent - begins[number]), []).append(each)
    return [percentiles(turns.get(second, [])) for second in range(max(turns, default=-1) + 1)]


async def measure(found: Bench, switches: int, rate: float, pause: float) -> dict[str, Any]:
    ids = [film.item_id for film in found.films.films]
    async with found.worker("worker") as one:
        stand = one.stand
        assert stand is not None
        parent = resolve_bundle(Settings()).absolute()
        folder = stand.run_dir / "made"
        bundles = [learned(folder / f"{mark}", parent, ids, seed=mark, mark=mark) for mark in MARKS]
        versions = [read_manifest(bundle).version for bundle in bundles]
        registry = Registry(str(stand.run_dir / "data" / "models"))
        for bundle in bundles:
            registry.publish(bundle)
        log = ReleaseLog(stand.connection, stand.names.models, found.publisher)
        before = folded_so_far(one)
        lists, load = Lists(stand, dict(zip(versions, MARKS, strict=True))), Load(one, rate)
        worker = psutil.Process(one.pid)
        memory: list[Memory] = []
        windows: list[tuple[float, float]] = []
        async with running(lists.follow()):
            async with running(load.run()):
                started = time.time()
                before_quiet = Memory.of(worker)
                await asyncio.sleep(QUIET_SECONDS)
                quiet_growth = Memory.of(worker).anonymous - before_quiet.anonymous
                quiet_end = time.time()
                for number in range(switches):
                    began = time.time()
                    manifest = read_manifest(bundles[number % len(bundles)])
                    await log.promote(manifest, by="operator", reason="a benchmark")
                    try:
                        await lists.until_by(manifest.version)
                    except TimeoutError:
                        print("\n".join(stand.log_path.read_text().splitlines()[-40:]))
                        raise
                    windows.append((began, time.time()))
                    memory.append(Memory.of(worker))
                    await asyncio.sleep(pause)
                switched = time.time()
                await asyncio.sleep(QUIET_SECONDS)
                end = time.time()
            deadline = time.monotonic() + PATIENCE_SECONDS
            while load.sent.keys() - {one.event_id for one in lists.seen} and time.monotonic() < deadline:
                await asyncio.sleep(POLL_SECONDS)
        samples = await stand.samples()
        stand.stop_worker()
        states = await folded(stand, parent)
    mine = [each for each in lists.seen if each.event_id in load.sent]
    inside = [each for each in mine if any(a <= each.sent <= b for a, b in windows)]
    between = [e for e in mine if quiet_end < e.sent < switched and not any(a <= e.sent <= b for a, b in windows)]
    quiet = [each for each in mine if started + 2 <= each.sent <= quiet_end or switched + 2 <= each.sent <= end]
    counts = Counter(each.event_id for each in mine)
    expected = before + Counter(load.sent.values())
    return {
        "swaps": int(samples.total("streamrec_model_switches_total", outcome="switched")),
        "refused_or_failed": int(
            samples.total("streamrec_model_switches_total", outcome="refused")
            + samples.total("streamrec_model_switches_total", outcome="failed")
        ),
        "rate": rate,
        "events": len(load.sent),
        "quiet": percentiles(quiet),
        "switching": percentiles(inside),
        "between_switches": percentiles(between),
        "by_second": by_second([each for each in mine if quiet_end < each.sent < switched], windows),
        "swap_p99_ratio": percentiles(inside)["p99_ms"] / percentiles(quiet)["p99_ms"],
        "lost": len(load.sent.keys() - counts.keys()),
        "published_twice": sum(n > 1 for n in counts.values()),
        "double_folded": sum(max(0, states[user] - n) for user, n in expected.items()),
        "not_folded": sum(max(0, n - states[user]) for user, n in expected.items()),
        "mixed_lists": sum(not each.whole for each in mine),
        "lists_by_version": dict(Counter(each.version for each in mine)),
        "pause_ms_mean": 1e3 * mean(samples, "pause"),
        "prepare_seconds_mean": mean(samples, "prepare"),
        "refolded": int(samples.total("streamrec_refolded_states_total")),
        "rss_bytes": [each.anonymous + each.files for each in memory],
        "anonymous_bytes": [each.anonymous for each in memory],
        "rss_growth_bytes": growth([each.anonymous + each.files for each in memory]),
        # What the process holds for itself; the rest of its resident memory are pages of the embedded store's files,
        # which the system takes back when it needs them.
        "anonymous_growth_bytes": growth([each.anonymous for each in memory]),
        "file_growth_bytes": growth([each.files for each in memory]),
        "anonymous_growth_bytes_quiet": quiet_growth,
    }


def growth(bytes_after: Sequence[int]) -> int:
    """From the switches after the first turn through the versions, when what is made once has been made, to the last;
    both the median of five."""
    settled = bytes_after[len(MARKS) :]
    return int(np.median(settled[-5:]) - np.median(settled[:5])) if settled else 0


def mean(samples: Samples, phase: str) -> float:
    name = "streamrec_model_switch_seconds"
    return samples.total(f"{name}_sum", phase=phase) / max(1.0, samples.total(f"{name}_count", phase=phase))


def folded_so_far(one: Contender) -> Counter[str]:
    """User -> events published before this measurement, all of them folded."""
    return Counter(one.make(position, 0)[0].decode() for position in range(one.position))


async def folded(stand: Stand, bundle: Path) -> Counter[str]:
    """User -> events in the stored state, once the worker has let go of the store."""
    sizes = read_manifest(bundle).dimensions
    stores = EmbeddedStores(stand.run_dir / "data")
    try:
        users = await stores.users(state_size=sizes.state, dimension=sizes.item)
        bodies = [unpack_body(record.body) async for record in users.scan()]
        return Counter({body.user_id: body.events for body in bodies})
    finally:
        await stores.close()


async def run(switches: int, rate: float, pause: float, broker: str) -> dict[str, Any]:
    about = {**machine(), "broker": broker}
    async with bench(broker) as found:
        return {**about, **await measure(found, switches, rate, pause)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--switches", type=int, default=100)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--pause", type=float, default=1.0)
    parser.add_argument("--json", default="")
    # The embedded one stopped answering after 45 to 64 switches: each opens two consumers anew.
    parser.add_argument("--broker", choices=("embedded", "kafka"), default="kafka")
    args = parser.parse_args()
    result = uvloop.run(run(args.switches, args.rate, args.pause, args.broker))
    shown = {**result, **{name: result[name][-1] for name in ("rss_bytes", "anonymous_bytes")}}
    print(msgspec.json.format(msgspec.json.encode(shown)).decode())
    if args.json:
        Path(args.json).write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")


if __name__ == "__main__":
    main()
