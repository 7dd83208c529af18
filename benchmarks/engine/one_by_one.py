"""llama-cpp-python's high level as its users have it: one chat completion after another.

Its own prefix match stays on and top-k at its default of 40, which spares it work.
"""

from __future__ import annotations

import sys
import time

import llama_cpp

from benchmarks.engine import workloads
from benchmarks.engine.contest import Answer, serve


def main(gguf: str) -> None:
    llama = llama_cpp.Llama(gguf, n_ctx=workloads.SMALL_CONTEXT, n_threads=workloads.THREADS, verbose=False)
    # An end-of-text token does not end a sample for the others. Here it can: then another one of the
    # same prompt, which is still there, makes up the tokens.
    llama_cpp.llama_cpp.llama_vocab_is_eog = lambda vocab, token: False

    def sample(number: int, tokens: int, seed: int) -> Answer:
        answer = llama.create_chat_completion(
            workloads.story(number), max_tokens=tokens, seed=seed, **workloads.SAMPLING
        )
        return dict(answer["usage"])

    def samples(number: int, count: int, tokens: int) -> Answer:
        start, done, tries = time.perf_counter(), 0, 0
        while done < count * tokens:
            tries += 1
            left = tokens - done % tokens
            usage = sample(number, left, tries)
            done += usage["completion_tokens"]
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "prompt_tokens": usage["prompt_tokens"], "generated_tokens": done}

    serve({"samples": samples})


if __name__ == "__main__":
    main(sys.argv[1])
