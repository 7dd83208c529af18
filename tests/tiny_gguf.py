"""Tiny but real GGUFs, one for each family of chat models: random weights, and the family's kind
of tokenizer, special tokens and chat template. llama.cpp loads one in a few hundredths of a second."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

WIDTH, FFN, HEADS, LAYERS, CONTEXT = 64, 128, 4, 2, 4096
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # tokenizer.ggml.token_type
WORDS = ["the", "and", "you", "ing", "er", "on", "re", "in", "at", "is", "to", "he"]

CHATML = """{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}"""

LLAMA3 = """{{- bos_token }}
{%- set loop_messages = messages %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\n' }}
{{- system_message + '<|eot_id|>' }}
{%- for message in loop_messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}"""

# The tokens [INST] and [/INST] of version 3; the system message goes into the last question.
MISTRAL = """{%- if messages[0].role == 'system' %}
    {%- set system_message = messages[0].content %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, user and assistant must alternate') }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\n\n' + message.content + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message.content + '[/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message.content + eos_token }}
    {%- endif %}
{%- endfor %}"""

# Here [INST] and [/INST] are spelled in plain text.
MISTRAL_V1 = """{{ bos_token }}{% for message in messages %}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif %}
{%- if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}{{ message['content'] + eos_token }}{% endif %}
{%- endfor %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

PHI3 = """{%- for message in messages %}
    {{- '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\n' }}
{%- else %}
    {{- eos_token }}
{%- endif %}"""

PHI4 = """{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant<|im_sep|>' }}
{%- endif %}"""


@dataclass(frozen=True)
class Family:
    """How a family's files are made. `pre` names the splitter of a BPE tokenizer ("" for an SPM
    one), `controls` are its control tokens, `end` what ends a turn."""

    name: str
    template: str
    pre: str
    controls: tuple[str, ...]
    bos: str
    eos: str
    end: str
    add_bos: bool = True
    system: bool = True


FAMILIES = {
    "chatml": Family(
        "Tiny Qwen2.5", CHATML, "qwen2", ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        bos="<|endoftext|>", eos="<|im_end|>", end="<|im_end|>", add_bos=False,
    ),
    "llama3": Family(
        "Tiny Llama 3", LLAMA3, "llama-bpe",
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>", eos="<|end_of_text|>", end="<|eot_id|>",
    ),
    "mistral": Family(
        "Tiny Mistral v0.3", MISTRAL, "", ("<s>", "</s>", "[INST]", "[/INST]"),
        bos="<s>", eos="</s>", end="</s>",
    ),
    "mistral-v1": Family(
        "Tiny Mistral v0.1", MISTRAL_V1, "", ("<s>", "</s>"),
        bos="<s>", eos="</s>", end="</s>", system=False,
    ),
    "gemma": Family(
        "Tiny Gemma", GEMMA, "", ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>", eos="<eos>", end="<end_of_turn>", system=False,
    ),
    # By this name llama.cpp knows that Phi-3's special tokens swallow the blanks after them.
    "phi3": Family(
        "Tiny Phi-3", PHI3, "",
        ("<s>", "</s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        bos="<s>", eos="<|endoftext|>", end="<|end|>", add_bos=False,
    ),
    "phi4": Family(
        "Tiny Phi-4", PHI4, "dbrx", ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        bos="<|endoftext|>", eos="<|im_end|>", end="<|im_end|>", add_bos=False,
    ),
}  # fmt: skip


def write_tiny(path: Path, family: str, arch: str = "llama", seed: int = 0) -> Path:
    """A random float32 model of this family at `path`, the same for the same arguments."""
    import gguf

    made = FAMILIES[family]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(made.name)
    writer.add_block_count(LAYERS)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    tokens = _add_bpe(writer, made) if made.pre else _add_spm(writer, made)
    writer.add_vocab_size(len(tokens))
    writer.add_bos_token_id(tokens.index(made.bos))
    writer.add_eos_token_id(tokens.index(made.eos))
    writer.add_eot_token_id(tokens.index(made.end))
    writer.add_add_bos_token(made.add_bos)
    writer.add_chat_template(made.template)
    _add_weights(writer, len(tokens), seed)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_bpe(writer, made: Family) -> list[str]:
    """The 256 bytes in GPT-2's printable spelling, and what merges make of them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    tokens = [chr(b) if b in printable else chr(next(spare)) for b in range(256)]
    merges = []
    for word in [*WORDS, *("\u0120" + w for w in WORDS)]:
        for end in range(2, len(word) + 1):
            merge = f"{word[: end - 1]} {word[end - 1]}"
            if merge not in merges:
                merges.append(merge)
                tokens.append(word[:end])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(made.pre)
    writer.add_token_merges(merges)
    writer.add_token_types([NORMAL] * len(tokens) + [CONTROL] * len(made.controls))
    tokens += made.controls
    writer.add_token_list(tokens)
    return tokens


def _add_spm(writer, made: Family) -> list[str]:
    """Special tokens, bytes to fall back on, and pieces with scores, as SentencePiece has them."""
    letters = [chr(c) for c in range(33, 127)]
    pieces = ["\u2581", *letters, *("\u2581" + x for x in letters), *WORDS, *("\u2581" + w for w in WORDS)]
    pieces += [w[:2] for w in WORDS if len(w) > 2 and w[:2] not in WORDS]
    tokens = ["<unk>", *made.controls, *(f"<0x{b:02X}>" for b in range(256)), *pieces]
    types = [UNKNOWN] + [CONTROL] * len(made.controls) + [BYTE] * 256 + [NORMAL] * len(pieces)
    # Longer pieces are found by merging shorter ones, the best score first.
    scores = [0.0] * (len(tokens) - len(pieces)) + [float(-i) for i in range(len(pieces))]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix("Gemma" not in made.name)
    return tokens


def _add_weights(writer, n_vocab: int, seed: int) -> None:
    import numpy as np

    rng = np.random.default_rng(seed)
    kv = WIDTH // 2
    shapes = {
        "attn_q": (WIDTH, WIDTH), "attn_k": (kv, WIDTH), "attn_v": (kv, WIDTH), "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (FFN, WIDTH), "ffn_up": (FFN, WIDTH), "ffn_down": (WIDTH, FFN),
    }  # fmt: skip
    for name in ("token_embd.weight", "output.weight"):
        writer.add_tensor(name, rng.normal(0, 0.3, (n_vocab, WIDTH)).astype(np.float32))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(WIDTH, np.float32))
        for name, shape in shapes.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", rng.normal(0, 0.15, shape).astype(np.float32))


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="tiny-gguf-")  # gone when Python ends


@cache
def tiny(family: str) -> Path:
    """The family's GGUF, written once in this process."""
    return write_tiny(Path(_folder().name) / f"{family}.gguf", family)
