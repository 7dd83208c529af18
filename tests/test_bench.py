"""`minicollab bench` on engines whose speed is known; what is played is counted request by request."""

from __future__ import annotations

import asyncio
import json
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from minicollab import bench
from minicollab.cache.store import Store
from minicollab.cast import Cast, Policy
from minicollab.cli import main
from minicollab.engine.base import Completion, Engine, Prompt, Sampling
from minicollab.engine.scripted import Request, ScriptedEngine
from minicollab.errors import ModelError
from minicollab.estimate import Counted, _costs, estimate, requests
from minicollab.evaluate import play_all
from minicollab.judge import Judge
from minicollab.recipe import Recipe
from minicollab.schema import Task
from minicollab.simulator import Simulator
from minicollab.summaries import benched

TASKS = [Task(f"t{i}", f"help me {i}", ("it is for Ada", "it is for May"[: 9 + i])) for i in range(5)]
GIVEN = {
    "name": "small",
    "models": {"policy": "model.gguf"},
    "tasks": {"path": "tasks.jsonl", "train": 3, "eval": 2},
    "propose": {"candidates": 3},
    "simulate": {"exchanges": 2, "futures": 2, "window": 2},
    "judge": {"questions": {"a": {"ask": "A?", "scope": "reply"}, "b": {"ask": "B?"}}},
}
RECIPE = Recipe.model_validate(GIVEN)


class Slow(ScriptedEngine):
    """Every answer has three words and takes a hundredth of a second, however many are asked for."""

    def __init__(self) -> None:
        numbers = count()
        super().__init__(lambda _: f"says number {next(numbers)}", lambda _: [-0.1, -3.0])
        self.under_way, self.most = 0, 0
        self.plan = SimpleNamespace(line="a model on a machine")

    async def _wait(self) -> None:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0.01)
        finally:
            self.under_way -= 1

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        await self._wait()
        return await super().generate(prompt, sampling)

    async def score(self, prompt: Prompt, continuations: Any) -> list[float]:
        await self._wait()
        return await super().score(prompt, continuations)


def cast() -> dict[str, ScriptedEngine]:
    numbers = count()
    return {
        role: ScriptedEngine(lambda _: f"says {next(numbers)}", lambda _: [-0.1, -3.0])
        for role in ("policy", "simulator", "judge")
    }


def test_so_many_sequences_are_measured_with_prompts_that_differ() -> None:
    engine = Slow()
    rate = asyncio.run(bench.measure(engine, 8, 0.2))
    assert engine.most == 8
    assert 0 < rate <= 3000  # 8 at a time, 3 tokens each in 0.01 s: 2,400 a second; less if disturbed
    assert len({r.prompt for r in engine.requests}) == len(engine.requests)
    assert asyncio.run(bench.measure_prompt(engine, 0.05)) > 0


def test_an_engine_that_fails_is_not_waited_for() -> None:
    def fails(_: Request) -> str:
        raise ModelError("the server is gone", "Start it.")

    with pytest.raises(ModelError, match="gone"):
        asyncio.run(bench.measure(ScriptedEngine(fails), 4, 60))
    with pytest.raises(ModelError, match="gone"):
        engines = {role: ScriptedEngine(fails) for role in ("policy", "simulator", "judge")}
        asyncio.run(estimate(RECIPE, engines, {}, TASKS, 60))


def test_requests_are_those_that_simulate_makes() -> None:
    found = asyncio.run(estimate(RECIPE, cast(), {}, TASKS, 60))
    assert found["answers"] == requests(RECIPE, TASKS[:3], TASKS[3:])["simulate"]
    # 3 tasks x 2 turns: 3 candidates, each with 2 futures of 2 exchanges.
    assert found["answers"]["policy"] == 6 * (3 + 3 * 2 * 2) and found["answers"]["simulator"] == 6 * 12


