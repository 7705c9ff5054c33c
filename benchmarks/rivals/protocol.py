"""How a racer answers: one JSON object a line, on standard input and output.

    → {"prompt": [ids], "new_tokens": n, "stop": [ids]}
    ← {"ready": title}, once, when the model is loaded; or {"error": line}
    ← {"first_s": seconds to the first token, "rest_s": seconds of the others, "ids": [ids]} for each question: n
      tokens, or fewer if the last of them is a stop id

Between questions a racer waits for its input, and whatever its libraries print goes to standard error.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import TextIO

Generate = Callable[[list[int], int], Iterator[int]]
"""Prompt and number of new tokens → the tokens, greedily, each as soon as it is known; EOS ends nothing. It is closed
where an answer ends earlier."""


def serve(open_model: Callable[[], tuple[str, Generate]]) -> None:
    """Answer until standard input ends.

    Args:
        open_model: Loads the model; gives a title and how to generate.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        title, generate = open_model()
    except Exception as error:  # whatever a rival's library raises becomes the line of why it is left out
        _say(answers, {"error": f"{type(error).__name__}: {error}".splitlines()[0]})
        return
    _say(answers, {"ready": title})
    for line in sys.stdin:
        question = json.loads(line)
        _say(answers, _timed(generate(question["prompt"], question["new_tokens"]), question["stop"]))


def _timed(tokens: Iterator[int], stop: Collection[int]) -> dict[str, object]:
    started = time.perf_counter()
    ids = [next(tokens)]
    first = time.perf_counter()
    while ids[-1] not in stop and (token := next(tokens, None)) is not None:
        ids.append(token)
    return {"first_s": first - started, "rest_s": time.perf_counter() - first, "ids": ids}


def _say(answers: TextIO, content: dict[str, object]) -> None:
    answers.write(json.dumps(content) + "\n")
    answers.flush()
