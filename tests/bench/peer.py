"""What a user would run without a platform: Transformers in a Python process of its own.

`python -m tests.bench.peer first CHECKPOINT PROMPT`   loads, prints its first token, ends
`python -m tests.bench.peer serve CHECKPOINT PROMPT`   loads once, then decodes on request:
    a line `N` on stdin -> a line of JSON with the seconds from the first token to the Nth
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> None:
    mode, checkpoint, prompt = sys.argv[1:]
    if mode == "first":
        tokenizer, model = load(checkpoint)
        ids = encode(tokenizer, prompt)
        out = model.generate(**ids, max_new_tokens=1, do_sample=False)
        say({"text": tokenizer.decode(out[0, ids["input_ids"].shape[1] :])})
    else:
        serve(checkpoint, prompt)


def load(checkpoint: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return tokenizer, AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)


def encode(tokenizer: Any, prompt: str) -> Any:
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )


class Clock:
    """Notes when each token came; `generate` calls it as a streamer, the prompt first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _tokens: object) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        return


def serve(checkpoint: str, prompt: str) -> None:
    import torch

    tokenizer, model = load(checkpoint)
    ids = encode(tokenizer, prompt)
    say({"ready": True, "threads": torch.get_num_threads()})
    for line in sys.stdin:
        tokens = int(line)
        clock = Clock()
        model.generate(
            **ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, streamer=clock
        )
        _prompt, *times = clock.times
        assert len(times) == tokens, f"asked for {tokens} tokens, got {len(times)}"
        say({"decode_s": times[-1] - times[0]})


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
