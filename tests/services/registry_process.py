"""A process that publishes or fetches a bundle, and is killed where it is asked to be.

    python -m tests.services.registry_process publish URL BUNDLE_DIR [--kill-at N | --kill-at-bytes N]
    python -m tests.services.registry_process fetch URL VERSION INTO [--training] [...]

`--kill-at N` kills it with SIGKILL right before its N-th change of the file system (file opened for writing, made
directory, rename, removal); `--kill-at-bytes N` lets the kernel kill it while it writes byte N of a file.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from streams.registry import Registry

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


def kill_at(number: int) -> None:
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = event == "open" and isinstance(arguments[2], int) and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if not (writes or event in CHANGES):
            return
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["publish", "fetch"])
    parser.add_argument("url")
    parser.add_argument("arguments", nargs="+")
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--kill-at", type=int, default=0)
    parser.add_argument("--kill-at-bytes", type=int, default=0)
    args = parser.parse_args()
    registry = Registry(args.url)
    sys.dont_write_bytecode = True
    if args.kill_at_bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (args.kill_at_bytes, args.kill_at_bytes))
    if args.kill_at:
        kill_at(args.kill_at)
    if args.what == "publish":
        registry.publish(Path(args.arguments[0]))
    else:
        registry.fetch(args.arguments[0], Path(args.arguments[1]), training=args.training)


if __name__ == "__main__":
    main()
