"""transformers in fp32: `python hf.py MODEL_FOLDER THREADS`; it answers as protocol.py says.

Its own loop around the model, one pass per token: `generate` does the same with more work between the passes.
"""

import sys
from collections.abc import Iterator

import torch
import transformers
from protocol import Generate, serve


def open_model() -> tuple[str, Generate]:
    """Load the model."""
    torch.set_num_threads(int(sys.argv[2]))
    model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()

    @torch.inference_mode()
    def generate(prompt: list[int], new_tokens: int) -> Iterator[int]:
        ids, cache = torch.tensor([prompt]), None
        for _ in range(new_tokens):
            out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
            yield int(ids)

    return f"transformers {transformers.__version__}, torch {torch.__version__}", generate


if __name__ == "__main__":
    serve(open_model)
