"""A compiled pass is dropped once a function that it calls has changed, and kept as long as nothing has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from models.compiled_passes import drop_stale

CALLER = """from numba import njit
from {package}.callee import answer


@njit(cache=True)
def ask():
    return answer()
"""
CALLEE = """from numba import njit


@njit(cache=True)
def answer():
    return {answer}
"""
ASK = "from {package}.caller import ask; print(ask(), sum(ask.stats.cache_hits.values()))"


def test_a_pass_follows_the_functions_that_it_calls(tmp_path: Path) -> None:
    package = tmp_path / "made"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from pathlib import Path\nfrom models.compiled_passes import drop_stale\ndrop_stale(Path(__file__).parent)\n"
    )
    (package / "caller.py").write_text(CALLER.format(package="made"))

    def ask() -> list[str]:
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
        call = [sys.executable, "-c", ASK.format(package="made")]
        return subprocess.run(call, env=environment, check=True, capture_output=True, text=True).stdout.split()

    (package / "callee.py").write_text(CALLEE.format(answer=1))
    assert ask() == ["1", "0"]
    assert ask() == ["1", "1"], "from the cache"
    (package / "callee.py").write_text(CALLEE.format(answer=22))
    assert ask() == ["22", "0"]


def test_nothing_is_dropped_while_no_file_changes(tmp_path: Path) -> None:
    below = tmp_path / "below"
    (below / "__pycache__").mkdir(parents=True)
    source, compiled = below / "one.py", below / "__pycache__" / "one.pass-1.nbi"
    source.write_text("1\n")
    compiled.write_bytes(b"")
    assert drop_stale(tmp_path)
    assert not compiled.exists(), "nobody knows what it was compiled from"
    compiled.write_bytes(b"")
    assert not drop_stale(tmp_path)
    assert compiled.exists()
    source.write_text("2 + 2\n")
    assert drop_stale(tmp_path)
    assert not compiled.exists()
