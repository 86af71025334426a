"""Largest throughput of one worker, beside pass-throughs of the same sizes on the same broker in the same run.

    python -m tests.benchmarks.bench_throughput [--events 20000] [--text-events 1000] [--json FILE] [--broker kafka]

Events are published as fast as the broker accepts them (much faster than anybody answers); the clock runs from the
first one's sending to the last list's arrival at an outside consumer.
"""

from __future__ import annotations

import argparse
from typing import Any

import uvloop

from tests.benchmarks.contest import CONTENDERS, bench, contender, machine, report


async def run(events: int, text_events: int, out: str, broker: str) -> None:
    about = {**machine(), "broker": broker}
    rows: list[dict[str, Any]] = []
    async with bench(broker) as found:
        for title, kind in CONTENDERS:
            async with contender(found, title, kind) as one:
                rows.append(await one.measure(text_events if kind == "text" else events, 0))
    for row in rows:
        row["ratio_to_aiokafka"] = row["events_per_second"] / rows[0]["events_per_second"]
        row["percent_of_aiokafka"] = 100 * row["ratio_to_aiokafka"]
    columns = {
        "events/s": "events_per_second",
        "% of aiokafka": "percent_of_aiokafka",
        "CPU us/event": "cpu_microseconds_per_event",
        "bytes/list": "bytes_per_list",
    }
    report(rows, columns, out, about)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--text-events", type=int, default=1_000)
    parser.add_argument("--json", default="")
    parser.add_argument("--broker", choices=("embedded", "kafka"), default="embedded")
    args = parser.parse_args()
    uvloop.run(run(args.events, args.text_events, args.json, args.broker))


if __name__ == "__main__":
    main()