@pytest.mark.parametrize(
    "change",
    [
        {"judge": {"prior_correction": True}},
        {"judge": {"style": "json"}},
        {"reward": {"weights": {"follow_up_likelihood": 1.0}}},
    ],
    ids=str,
)
def test_requests_hang_on_what_is_asked(change: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(GIVEN | change | {"judge": GIVEN["judge"] | change.get("judge", {})})
    judge = ScriptedEngine(lambda _: '{"reason": "so", "score": 3}', lambda _: [-0.1, -3.0])
    user = ScriptedEngine(lambda r: f"user {len(r.prompt)}", lambda r: [-1.0] * len(r.continuations))
    found = asyncio.run(estimate(recipe, cast() | {"judge": judge, "simulator": user}, {}, TASKS, 60))
    assert found["answers"] == requests(recipe, TASKS[:3], TASKS[3:])["simulate"]


def test_requests_are_those_that_eval_makes(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    counted = {role: Counted(engine, store) for role, engine in cast().items()}
    policy = Policy(counted["policy"], RECIPE.policy)
    people = Cast(
        policy, Simulator(counted["simulator"], RECIPE.simulator), Judge(counted["judge"], RECIPE.judge)
    )
    asyncio.run(play_all(RECIPE, people, dict.fromkeys(("base", "proactive", "trained"), policy), TASKS[3:]))
    answers = {role: engine.answers for role, engine in counted.items()}
    assert answers == requests(RECIPE, TASKS[:3], TASKS[3:])["eval"]


@pytest.mark.slow
def test_what_was_played_is_extended_to_all() -> None:
    many = [Task(f"t{i}", f"help me {i}", ("it is for Ada",)) for i in range(400)]
    recipe = RECIPE.model_copy(update={"tasks": RECIPE.tasks.model_copy(update={"train": 390, "eval": 10})})
    engine: Engine = Slow()
    found = asyncio.run(
        estimate(recipe, dict.fromkeys(("policy", "simulator", "judge"), engine), {}, many, 2)
    )
    asked = requests(recipe, many[:390], many[390:])
    played = sum(found["answers"].values())
    assert 0 < played < sum(asked["simulate"].values()) / 2
    for stage in ("simulate", "eval"):  # one engine of unknown speed: all answers cost the same
        expected = found["played_seconds"] * sum(asked[stage].values()) / played
        assert found[stage] == pytest.approx(expected, rel=0.1)


def test_nothing_answered_is_no_estimate() -> None:
    class Stuck(ScriptedEngine):
        async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
            await asyncio.sleep(60)
            raise AssertionError

    engines = dict.fromkeys(("policy", "simulator", "judge"), Stuck())
    found = asyncio.run(estimate(RECIPE, engines, {}, TASKS, 0.1))
    assert found["simulate"] is None and found["eval"] is None


def test_a_play_too_short_for_an_estimate_says_so() -> None:
    played = {"name": "small", "played_seconds": 0.1, "answers": {"judge": 2}, "simulate": None, "eval": None}
    assert "give it more with --seconds" in benched({"models": [], "recipe": played})


def test_an_answer_costs_what_was_generated_and_read_for_it(tmp_path: Path) -> None:
    small, large = ScriptedEngine(), ScriptedEngine()
    large.usage.prompt_tokens_computed = 1000  # before the play
    store = Store(tmp_path / "store")
    counted = {
        role: Counted(engine, store)
        for role, engine in (("policy", small), ("simulator", large), ("judge", large))
    }
    small.usage.prompt_tokens_computed, large.usage.prompt_tokens_computed = 300, 1800
    for role, answers, tokens in (("policy", 10, 200), ("simulator", 10, 80), ("judge", 30, 0)):
        counted[role].answers, counted[role].tokens = answers, tokens
    rates = {"policy": (100.0, 300.0), "simulator": (10.0, 20.0), "judge": (10.0, 20.0)}
    # policy: 20 tokens at 100/s, 30 read at 300/s; the larger model reads 800/40 = 20 an answer at 20/s.
    assert _costs(RECIPE, counted, rates, 50) == pytest.approx({"policy": 0.3, "simulator": 1.8, "judge": 1})
    del rates["policy"]
    assert _costs(RECIPE, counted, rates, 50)["policy"] == 5
    counted["simulator"].answers = counted["simulator"].tokens = 0  # as many tokens as it may: 40
    assert _costs(RECIPE, counted, rates, 50)["simulator"] == pytest.approx(4 + 800 / 30 / 20)


@pytest.fixture
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, "_open", lambda *_: Slow())

    async def to_the_end(*how: Any) -> Any:
        *most, _, progress = how
        return await estimate(*most, 600, progress)  # however slow this machine is

    monkeypatch.setattr(bench, "estimate", to_the_end)
    monkeypatch.setattr("minicollab.estimate._TICK", 0.01)  # the play is short: so is its warm-up
    rows = [{"opening": task.opening, "details": task.details} for task in TASKS]
    (tmp_path / "tasks.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(GIVEN))
    return path


def test_the_command_prints_one_json_object_and_touches_nothing(recipe_file: Path) -> None:
    before = set(recipe_file.parent.rglob("*"))
    result = CliRunner().invoke(main, ["bench", str(recipe_file), "--json", "--seconds", "0.4"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (model,) = found["models"]  # one for all roles
    assert model["roles"] == ["policy", "simulator", "judge"] and model["line"] == "a model on a machine"
    assert list(model["generated"]) == ["1", "8", "32"]
    assert all(speed > 0 for speed in (*model["generated"].values(), model["prompt"]))
    assert found["recipe"]["name"] == "small" and found["recipe"]["simulate"] > found["recipe"]["eval"] > 0
    assert set(recipe_file.parent.rglob("*")) == before


def test_the_command_prints_a_table_and_a_sentence(recipe_file: Path) -> None:
    result = CliRunner().invoke(main, ["bench", str(recipe_file), "--seconds", "0.4"])
    assert "policy, simulator, judge" in result.stdout and "32 sequences" in result.stdout
    last = result.stdout.splitlines()[-1]
    assert last.startswith("small: simulate about ") and "Train and export" in last
    alone = CliRunner().invoke(main, ["bench", "--seconds", "0.4"])
    assert alone.exit_code == 0 and "│ policy " in alone.stdout and "simulate" not in alone.stdout


@pytest.mark.slow
def test_a_real_model_is_faster_with_more_sequences() -> None:
    found = bench.bench(None, seconds=8)
    (model,) = found["models"]
    assert model["generated"][8] > model["generated"][1] > 0 and "SmolLM2" in model["line"]
