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
    # As for the others, an end-of-text token does not end a sample.
    llama_cpp.llama_cpp.llama_vocab_is_eog = lambda vocab, token: False

    def samples(number: int, count: int, tokens: int) -> Answer:
        start = time.perf_counter()
        usages = [
            llama.create_chat_completion(
                workloads.story(number), max_tokens=tokens, seed=i + 1, **workloads.SAMPLING
            )["usage"]
            for i in range(count)
        ]
        return {
            "seconds": time.perf_counter() - start,
            "prompt_tokens": usages[0]["prompt_tokens"],
            "generated_tokens": sum(u["completion_tokens"] for u in usages),
        }

    serve({"samples": samples})


if __name__ == "__main__":
    main(sys.argv[1])
