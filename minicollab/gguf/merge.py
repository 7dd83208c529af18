"""Base GGUF + adapter GGUF → one F16 GGUF, and from that any quantization."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minicollab.engine.quiet import last_error, quiet
from minicollab.errors import StageError
from minicollab.files import aside
from minicollab.gguf.files import blocks, read_gguf, shape, value
from minicollab.progress import Progress, silent
from minicollab.quantization import check_kind

# Keys that describe the base or its file rather than the merged model; the writer sets the first itself.
_OF_THE_BASE = (
    *("GGUF.", "split.", "quantize."),
    *(f"general.{key}" for key in ("architecture", "file_type", "quantization_version", "alignment")),
    *(f"general.{key}." for key in ("base_model", "dataset", "source")),
    *(f"general.{key}" for key in ("uuid", "doi", "url", "repo_url", "author", "organization", "version")),
    "general.quantized_by",
)


def merge(
    base_gguf: Path,
    adapter_gguf: Path,
    out: Path,
    progress: Progress = silent,
    kind: str = "f16",
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write W + alpha / rank * B @ A for every tensor, computed in float32, as `kind`: f16 or f32.

    One-dimensional tensors (norms, biases) are float32, as llama.cpp wants them. Some rows of one
    tensor are in memory at a time. All metadata of the base is kept, the tokenizer and the chat
    template above all, and `metadata` (texts, whole numbers, lists of texts) added. Raises
    StageError if the adapter does not belong to the base.
    """
    import gguf
    import numpy as np

    base, adapter = read_gguf(base_gguf), read_gguf(adapter_gguf)
    deltas = _deltas(base, adapter, adapter_gguf)
    matrices = np.float16 if kind == "f16" else np.float32
    kinds = [np.dtype(np.float32 if len(t.shape) == 1 else matrices) for t in base.tensors]
    with aside(out) as partial:
        writer = gguf.GGUFWriter(partial, value(base, "general.architecture"))
        _copy_metadata(base, writer, base_gguf, kind, metadata or {})
        for tensor, dtype in zip(base.tensors, kinds, strict=True):
            size = int(tensor.n_elements) * dtype.itemsize
            writer.add_tensor_info(tensor.name, shape(tensor), dtype, size)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (file,) = writer.fout
        for done, (tensor, dtype) in enumerate(zip(base.tensors, kinds, strict=True)):
            progress("merge", done, len(kinds))
            writer.write_padding(file, file.tell())
            for rows in _merged(tensor, deltas.get(tensor.name), dtype):
                file.write(rows.data)  # numpy's tofile does not say that the disk is full
        writer.write_padding(file, file.tell())
        writer.close()
    progress("merge", len(kinds), len(kinds))
    return out


def _deltas(base: Any, adapter: Any, path: Path) -> dict[str, tuple[float, Any, Any]]:
    """Base tensor name → (scale, A, B); the arrays stay memory-mapped."""
    if value(adapter, "adapter.type") != "lora" or not adapter.tensors:
        raise StageError(f"{path} is not a LoRA adapter", "Run the export stage again.")
    alpha = value(adapter, "adapter.lora.alpha")
    halves = {t.name: t.data for t in adapter.tensors}
    names = {name.rpartition(".")[0] for name in halves}
    unknown = names - {t.name for t in base.tensors}
    if unknown or value(adapter, "general.architecture") != value(base, "general.architecture"):
        raise StageError(
            f"{path.name} was made for another base {sorted(unknown)[:1]}",
            "Use the GGUF that it was trained on.",
        )
    return {n: (alpha / len(a), a, halves[f"{n}.lora_b"]) for n in names for a in [halves[f"{n}.lora_a"]]}


def _merged(tensor: Any, delta: tuple[float, Any, Any] | None, dtype: Any) -> Iterator[Any]:
    import numpy as np

    for start, weight in blocks(tensor):
        if delta:
            scale, a, b = delta
            weight = weight + np.float32(scale) * (b[start : start + len(weight)] @ a)
        with np.errstate(over="ignore"):
            stored = weight.astype(dtype)
        if not np.isfinite(stored).all():
            raise StageError(
                f"{tensor.name} does not fit into {dtype.name} after merging",
                "Train again with a lower learning rate.",
            )
        yield stored


def _copy_metadata(base: Any, writer: Any, base_gguf: Path, kind: str, added: Mapping[str, Any]) -> None:
    import gguf
    import llama_cpp as lc

    name = value(base, "general.name", base_gguf.stem)
    ours = {
        "general.name": f"{name} minicollab",
        "general.finetune": "minicollab",
        "general.description": f"Trained with minicollab from {name}",
        **added,
    }
    for key, field in base.fields.items():
        # The writer has no empty arrays; one says as little as none.
        if key not in ours and not key.startswith(_OF_THE_BASE) and len(field.data):
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
    add = {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}
    for key, content in ours.items():
        add[type(content)](key, content)
    writer.add_file_type(lc.LLAMA_FTYPE_MOSTLY_F16 if kind == "f16" else lc.LLAMA_FTYPE_ALL_F32)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def quantize(src: Path, out: Path, kind: str, progress: Progress = silent) -> Path:
    """Quantize the F16 GGUF `src` to one of `quantization.KINDS`; "f16" copies. A failure leaves no file."""
    import ctypes

    import llama_cpp as lc

    kind = check_kind(kind)
    what = f"quantize to {kind}"
    progress(what, 0, 1)
    with aside(out) as partial:
        if kind == "f16":
            shutil.copyfile(src, partial)
        else:
            quiet()
            params = lc.llama_model_quantize_default_params()
            params.ftype = getattr(lc, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
            if lc.llama_model_quantize(str(src).encode(), str(partial).encode(), ctypes.byref(params)):
                raise StageError(
                    f"llama.cpp cannot quantize {src.name} to {kind}: {last_error()}",
                    "Check the free disk space, or set export.quantization to another kind.",
                )
    progress(what, 1, 1)
    return out
