"""The official `collabllm`, unchanged, against the server over HTTP.

The same limits as ours on what the assistant may write. Its simulated user must write a JSON
object with two more fields than the message, which 40 tokens cannot hold: it gets 256. The package
brings no metrics along: interactivity here is this project's own JSON question, 120 tokens, asked
once a conversation and never again, which is the least that its users would have to do.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from typing import Any

from benchmarks.engine import workloads
from benchmarks.engine.contest import Answer, serve
from minicollab import prompts
from minicollab.schema import Conversation

USER_TOKENS, VERDICT_TOKENS = 256, 120


def main(address: str) -> None:
    os.environ |= {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "ENABLE_COLLABLLM_LOGGING": "0",
        "RUN_USER_DIR": tempfile.mkdtemp(),
    }
    import litellm
    from collabllm.metric import BaseMetric, SingleTurnOrChatMetric
    from collabllm.reward import multiturn_aware_reward

    litellm.suppress_debug_info = True
    generated = []
    litellm.success_callback = [lambda kwargs, answer, begin, end: generated.append(answer.usage)]
    asked = {"model": "openai/bench", "api_base": f"{address}/v1", "api_key": "none"}
    question = next(iter(workloads.RECIPE.judge.questions.values())).ask

    @SingleTurnOrChatMetric.register_metric("interactivity")
    class Interactivity(BaseMetric):  # type: ignore[misc]
        def score(
            self, prompt: str, groundtruth: str, completion: str, messages: Any = None, metadata: Any = None
        ) -> float:
            talk = prompts.transcript(Conversation.from_dicts(messages), "User", "Assistant")
            content = prompts.fill("judge_json", conversation=talk, question=question)
            said = [{"role": "user", "content": content}]
            answer = litellm.completion(**asked, messages=said, max_tokens=VERDICT_TOKENS)
            score = re.search(r'"score": *([1-5])', answer.choices[0].message.content)
            return (int(score[1]) - 1) / 4 if score else 0.0

    def reward(number: int) -> Answer:
        talk = [*workloads.numbered_talk(number).as_dicts(), workloads.CANDIDATE.message.as_dict()]
        goal = "; ".join(workloads.TASK.details)
        simulate = workloads.RECIPE.simulate
        generated.clear()
        begin = time.perf_counter()
        more: Answer = {}
        try:
            _, talks = multiturn_aware_reward(
                task_desc="getting help with a text",
                single_turn_prompt=f"{workloads.TASK.opening}. {goal}",
                single_turn_completion="",
                metric_names=["interactivity"],
                chat_history=talk,
                assistant_generation_kwargs={**asked, "max_tokens": workloads.RECIPE.policy.max_tokens},
                user_generation_kwargs={**asked, "max_tokens": USER_TOKENS},
                num_samples=simulate.futures,
                max_new_turns=2 * simulate.window,  # it counts messages
                return_details=True,
                verbose=False,
            )
            more["messages"] = [len(t) - len(talk) for t in talks]
        except UnboundLocalError as error:  # its user gave no JSON in ten tries
            more["failed"] = str(error)
        seconds = time.perf_counter() - begin
        time.sleep(1)  # litellm tells of its successes from another thread
        tokens = sum(u.completion_tokens for u in generated)
        return {"seconds": seconds, "requests": len(generated), "generated_tokens": tokens} | more

    serve({"reward": reward})


if __name__ == "__main__":
    main(sys.argv[1])
