"""What lies beside the exported model: Modelfile, LM Studio's folders, how to use it, and its card."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from minicollab.gguf.files import value
from minicollab.gguf.origin import Base, Origin, described

LM_STUDIO = "lm-studio"
_EVALUATION = "## Compared with the base"
_NOT_YET = "Not evaluated yet: `minicollab eval` writes the comparison here."


def slug(origin: Origin, base: Base) -> str:
    """A name that every app takes: "smollm2-135m-quickstart"."""
    return re.sub(r"[^a-z0-9.]+", "-", f"{base.name} {origin.name}".lower()).strip("-.")


def modelfile(model: str, base: Any) -> str:
    """Ollama's Modelfile for the GGUF of that name beside it. Ollama takes the chat template from the
    GGUF; the stop tokens are those of `base`, its reader."""
    ids = [value(base, f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot")]
    tokens = base.get_field("tokenizer.ggml.tokens")
    stops = dict.fromkeys(tokens.contents(i) for i in ids if i is not None)
    return "\n".join([f"FROM ./{model}", *(f'PARAMETER stop "{stop}"' for stop in stops), ""])


def lm_studio(folder: Path, name: str, models: Sequence[Path]) -> None:
    """`folder`/minicollab/<name>/<name>-<quantization>.gguf: publisher, model and file, as LM Studio
    wants them. Hard links, so they take no room. OSError where there are none."""
    inside = folder / "minicollab" / name
    inside.mkdir(parents=True)
    for path in models:
        os.link(path, inside / path.name.replace("model", name, 1))


def howto(name: str, models: Sequence[str], adapter: str | None, base: str) -> str:
    """The exact commands, app by app; `base` is the base's file name."""
    parts = ["# How to use it", "Type the commands in this folder."]
    if models:
        model = models[0]
        if len(models) > 1:
            parts.append(f"`{model}` stands for any of {', '.join(f'`{m}`' for m in models)}.")
        parts += [
            _command("llama.cpp", f"llama-cli -m {model}", f"llama-server -m {model} --port 8080"),
            _command("Ollama", f"ollama create {name} -f Modelfile", f"ollama run {name}"),
            _command("LM Studio", f"lms import --hard-link --user-repo minicollab/{name} {model}"),
            "Without `--hard-link`, `lms import` moves the file away from here. Without `lms`: copy what is"
            f" in `{LM_STUDIO}/` (if it is here) into LM Studio's models folder, `~/.lmstudio/models`.",
            "## Jan\n\nSettings, Model Providers, Llama.cpp, Import: choose"
            f" `{model}` and leave it where it is.",
            _command("KoboldCpp", f"koboldcpp --model {model} --contextsize 4096"),
            "## llama-cpp-python\n\n```python\nfrom llama_cpp import Llama\n\n"
            f'llm = Llama("{model}", n_ctx=4096)\n'
            'asked = [{"role": "user", "content": "help me write a toast"}]\n'
            'print(llm.create_chat_completion(asked)["choices"][0]["message"]["content"])\n```',
        ]
    if adapter:
        parts += [
            f"## The adapter alone\n\n`{adapter}` goes with the base, `{base}`, whose strength it can then be"
            " given: 1 as trained, 0.5 half of that. Ollama, LM Studio and Jan want the merged model.",
            "```sh\n"
            f"llama-cli -m {base} --lora {adapter}\n"
            f"llama-cli -m {base} --lora-scaled {adapter}:0.5\n"
            f"koboldcpp --model {base} --lora {adapter} --loramult 0.5\n```",
        ]
    return "\n\n".join(parts) + "\n"


def _command(app: str, *lines: str) -> str:
    return f"## {app}\n\n```sh\n" + "\n".join(lines) + "\n```"


def card(origin: Origin, base: Base, check: Mapping[str, Any], files: Sequence[str]) -> str:
    """MODEL_CARD.md, with the front matter that Hugging Face reads. `check` is what `verify` found."""
    merged = bool(check["models"])
    front = {
        "base_model": base.repo_url.removeprefix("https://huggingface.co/") or base.name,
        "base_model_relation": "finetune" if merged else "adapter",
        "license": base.license,
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "minicollab", *(["collabllm", "dpo"] if origin.recipe else []), "lora"],
    }
    known = yaml.safe_dump({k: v for k, v in front.items() if v}, sort_keys=False, allow_unicode=True)
    made = [
        f"- Base: {base.name}" + (f", licence {base.license}" if base.license else ", licence not stated"),
        f"- Trained on: {origin.tasks}, {origin.pairs} preference pairs" if origin.recipe else "",
        f"- User simulator and judge: {origin.judge}" if origin.judge else "",
        f"- Adapter: LoRA, at {check['scale']:g} times its trained strength" if check["scale"] != 1 else "",
        f"- Recipe: sha256 {origin.recipe}" if origin.recipe else "",
    ]
    sections = [
        f"---\n{known}---",
        f"# {base.name} {origin.name}",
        f"{described(origin, base)}.",
        "## Files\n\n" + "\n".join(f"- `{name}`" for name in files if name.endswith(".gguf")),
        "`HOWTO.md` has the commands for each app.",
        "## How it was made\n\n" + "\n".join(line for line in made if line),
        f"Checked against torch on {check['prompts']} conversations:",
        _checked(check),
        "## Limits\n\nThe base's limits are this model's."
        + (
            " It was trained with a simulated user and a model as judge, whose preferences it has learned;"
            " people may have others. It has not been checked for safety."
            if origin.recipe
            else " How it was trained is not known here; only the conversion was checked."
        ),
    ]
    if origin.recipe:
        sections.append(f"{_EVALUATION}\n\n{_NOT_YET}")
    return "\n\n".join(sections) + "\n"


def _checked(check: Mapping[str, Any]) -> str:
    rows = [["adapter on the base", f"{check['kl_torch_adapter_on_base']:.2g}", ""]]
    rows += [[k, f"{m['kl']:.2g}", f"{m['perplexity']:.2f}"] for k, m in check["models"].items()]
    return _markdown(["", "KL to torch (nats)", "perplexity"], rows)


def evaluated(card: str, evaluation: Mapping[str, Any]) -> str:
    """The card with the three arms of eval.json in its last section."""
    arms, apart = evaluation["arms"], evaluation["differences"]
    heads = ["", *arms, *(name.replace("-", " - ") for name in apart)]
    rows = [
        [
            metric.replace("_", " "),
            *(f"{row[metric]:.3f}" for row in arms.values()),
            *("{mean:+.3f} [{low:+.3f}, {high:+.3f}]".format(**row[metric]) for row in apart.values()),
        ]
        for metric in arms["base"]
    ]
    kept = card.partition(_EVALUATION)[0]
    told = "Differences with their 95% intervals."
    return f"{kept}{_EVALUATION}\n\n{evaluation['verdict']} {told}\n\n{_markdown(heads, rows)}\n"


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
