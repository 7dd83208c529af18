from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from minicollab.errors import RecipeError
from minicollab.loading import load_recipe
from minicollab.tasks import load_tasks, split

REPO = Path(__file__).resolve().parents[1]
RECIPES = sorted((REPO / "recipes").rglob("*.yaml"))
SMALL = {
    "name": "small",
    "models": {"policy": "p.gguf"},
    "tasks": {"path": "tasks.jsonl"},
    "judge": {"questions": {"asks": {"ask": "Does it ask?"}}},
}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(REPO)))
def test_every_recipe_loads_and_its_tasks_too(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    if recipe.tasks.family not in ("details", "twenty-questions"):
        pytest.skip("its data set is not ours: tests/test_task_families.py")
    tasks = load_tasks(recipe.tasks)
    train, held_out = split(tasks, recipe.tasks.train, recipe.tasks.eval)
    assert len(train) == recipe.tasks.train and len(held_out) == recipe.tasks.eval
    assert not {t.id for t in train} & {t.id for t in held_out}
    assert not {(t.opening, t.details) for t in train} & {(t.opening, t.details) for t in held_out}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(REPO)))
def test_a_dumped_recipe_is_the_same_recipe_elsewhere(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    (tmp_path / "recipe.yaml").write_text(recipe.dump(), "utf-8")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe


def test_paths_are_relative_to_the_recipe_and_names_stay(small: Path) -> None:
    recipe = load_recipe(small, ["models.judge=hf:owner/repo/file.gguf", "models.train_base=owner/base"])
    assert recipe.tasks.path == str(small.parent / "tasks.jsonl")
    assert recipe.models.policy == str(small.parent / "p.gguf")
    assert (recipe.models.judge, recipe.models.train_base) == ("hf:owner/repo/file.gguf", "owner/base")


@pytest.mark.parametrize(
    "server",
    [
        "http://127.0.0.1:8080/v1#q.gguf",
        "https://api.example.com/v1#a/b:1.5b",
        "http://[::1]:1/v1/#x",
        "http://h#m",
    ],
)
def test_a_model_on_a_server_stays_as_it_is(small: Path, server: str) -> None:
    models = load_recipe(small, [f"models.policy={server}", f"models.judge={server}"]).models
    assert (models.policy, models.judge) == (server, server)


@pytest.mark.parametrize(
    "wrong",
    [
        "http://h:8080/v1",
        "http://h:8080/v1#",
        "http://h:99999/v1#m",
        "http:///v1#m",
        "http://h:x/v1#m",
        "http://h/v1?a=b#m",
    ],
)
@pytest.mark.parametrize("role", ["policy", "judge"])
def test_an_address_that_names_no_model_is_refused(small: Path, role: str, wrong: str) -> None:
    with pytest.raises(RecipeError, match=f"models.{role}: http.*Write it as http://host:port/v1#model-name"):
        load_recipe(small, [f"models.{role}={wrong}"])


def test_an_adapter_is_a_file_for_a_policy_that_is_one(small: Path) -> None:
    models = load_recipe(small, ["models.adapter=../lora", "models.judge=http://h/v1#m"]).models
    assert models.adapter == str(small.parent.parent / "lora")
    with pytest.raises(RecipeError, match=r"models\.adapter cannot be put on a policy that is on a server"):
        load_recipe(small, ["models.adapter=lora.gguf", "models.policy=http://h/v1#m"])


def test_defaults_are_the_papers(small: Path) -> None:
    train = load_recipe(small).train
    assert (train.lora_r, train.lora_alpha, train.lora_dropout, train.beta) == (32, 16, 0.1, 0.1)
    assert (train.epochs, train.learning_rate) == (8, 5e-6)


@pytest.mark.parametrize(
    ("typo", "where", "near"),
    [
        ("pollicy.max_tokens=3", "pollicy", "policy"),
        ("models.polcy=x", "models.polcy", "policy"),
        ("simulator.generation.temprature=1", "simulator.generation.temprature", "temperature"),
        ("judge.questions.asks.wieght=2", "judge.questions.asks.wieght", "weight"),
    ],
)
def test_a_typo_in_a_key_names_the_near_one(small: Path, typo: str, where: str, near: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(small, [typo])
    assert caught.value.what.endswith(f"there is no key {where}")
    assert near in caught.value.remedy


def test_a_metric_that_is_none_is_refused(small: Path) -> None:
    with pytest.raises(RecipeError, match=r"goal_covrage is no metric\. Did you mean goal_coverage"):
        load_recipe(small, ["reward.weights={goal_covrage: 2}"])
    with pytest.raises(RecipeError, match=r"interactivity is no metric\. Ask for it in judge\.questions"):
        load_recipe(small, ["judge.questions={}"])
    asked = "judge.questions.kind={ask: 'Is it kind?', metric: kindness}"
    assert load_recipe(small, [asked, "reward.weights={kindness: 2}"]).reward.weights == {"kindness": 2}


@pytest.mark.parametrize(
    "override",
    [
        "reward.weights={metrics.py:turns: 1}",
        "reward.weights={metrics.py:mr: 1}",
        "reward.weights={metrics.py:accuracy: 1}",
        "reward.weights={a.py:quality: 1, b.py:quality: 1}",
        "reward.weights={metrics.py:interactivity: 1, interactivity: 1}",
        "judge.questions={asks: {ask: 'Does it?', metric: goal_coverage}}",
        "judge.questions={asks: {ask: 'Does it?', metric: mr}}",
        "judge.questions={asks: {ask: 'Does it?', metric: details}}",
    ],
)
def test_two_metrics_of_one_name_are_refused(small: Path, override: str) -> None:
    with pytest.raises(RecipeError, match="is the name of something else"):
        load_recipe(small, [override])


def test_a_function_and_an_interpreter_are_found_from_the_recipe(small: Path) -> None:
    options = ["reward.weights={metrics.py:short: 1}", "sandbox.python=venv/bin/python", "tasks.path=hf:a/b"]
    recipe = load_recipe(small, options)
    assert recipe.reward.weights == {f"{small.parent}/metrics.py:short": 1}
    assert recipe.sandbox.python == f"{small.parent}/venv/bin/python" and recipe.tasks.path == "hf:a/b"


def test_the_cache_and_a_folder_to_train_on_are_found_from_the_recipe(small: Path) -> None:
    (small.parent / "base").mkdir()
    recipe = load_recipe(small, ["cache=store", "models.train_base=base"])
    assert recipe.cache == f"{small.parent}/store" and recipe.models.train_base == f"{small.parent}/base"
    assert load_recipe(small, ["models.train_base=owner/base"]).models.train_base == "owner/base"
    assert load_recipe(small).cache is None


def test_a_key_like_no_other_gets_the_list(small: Path) -> None:
    with pytest.raises(RecipeError, match=r"no key pairs\.zzz\. Known keys there: min_gap"):
        load_recipe(small, ["pairs.zzz=1"])


def test_overrides_are_yaml_and_make_sections(small: Path) -> None:
    recipe = load_recipe(
        small, ["seed=9", "engine.threads=2", "pairs.min_gap=0.5", "train.load_in_4bit=false"]
    )
    assert (recipe.seed, recipe.engine.threads, recipe.pairs.min_gap) == (9, 2, 0.5)
    assert recipe.train.load_in_4bit is False


@pytest.mark.parametrize(
    "override", ["seed", "=3", "name.x=1", "tasks.eval=0", "seed=x", "train=3", "engine.context=1"]
)
def test_a_wrong_value_is_refused_in_one_line(small: Path, override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(small, [override])
    assert override.partition("=")[0] in caught.value.what
    assert caught.value.remedy and "\n" not in str(caught.value)


def test_an_override_that_is_no_yaml_is_refused(small: Path) -> None:
    with pytest.raises(RecipeError, match="seed"):
        load_recipe(small, ["seed=[1"])


def test_files_that_are_no_recipe(tmp_path: Path, small: Path) -> None:
    with pytest.raises(RecipeError, match="there is no recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)
    for content, fault in (
        (b"- a\n", "not a recipe"),
        (b"a: [\n", "not YAML"),
        (b"\xff\xfe\x00", "cannot|not"),
    ):
        small.write_bytes(content)
        with pytest.raises(RecipeError, match=fault):
            load_recipe(small)
    small.write_text(yaml.safe_dump({k: v for k, v in SMALL.items() if k != "models"}))
    with pytest.raises(RecipeError, match=r"models: field required"):
        load_recipe(small)
