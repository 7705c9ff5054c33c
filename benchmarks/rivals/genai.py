"""onnxruntime-genai: `python genai.py FOLDER THREADS`, a folder of its builder; it answers as protocol.py says."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import onnxruntime_genai as og
from protocol import Generate, serve


def open_model() -> tuple[str, Generate]:
    """Load the folder with this many threads.

    Behind EOS it would only repeat EOS, without computing, and it has to have one: the vocabulary's last, rarest word.
    """
    folder = Path(sys.argv[1])
    vocab_size = json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]["vocab_size"]
    decoder = {"session_options": {"intra_op_num_threads": int(sys.argv[2])}}
    config = og.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": decoder, "eos_token_id": vocab_size - 1}}))
    model = og.Model(config)

    def generate(prompt: list[int], new_tokens: int) -> Iterator[int]:
        params = og.GeneratorParams(model)
        params.set_search_options(do_sample=False, batch_size=1, max_length=len(prompt) + new_tokens)
        generator = og.Generator(model, params)
        generator.append_tokens(prompt)
        for _ in range(new_tokens):
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    return f"onnxruntime-genai {og.__version__}", generate


if __name__ == "__main__":
    serve(open_model)
