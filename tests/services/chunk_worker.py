"""A worker process for the tests of the chunk consumer: writes down what it was handed, before it acknowledges.

    python -m tests.services.chunk_worker --servers H:P --group G --topics a,b --out FILE

Each record becomes a line `topic partition offset value` of FILE, in one write a chunk. SIGTERM stops it cleanly
(status 0); a crash of the app gives status 3.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time

from faust.types import TP

from streams.kafka.chunks import Chunk
from streams.kafka.faust_app import WorkerCrashedError, add_chunk_agent, build_app, run


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--servers", required=True)
    parser.add_argument("--group", required=True)
    parser.add_argument("--topics", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--chunk-size", type=int, default=50)
    parser.add_argument("--session-seconds", type=float, default=3.0)
    parser.add_argument("--commit-seconds", type=float, default=0.5)
    parser.add_argument("--chunk-seconds", type=float, default=0.0, help="how long the work on a chunk takes")
    parser.add_argument("--raise-on", default="", help="raise at the chunk that holds this value")
    parser.add_argument("--uvloop", action="store_true")
    return parser.parse_args()


async def serve(args: argparse.Namespace) -> None:
    out = os.open(args.out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    def say(what: str, **more: object) -> None:
        print(json.dumps({"what": what, "at": time.time(), **more}), flush=True)

    async def handler(chunk: Chunk) -> None:
        values = [record.value.decode() for record in chunk.records]
        if args.raise_on and args.raise_on in values:
            raise ValueError(f"asked to raise at {args.raise_on}")
        if args.chunk_seconds:
            await asyncio.sleep(args.chunk_seconds)
        lines = [
            f"{chunk.topic} {chunk.partition} {record.offset} {value}\n"
            for record, value in zip(chunk.records, values, strict=True)
        ]
        os.write(out, "".join(lines).encode())

    async def on_assigned(partitions: set[TP]) -> None:
        say("assigned", partitions=sorted(partitions))

    async def on_revoked(partitions: set[TP]) -> None:
        say("revoked", partitions=sorted(partitions))

    app = build_app(
        connection={"bootstrap_servers": args.servers},
        group=args.group,
        chunk_size=args.chunk_size,
        session_timeout_seconds=args.session_seconds,
        heartbeat_interval_seconds=min(1.0, args.session_seconds / 3),
        commit_interval_seconds=args.commit_seconds,
        on_assigned=on_assigned,
        on_revoked=on_revoked,
        on_failure=lambda error: say("failure", error=str(error)),
    )
    add_chunk_agent(app, args.topics.split(","), handler)
    await run(app, stop)
    say("stopped")


def main() -> None:
    args = arguments()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    if args.uvloop:
        import uvloop

        runner = uvloop.run
    else:
        runner = asyncio.run
    try:
        runner(serve(args))
    except WorkerCrashedError as error:
        print(error, file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    main()
