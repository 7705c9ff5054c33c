"""A bundle of this project, plain or drafting (DRAFTS): `python ours.py BUNDLE THREADS DRAFT`, as protocol.py says."""

import dataclasses
import sys
from collections.abc import Iterator

from protocol import Generate, serve

from ppd import runtime
from ppd.bundle import TOKENIZER_FILE
from ppd.runtime.options import Draft

DRAFTS: dict[str, Draft] = {"plain": False, "auto": "auto"}


def open_model() -> tuple[str, Generate]:
    """Load the bundle; without EOS ids, and without its tokenizer, since no racer turns ids into text."""
    loaded = runtime.load(sys.argv[1], threads=int(sys.argv[2]), verify=False)
    draft = DRAFTS[sys.argv[3]]
    manifest = loaded.bundle.manifest
    files = {role: entry for role, entry in manifest.files.items() if role != TOKENIZER_FILE}
    endless = dataclasses.replace(manifest, eos_ids=[], files=files)
    model = runtime.Model(dataclasses.replace(loaded.bundle, manifest=endless), loaded.engine)

    def generate(prompt: list[int], new_tokens: int) -> Iterator[int]:
        for piece in model.stream(prompt, max_new_tokens=new_tokens, draft=draft):
            yield from piece.token_ids

    return f"{model.engine.name}, {' + '.join(sorted(model.sources(draft))) or 'plain'}", generate


if __name__ == "__main__":
    serve(open_model)
