"""From an event's Kafka timestamp to its list's arrival at an outside consumer, at 1,000 events/s (with text: at 20).

python -m tests.benchmarks.bench_latency [--seconds 15] [--rate 1000] [--text-rate 20] [--json FILE] [--broker kafka]
"""

from __future__ import annotations

import argparse
from typing import Any

import uvloop

from tests.benchmarks.contest import CONTENDERS, bench, contender, machine, report


async def run(seconds: float, rate: float, text_rate: float, out: str, broker: str) -> None:
    about = {**machine(), "broker": broker}
    rows: list[dict[str, Any]] = []
    async with bench(broker) as found:
        for title, kind in CONTENDERS:
            async with contender(found, title, kind) as one:
                wanted = text_rate if kind == "text" else rate
                rows.append(await one.measure(int(seconds * wanted), wanted))
    for row in rows:
        row["p99_ratio_to_aiokafka"] = row["p99_ms"] / rows[0]["p99_ms"]
    columns = {
        "events/s": "events_per_second",
        "p50 ms": "p50_ms",
        "p99 ms": "p99_ms",
        "max ms": "max_ms",
        "p99 / aiokafka": "p99_ratio_to_aiokafka",
        "CPU us/event": "cpu_microseconds_per_event",
    }
    report(rows, columns, out, about)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rate", type=float, default=1_000.0)
    parser.add_argument("--text-rate", type=float, default=20.0)
    parser.add_argument("--json", default="")
    parser.add_argument("--broker", choices=("embedded", "kafka"), default="embedded")
    args = parser.parse_args()
    uvloop.run(run(args.seconds, args.rate, args.text_rate, args.json, args.broker))


if __name__ == "__main__":
    main()
