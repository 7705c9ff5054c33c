"""Long runs, for `make soak`: drafting forks nowhere, threads do not mix answers, generations leave nothing behind.

Each prints what it counted. Together they take about half an hour of one core.
"""

import gc
import os
import random
import sysconfig
import threading
from pathlib import Path
from typing import Any

import pytest

from ppd import runtime
from ppd.bundle import open_bundle
from ppd.precision import PRECISIONS
from ppd.runtime.chat import render_chat
from ppd.runtime.forks import first_fork, top_two_gap
from ppd.runtime.model import Model
from ppd.tree import load_tree
from tests.runtime.real_models import WIDE_TREE, model_with_tree

pytestmark = pytest.mark.soak
NUM_PROMPTS, NUM_TOKENS = 1000, 256
NUM_THREADS, PER_THREAD = 32, 12
NUM_GENERATIONS, NUM_WARM = 1000, 100
MAX_GROWTH = 16 << 20
"""Bytes by which the process may grow over all generations: the allocator keeps some."""
CHAT = "{% for message in messages %}{{ message.content }}{% endfor %}"


def prompts(count: int, seed: int) -> list[str]:
    """Slices of the standard library, 4 to 400 characters of them."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    rng, texts = random.Random(seed), list[str]()
    while len(texts) < count:
        text = rng.choice(files).read_text("utf-8", "replace")
        start = rng.randrange(max(1, len(text) - 400))
        texts.append(text[start : start + rng.randrange(4, 400)])
    return texts


@pytest.fixture(scope="module")
def models(tinypy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    """The embedded model with its own tree, and with a tree of 25 to 40 rows."""
    wide = model_with_tree(open_bundle(tinypy_bundle), load_tree(WIDE_TREE), tmp_path_factory.mktemp("wide"))
    return [runtime.load(tinypy_bundle, threads=1), wide]


def settings(number: int) -> dict[str, Any]:
    """Greedy for two prompts of three; sampled for the third."""
    if number % 3:
        return {}
    return {"temperature": 0.7 + number % 5 / 5, "top_k": (None, 20)[number % 2], "top_p": (0.9, None)[number % 2]}


def test_drafting_forks_nowhere(models: list[Model]) -> None:
    tokens = forks = excused = steps = 0
    for number, prompt in enumerate(prompts(NUM_PROMPTS, seed=1)):
        model = models[number % 2]
        options = {"max_new_tokens": NUM_TOKENS, "seed": number, **settings(number)}
        plain = models[0].generate(prompt, draft=False, **options)
        drafted = model.generate(prompt, draft=(True, ("ppd", "lookup"), "lookup")[number % 3], **options)
        fork = first_fork(plain.token_ids, drafted.token_ids)
        tokens, steps = tokens + len(plain.token_ids), steps + drafted.stats.steps
        if fork is not None:
            forks += 1
            ids = [*model.encode(prompt), *plain.token_ids[:fork]]
            gap = top_two_gap(model.session, ids)
            excused += gap < PRECISIONS["fp32"].tie_gap
            print(f"prompt {number}: fork at token {fork}, gap {gap:.2e}, {options}")
        else:
            assert (drafted.text, drafted.finish_reason) == (plain.text, plain.finish_reason)
        if (number + 1) % 100 == 0:
            counts = f"{tokens} tokens, {steps} drafted steps: {forks} forks, {excused} at near-ties"
            print(f"{number + 1} prompts, {counts}", flush=True)
    assert forks == 0


def test_threads_get_their_own_answers(models: list[Model]) -> None:
    asked = prompts(NUM_THREADS, seed=2)
    expected = [models[0].generate(prompt, max_new_tokens=24, draft=False).token_ids for prompt in asked]
    wrong: list[int] = []
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(PER_THREAD):
                mine = (number + i) % NUM_THREADS
                found = _answer(models[i % 2], asked[mine], i)
                if found != expected[mine][: len(found)] or (i % 4 < 2 and found != expected[mine]):
                    wrong.append(mine)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=1200)
    stuck = sum(thread.is_alive() for thread in threads)
    print(f"{NUM_THREADS} threads, {NUM_THREADS * PER_THREAD} answers: {len(wrong)} wrong, {stuck} stuck, {errors}")
    assert (wrong, stuck, errors) == ([], 0, [])


def _answer(model: Model, prompt: str, way: int) -> list[int]:
    """Generated, streamed, or streamed and closed early."""
    if way % 4 == 0:
        return model.generate(prompt, max_new_tokens=24, draft=True).token_ids
    found: list[int] = []
    with model.stream(prompt, max_new_tokens=24, draft=way % 2 == 0) as stream:
        for piece in stream:
            found += piece.token_ids
            if way % 4 >= 2 and len(found) > way:
                break
    return found


def test_generations_leave_nothing_behind(models: list[Model]) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("there is no /proc")
    asked = prompts(NUM_GENERATIONS + NUM_WARM, seed=3)
    for number, prompt in enumerate(asked):
        if number == NUM_WARM:
            before = _held()
        models[number % 2].generate(prompt, max_new_tokens=24, draft=number % 4 < 2, seed=number, **settings(number))
        render_chat(CHAT, [{"role": "user", "content": prompt}], {})
    after = _held()
    print(f"{NUM_GENERATIONS} generations: bytes, descriptors, threads {before} before, {after} after")
    assert after[0] - before[0] < MAX_GROWTH
    assert after[1:] == before[1:]


def _held() -> tuple[int, int, int]:
    """Resident bytes, open descriptors and threads of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
