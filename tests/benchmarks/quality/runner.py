"""One row of the table: choose on validation, refit on 80%, ask the test part once, score, write."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.benchmarks.quality.loaders import load
from tests.benchmarks.quality.peers.base import Peer
from tests.benchmarks.quality.peers.fusion import Fusion
from tests.benchmarks.quality.peers.registry import KEPT, peers
from tests.benchmarks.quality.peers.sequence_search import SequencePeer
from tests.benchmarks.quality.protocol import Part, rank, test
from tests.benchmarks.quality.results import Results, Run, in_blocks
from tests.benchmarks.quality.scorer import figures
from tests.benchmarks.quality.stream import F32, Stream


class PeerRunner:
    """Peers on one stream."""

    def __init__(self, stream_name: str, data: Path, results: Results) -> None:
        self.stream: Stream = load(stream_name, data)
        self.results = results

    def run(self, run: Run) -> dict[str, Any]:
        started = time.perf_counter()
        peer = self._peers(run)[run.system]
        choice = self.choice(run)
        part = test(self.stream, run.protocol)
        asked = time.perf_counter()
        answers = rank(part, self._rows(run, peer, part))
        done = time.perf_counter()
        found = {
            **figures(self.stream, answers, whole_catalogue=True),
            "config": choice["config"],
            "trials": len(choice["trials"]),
            "validation_ndcg_at_10": max(each["ndcg_at_10"] for each in choice["trials"]),
            "seconds": {"search": round(asked - started, 1), "refit_and_test": round(done - asked, 1)},
        }
        self.results.write(run, found, self.stream, answers)
        return found

    def choice(self, run: Run) -> dict[str, Any]:
        """{"config", "trials", "seed"}, searched once a stream and protocol with the seed of whoever comes first.

        A fusion's weights belong to its members' seed. Strict rows take over what was chosen under p1, and a network
        what was chosen under p2 before it learned online: the search is the same one.
        """
        peer = self._peers(run)[run.system]
        protocol = "p1" if run.protocol == "p1-strict" and not isinstance(peer, Fusion) else run.protocol
        name = f"{run.stream}-{run.system}-{protocol}" + (f"-s{run.seed}" if isinstance(peer, Fusion) else "")
        found = self.results.choice(name)
        if found is None and isinstance(peer, SequencePeer) and protocol == "p1":
            found = _without_online(self.results.choice(f"{run.stream}-{run.system}-p2"))
        if found is None:
            chosen = peer.choose(self.stream, protocol, run.seed)
            found = {"config": chosen.config, "trials": chosen.trials, "seed": run.seed}
            self.results.write_choice(name, found)
        return found

    def _rows(self, run: Run, peer: Peer, part: Part) -> Iterable[F32]:
        """Rows of a tuned peer; those that fusions need stay on disk, for validation as well."""
        if run.system not in KEPT:
            return peer.rows(part, self.choice(run)["config"], run.seed)
        kept = self.results.rows(run, part)
        if kept is None:
            kept = self.results.keep_rows(run, part, peer.rows(part, self.choice(run)["config"], run.seed))
        return in_blocks(kept)

    def _peers(self, run: Run) -> dict[str, Peer]:
        def rows(member: str, part: Part) -> Iterable[F32]:
            of_member = run._replace(system=member)
            return self._rows(of_member, self._peers(of_member)[member], part)

        return peers(self.results.folder / "networks", rows)


def _without_online(choice: dict[str, Any] | None) -> dict[str, Any] | None:
    if choice is None:
        return None
    config = {name: value for name, value in choice["config"].items() if name != "online"}
    trials = [each for each in choice["trials"] if "online" not in each["config"]]
    return {**choice, "config": config, "trials": trials}
