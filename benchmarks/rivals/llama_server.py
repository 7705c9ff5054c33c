"""llama.cpp's own server, in the package xllamacpp: `python llama_server.py FILE.gguf THREADS CONTEXT WAY [SLOTS]`.

WAY is "plain" or one of the server's kinds of guesses from text, such as "ngram-cache" and "ngram-simple", with its
defaults; SLOTS conversations share the context. Its title ends with its address. Asked over HTTP, as a stream; it
answers as protocol.py says.
"""

import http.client
import json
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import xllamacpp
from protocol import Generate, serve


def open_model() -> tuple[str, Generate]:
    """Start the server in this process, and find where it listens."""
    file, threads, context, way, *slots = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel, params.fit_params = int(context), int(slots[0]) if slots else 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    if way != "plain":
        kind = f"COMMON_SPECULATIVE_TYPE_{way.upper().replace('-', '_')}"
        params.speculative.types = [getattr(xllamacpp.common_speculative_type, kind)]
    server = xllamacpp.Server(params)
    address = urlsplit(server.listening_address)

    def generate(prompt: list[int], new_tokens: int) -> Iterator[int]:
        _ = server  # lives as long as it is asked
        fields = {"temperature": 0, "stream": True, "return_tokens": True, "cache_prompt": False}
        connection = http.client.HTTPConnection(address.hostname or "", address.port)
        try:
            body = json.dumps({"prompt": prompt, "n_predict": new_tokens, **fields})
            connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != http.client.OK:
                raise RuntimeError(f"HTTP {response.status}: {response.readline().decode(errors='replace').strip()}")
            for line in response:
                if line.startswith(b"data: {"):
                    yield from json.loads(line.removeprefix(b"data: ")).get("tokens", [])
        finally:
            connection.close()  # the server gives up what is left of the answer

    return f"xllamacpp {xllamacpp.__version__} at {server.listening_address}", generate


if __name__ == "__main__":
    serve(open_model)
