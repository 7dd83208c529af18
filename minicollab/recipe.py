"""The recipe: one validated YAML that defines a run. An unknown key is an error (`loading`)."""

from __future__ import annotations

from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from minicollab.quantization import check_kinds

HUB = "hf:"  # what a name on the Hugging Face hub begins with
METRICS = (
    "accuracy", "accuracy_judged", "pass_rate", "bleu", "goal_coverage", "found", "follow_up_likelihood",
    "tokens_read", "tokens_typed", "turns",
)  # fmt: skip


# More of anything that is played, asked or computed is a slip of the finger.
Count = Annotated[int, Field(ge=1, le=100_000)]
CountOrNone = Annotated[int, Field(ge=0, le=100_000)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Models(Section):
    """`policy` is trained; `judge` plays the user and judges. Each is a built-in name
    (`smollm2-135m-instruct`, `qwen2.5-coder-1.5b-instruct`), a path to a GGUF, or
    `hf:owner/repo/file.gguf`. Without `judge`, the policy's GGUF does all three jobs.
    `http://host:port/v1#name` is a model on an OpenAI-compatible server. `adapter` is a LoRA
    GGUF on the policy in simulate and in eval's base and proactive arms; training and export start
    from the bare GGUF, and simulator and judge never have it."""

    policy: str
    judge: str | None = None
    adapter: str | None = None
    train_base: str | None = Field(
        None, description="Hugging Face name or folder to train on; default: the policy's GGUF, dequantized"
    )


class Tasks(Section):
    """`path`: a file (.jsonl, .csv or .parquet; .gz too) or `hf:owner/name`, a data set of the
    Hugging Face hub, of which `config` and `split` name a part. `slice`: rows, "100:200".
    `columns`: what a field of the family is called in the data. The first `train` tasks are
    trained on, the last `eval` held out."""

    family: Literal["details", "math", "code", "document", "in3", "twenty-questions", "abg-coqa"] = "details"
    path: str
    config: str | None = None
    split: str = "train"
    slice: str | None = Field(None, pattern=r"^\d{0,15}:\d{0,15}$")
    columns: dict[str, str] = {}
    train: CountOrNone = 36
    eval: Count = 12


class Generation(Section):
    """Sampling of one role. `max_tokens` counts tokens of that role's model."""

    max_tokens: Count = 96
    temperature: float = Field(0.8, ge=0)
    top_k: int = Field(0, ge=0, description="0: all tokens")
    top_p: float = Field(0.95, gt=0, le=1)
    min_p: float = Field(0.05, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0, description="1: none")


class Propose(Section):
    """How candidates are made: K of them, a share of which is asked to be proactive."""

    candidates: int = Field(4, ge=2, le=100_000)
    proactive_ratio: float = Field(0.5, ge=0, le=1)
    style: Literal["transcript", "system"] = "transcript"


class Simulate(Section):
    """`exchanges`: turn cap of a conversation; `futures`: S; `window`: w exchanges. A candidate
    with a future that fails is left out; a larger share of failures than `max_failures` stops the
    run, eval's as well. `allocation`: `fixed`, S futures for every candidate, as in the paper;
    `adaptive`, S // 2 and then, of K x S in all, more where best or worst is still in question."""

    exchanges: Count = 2
    futures: Count = 2
    allocation: Literal["fixed", "adaptive"] = "fixed"
    window: CountOrNone = 1
    max_failures: float = Field(0.2, ge=0, le=1)


class Simulator(Section):
    """`transcript`: continues a few-shot transcript. `chat`: follows an instruction, as in the
    paper. `yes-no`: only answers yes or no about the first detail, and is done when it is named.
    `personas`: each task's user has a knowledge, a style, a patience and typos, drawn from the run's
    seed; not with `yes-no`. `redraws`: how often a turn that reads like an assistant's or makes
    things up is drawn again before its future fails; 0: such turns stand."""

    style: Literal["transcript", "chat", "yes-no"] = "transcript"
    generation: Generation = Generation(max_tokens=40)
    personas: bool = False
    redraws: CountOrNone = 0


class Question(Section):
    """One weighted yes/no question. `scope` says what it is asked about: each assistant
    reply from the candidate on (the mean counts), or the whole conversation. `reverse`: the same
    asked the other way round, whose No counts as a Yes; the mean of both counts. `examples` come
    before it: `general` ones, or for a question whether the assistant `asks`. The questions that
    name the same `metric` are a rubric: their weighted mean is the metric's value."""

    ask: str
    reverse: str | None = None
    metric: str = "interactivity"
    scope: Literal["reply", "conversation"] = "conversation"
    examples: Literal["general", "asks"] = "general"
    weight: float = Field(1.0, gt=0)


ASKS = Question(
    ask="Does the assistant ask the user for information?",
    reverse="Can the assistant go on without an answer from the user?",
    scope="reply",
    examples="asks",
)


class Judge(Section):
    """`rubric`: probabilities of Yes against No, read off the logits; with `prior_correction` divided
    by what the judge says of an empty conversation (odds by odds). `json`: the paper's style, a
    written verdict with a score from 1 to 5; `reverse` and `examples` are not for it."""

    style: Literal["rubric", "json"] = "rubric"
    prior_correction: bool = False
    questions: dict[str, Question] = {"asks": ASKS}


class Sandbox(Section):
    """Where model-written code is tested. `python`: an interpreter that has the libraries which the
    code may use (default: our own). `seconds` of wall clock, `cpu_seconds`, `memory_mb` of all its
    processes together, `file_mb` of all it writes, `output_kb` of what it prints."""

    python: str | None = None
    seconds: float = Field(30, gt=0)
    cpu_seconds: int = Field(30, ge=1)
    memory_mb: int = Field(2048, ge=64)
    processes: int = Field(16, ge=1)
    file_mb: int = Field(32, ge=1)
    output_kb: int = Field(64, ge=1)


class Reward(Section):
    """R = sum of weight x metric - min(lambda * tokens, 1) (paper, section 3.2: R_ext + R_int).

    A metric is one of METRICS, one that questions of the judge name, or a Python function of
    your own, `metrics.py:my_metric`. With weight 0 it is measured and not rewarded."""

    weights: dict[str, Annotated[float, Field(ge=-1e6, le=1e6)]] = Field(
        {"goal_coverage": 1.0, "interactivity": 1.0}, min_length=1
    )
    token_cost: float = Field(5e-4, ge=0, le=1e6, description="lambda, per token that the user must read")


class Pairs(Section):
    """A pair's MRs are at least `min_gap` apart, and `min_gap_se` times the gap's standard error
    (0: whatever that is)."""

    min_gap: float = Field(0.02, ge=0)
    min_gap_se: float = Field(0.0, ge=0)


class Train(Section):
    """QLoRA DPO. Defaults are the paper's; `sft_weight` > 0 adds an SFT term on the chosen reply."""

    max_length: int = Field(1024, ge=16)
    epochs: float = Field(8, gt=0)
    learning_rate: float = Field(5e-6, gt=0)
    batch_size: int = Field(2, ge=1)
    gradient_accumulation: int = Field(1, ge=1)
    beta: float = Field(0.1, gt=0)
    sft_weight: float = Field(0.0, ge=0)
    lora_r: int = Field(32, ge=1)
    lora_alpha: float = Field(16, gt=0)
    lora_dropout: float = Field(0.1, ge=0, lt=1)
    warmup_steps: int = Field(0, ge=0)
    save_steps: int = Field(20, ge=1)
    load_in_4bit: bool = True


class Export(Section):
    """`quantization`: one kind or several; eval uses the first. `scale`: strength of the adapter, 1
    as trained. `only`: leave the merged files or the adapter's out; eval needs a merged one."""

    quantization: str | Annotated[list[str], Field(min_length=1)] = "q4_k_m"
    scale: float = Field(1.0, gt=0, le=100)
    only: Literal["adapter", "merged"] | None = None

    @property
    def kinds(self) -> tuple[str, ...]:
        """The quantizations, in lower case, each once."""
        return check_kinds([self.quantization] if isinstance(self.quantization, str) else self.quantization)

    @model_validator(mode="after")
    def _known(self) -> Export:
        _ = self.kinds  # ModelError
        return self


class Eval(Section):
    """`samples`: conversations per held-out task and arm; `exchanges`: their turn cap."""

    samples: Count = 2
    exchanges: Count = 2
    bootstrap: int = Field(10_000, ge=100, le=100_000)


class Engine(Section):
    """`context`: KV cells of one model's context, shared by its sequences; `batch`: most tokens
    of one step. Without them they are sized from free memory. `deterministic`: a request gets
    the same answer whoever else is served; slower, one request is computed at a time."""

    context: int | None = Field(None, ge=512)
    sequences: int = Field(64, ge=1, le=256)
    batch: int | None = Field(None, ge=32)
    threads: int | None = Field(None, ge=1)
    gpu_layers: int = -1
    deterministic: bool = False
    concurrent_tasks: int = Field(8, ge=1)


class Remote(Section):
    """How models on servers are asked. `timeout` in seconds, for one answer; `retries` after a
    failure that may pass, each after a longer pause; `key_env` names the environment variable
    that holds the API key, if the server wants one; `context`: tokens that one request may have."""

    concurrency: int = Field(8, ge=1)
    timeout: float = Field(120, gt=0)
    retries: int = Field(5, ge=0)
    key_env: str = "OPENAI_API_KEY"
    context: int = Field(8192, ge=512)


class Recipe(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0, lt=2**32)
    models: Models
    tasks: Tasks
    propose: Propose = Propose()
    policy: Generation = Generation()
    simulate: Simulate = Simulate()
    simulator: Simulator = Simulator()
    judge: Judge = Judge()
    sandbox: Sandbox = Sandbox()
    reward: Reward = Reward()
    pairs: Pairs = Pairs()
    train: Train = Train()
    export: Export = Export()
    eval: Eval = Eval()
    engine: Engine = Engine()
    remote: Remote = Remote()
    cache: str | None = None

    def dump(self) -> str:
        return yaml.safe_dump(self.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)


def is_function(metric: str) -> bool:
    """Whether a metric's name in a recipe is a function of one's own."""
    return ".py:" in metric


def label(metric: str) -> str:
    """What a metric is called in results: a function by its own name."""
    return metric.rpartition(":")[2]


def is_remote(model: str) -> bool:
    """Whether a model's name in a recipe is one on a server."""
    return model.startswith(("http://", "https://"))
