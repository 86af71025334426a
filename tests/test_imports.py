"""What loads what: serving without torch, help without encoders, imports without effects. Each in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from streams.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("models", "streams")
    for path in ROOT.joinpath(package).rglob("*.py")
    if path.name not in ("__init__.py", "learning.py") and "learning" not in path.parts
)


def run(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STREAMREC_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**clean, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def loaded_by(code: str, cwd: Path) -> set[str]:
    ended = run(f"{code}\nimport sys, json; print(json.dumps(sorted(sys.modules)))", cwd)
    assert ended.returncode == 0, ended.stderr
    return {name.partition(".")[0] for name in json.loads(ended.stdout.splitlines()[-1])}


def test_a_worker_loads_no_torch(tmp_path: Path) -> None:
    loaded = loaded_by("import streams.app, streams.container, streams.cli.worker", tmp_path)
    assert not loaded & {"torch", "transformers", "safetensors", "onnx", "onnxscript"}


def test_the_domain_loads_no_service_and_no_onnx(tmp_path: Path) -> None:
    domain = [name for name in MODULES if name.startswith("models.domain.")]
    loaded = loaded_by("import " + ", ".join(domain), tmp_path)
    assert not loaded & {"aiokafka", "faust", "pydantic", "qdrant_client", "qdrant_edge", "onnxruntime", "tokenizers"}


def test_the_help_loads_no_encoder_and_no_client(tmp_path: Path) -> None:
    loaded = loaded_by("from streams.cli.main import main; assert main(['--help']) == 0", tmp_path)
    assert not loaded & {"torch", "numba", "numpy", "onnxruntime", "faust", "aiokafka", "qdrant_client", "qdrant_edge"}


def test_importing_everything_reads_no_settings_and_makes_no_files(tmp_path: Path) -> None:
    # Any attempt to read the settings would fail on this value.
    ended = run("import " + ", ".join(MODULES), tmp_path, STREAMREC_METRICS_PORT="no port")
    assert ended.returncode == 0, ended.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, tmp_path: Path) -> None:
    ended = run(f"import sys; from streams.cli.main import main; sys.exit(main([{name!r}, '--help']))", tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert f"streamrec {name}" in ended.stdout


def test_the_workers_help_is_enough_to_reach_somebodys_cluster(tmp_path: Path) -> None:
    ended = run("import sys; from streams.cli.main import main; sys.exit(main(['worker', '--help']))", tmp_path)
    words = ended.stdout.split()
    for flag in ("--kafka-bootstrap-servers", "--kafka-sasl-password", "--qdrant-url", "--topic-prefix", "--bundle"):
        assert flag in words
        assert any("STREAMREC_" + flag[2:].upper().replace("-", "_") in word for word in words)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["schema", "--message", "nothing"], "there is no message 'nothing'"),
        (["settings", "--metrics-port", "x"], "`metrics_port`"),
    ],
)
def test_a_refusal_is_one_clear_line_and_exit_code_two(arguments: list[str], expected: str, tmp_path: Path) -> None:
    code = f"import sys; from streams.cli.main import main; sys.exit(main({arguments!r}))"
    ended = run(code, tmp_path)
    assert ended.returncode == 2
    assert expected in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert "Traceback" in run(code.replace("main([", "main(['--debug', "), tmp_path).stderr


def test_flags_reach_the_settings_above_the_environment(tmp_path: Path) -> None:
    arguments = ["settings", "--chunk-size", "5", "--no-qdrant-prefer-grpc", "--interaction-strengths", "tip=2"]
    code = f"import sys; from streams.cli.main import main; sys.exit(main({arguments!r}))"
    ended = run(code, tmp_path, STREAMREC_CHUNK_SIZE="6", STREAMREC_LIST_LENGTH="7", STREAMREC_LIST_LENGHT="8")
    shown = json.loads(ended.stdout)
    assert (shown["chunk_size"], shown["list_length"], shown["qdrant_prefer_grpc"]) == (5, 7, False)
    assert shown["interaction_strengths"] == {"tip": 2.0}
    assert "did you mean STREAMREC_LIST_LENGTH?" in ended.stderr
