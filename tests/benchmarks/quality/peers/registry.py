"""Every peer by name, with the grid or the axes that it is tuned over on each stream."""

from __future__ import annotations

from pathlib import Path

from tests.benchmarks.quality.peers.base import GridPeer, Peer, combinations
from tests.benchmarks.quality.peers.fusion import Fusion, MemberRows
from tests.benchmarks.quality.peers.matrices import als, ease
from tests.benchmarks.quality.peers.pairs import covisitation, neighbours
from tests.benchmarks.quality.peers.popularity import grid, popularity
from tests.benchmarks.quality.peers.sequence import OnlineConfig
from tests.benchmarks.quality.peers.sequence_network import SequenceConfig
from tests.benchmarks.quality.peers.sequence_search import SequencePeer

# How to learn online: the first is also what trials are compared with where a frozen network means nothing.
ONLINE = (
    OnlineConfig(),
    OnlineConfig(rate=5e-4, average=0.98),
    OnlineConfig(every=250, rate=5e-4, average=0.99),
)
# Popularity at fixed half-lives, for the widest fusion: what the streams differ in most.
WIDE = [("events", each, False) for each in (10, 30, 100, 1_000)]
WIDE += [("hours", each, False) for each in (1, 6, 24, 168)]
WIDE += [("events", 20, True), ("hours", 3, True), ("hours", 24, True)]
COUNTED = ("covisitation", "popularity", "first-touch", "item-knn", "ease", "als")
# Peers whose rows of scores are kept on disk for the fusions.
KEPT = (*COUNTED, "sasrec", "gru4rec")


def peers(networks: Path | None, rows: MemberRows) -> dict[str, Peer]:
    """Args: networks: where fitted networks are kept; rows: rows of a tuned peer for a part, for the fusions."""
    wide = {_wide_name(*each): _fixed_popularity(*each) for each in WIDE}
    single: dict[str, Peer] = {
        "popularity": GridPeer(popularity, grid(first_only=False), "log2"),
        "first-touch": GridPeer(popularity, grid(first_only=True), "log2"),
        "covisitation": GridPeer(
            covisitation,
            [
                {"window": window, "pair_decay": pair_decay, **rest}
                for window, pair_decay in ((10, 0.8), (20, 0.9), (40, 0.95))
                for rest in combinations(exponent=(0.1, 0.25, 0.4, 0.5), decay=(0.98, 0.9, 0.8, 0.7))
            ],
            "share",
        ),
        "item-knn": GridPeer(
            neighbours,
            combinations(exponent=(0.2, 0.35, 0.5), shrink=(1.0, 5.0), decay=(0.95, 0.8, 0.7, 0.6)),
            "share",
        ),
        "ease": GridPeer(
            ease, combinations(regularisation=(100.0, 300.0, 1_000.0, 3_000.0), decay=(0.95, 0.85, 0.75)), "linear"
        ),
        "als": GridPeer(
            als,
            [
                {"factors": factors, "regularisation": regularisation, "alpha": alpha, "decay": decay}
                for factors, regularisation, alpha in ((16, 0.1, 2), (32, 0.1, 2), (64, 10, 5))
                for decay in (0.95, 0.85, 0.75)
            ],
            "linear",
        ),
        "sasrec": SequencePeer(
            SequenceConfig(),
            (
                ("dropout", (0.2, 0.1)),
                ("loss", ("gbce", "sampled")),
                ("rate", (4e-3,)),
                ("layers", (2,)),
                ("width", (128,)),
            ),
            ONLINE,
            cache=networks,
        ),
        "gru4rec": SequencePeer(
            SequenceConfig(body="gru"),
            (("width", (128, 256)), ("rate", (4e-3, 8e-3)), ("dropout", (0.5, 0.2))),
            ONLINE[:2],
            cache=networks,
        ),
        **wide,
    }
    forms = {name: peer.form for name, peer in single.items()}
    counted_sets = [
        ("covisitation", "item-knn", "popularity"),
        ("covisitation", "popularity", "ease", "item-knn"),
        COUNTED,
        (*COUNTED, *wide),
    ]
    sasrec_sets = [
        ("sasrec", "covisitation", "popularity"),
        ("sasrec", "item-knn", "popularity"),
        ("sasrec", "covisitation", "popularity", "ease", "item-knn"),
        ("sasrec", "gru4rec", *COUNTED),
        ("sasrec", *COUNTED, *wide),
    ]
    return {
        **single,
        "fusion-counted": Fusion(counted_sets, forms, rows),
        "fusion-sasrec": Fusion(sasrec_sets[:1], forms, rows),
        "fusion-best": Fusion(sasrec_sets, forms, rows),
    }


def _wide_name(unit: str, half_life: float, first_only: bool) -> str:
    return f"{'first-touch' if first_only else 'popularity'}-{half_life:g}-{unit}"


def _fixed_popularity(unit: str, half_life: float, first_only: bool) -> GridPeer:
    return GridPeer(popularity, [{"half_life": half_life, "unit": unit, "first_only": first_only}], "log2")
