"""`generate` of transformers in fp32: `python hf_generate.py MODEL_FOLDER THREADS WAY`; it answers as protocol.py says.

WAY is "plain", "lookup" (`prompt_lookup_num_tokens` of its documentation, 10) or the folder of an assistant.
"""

import sys
from collections.abc import Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
import transformers
from protocol import Generate, serve
from transformers.generation.streamers import BaseStreamer

LOOKUP_TOKENS = 10


class Stream(BaseStreamer):
    """Hands tokens on as they are decided; the prompt, which comes first, is not."""

    def __init__(self) -> None:
        self.tokens: SimpleQueue[int | None] = SimpleQueue()
        self._has_begun = False

    def put(self, value: torch.Tensor) -> None:
        """Take the tokens of a step."""
        if self._has_begun:
            for token in value.flatten().tolist():
                self.tokens.put(token)
        self._has_begun = True

    def end(self) -> None:
        """Tell that there are no more."""
        self.tokens.put(None)


def load(folder: str) -> Any:
    """A model without EOS ids."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config = transformers.GenerationConfig(eos_token_id=None, pad_token_id=0)
    return model


def open_model() -> tuple[str, Generate]:
    """Load the model, and the assistant if there is one."""
    folder, threads, way = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = load(folder)
    options: dict[str, Any] = {"plain": {}, "lookup": {"prompt_lookup_num_tokens": LOOKUP_TOKENS}}.get(way, {})
    if way not in ("plain", "lookup"):
        options = {"assistant_model": load(way)}

    def generate(prompt: list[int], new_tokens: int) -> Iterator[int]:
        stream, is_over = Stream(), False

        def run() -> None:
            try:
                ids = torch.tensor([prompt])
                model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=new_tokens,
                    streamer=stream,
                    stopping_criteria=[lambda ids, _: torch.full((len(ids),), is_over)],
                    **options,
                )
            finally:
                stream.end()

        worker = Thread(target=run)
        worker.start()
        try:
            yield from iter(stream.tokens.get, None)
        finally:
            is_over = True
            worker.join()

    return f"transformers {transformers.__version__}, torch {torch.__version__}", generate


if __name__ == "__main__":
    serve(open_model)
