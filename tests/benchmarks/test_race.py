"""The race's own parts: a racer's process, what is counted, and the tensors of the files for llama.cpp."""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rivals
from race import make_prompts, race
from rivals.participant import Answer, Participant, RivalError
from rivals.prepare import Workshop
from rivals.scores import Score, mismatches, report, same_tokens, table
from rivals.write_gguf import tensors

from ppd.models.config import read_config
from tests.tiny_models import save_tiny_model

# Counts upwards from the prompt's last id. A prompt that begins with the unlucky id kills it, one with 8 is cut short.
FAKE = """
import os, sys
sys.path.insert(0, {rivals!r})
from protocol import serve

def generate(prompt, new_tokens):
    print("a library talks")
    if prompt[0] == {unlucky}:
        print("out of luck", file=sys.stderr, flush=True)
        os._exit(3)
    yield from range(prompt[-1] + 1, prompt[-1] + 1 + new_tokens - (prompt[0] == 8))

def open_model():
    print("loading")
    {loading}
    return "fake 1.0", generate

serve(open_model)
"""

Start = Callable[..., Participant]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Participant] = []

    def start_fake(loading: str = "pass", unlucky: int = 7) -> Participant:
        script = tmp_path / "fake.py"
        script.write_text(FAKE.format(rivals=rivals.__path__[0], loading=loading, unlucky=unlucky), "utf-8")
        started.append(Participant([sys.executable, str(script)], tmp_path / f"{len(started)}.log", {}))
        return started[-1]

    yield start_fake
    for participant in started:
        participant.close()


def test_a_racer_answers_in_turn_whatever_its_library_prints(start: Start) -> None:
    racer = start()
    assert racer.title == "fake 1.0"
    assert [racer.ask([1, 5], 3).ids, racer.ask([9], 1).ids] == [[6, 7, 8], [10]]


def test_a_racer_that_cannot_load_says_why(start: Start) -> None:
    with pytest.raises(RivalError, match="ValueError: no such kernel"):
        start("raise ValueError('no such kernel')")


@pytest.mark.parametrize(("prompt", "reason"), [([7], "out of luck"), ([8], "gave 3 tokens instead of 4")])
def test_a_racer_that_dies_or_stops_early_fails(start: Start, prompt: list[int], reason: str) -> None:
    racer = start()
    with pytest.raises(RivalError, match=reason):
        racer.ask(prompt, 4)


def test_a_racer_that_fails_is_out_and_the_others_go_on(start: Start) -> None:
    running = {"good": start(), "bad": start(unlucky=3)}
    scores = {"good": Score("fake", 1.0), "bad": Score("fake", 1.0)}
    left_out: dict[str, str] = {}
    race(running, scores, left_out, [[1], [2], [3, 4]], argparse.Namespace(turns=2, new_tokens=4))
    assert list(running) == list(scores) == ["good"]
    assert left_out == {"bad": "ended: out of luck"}
    assert len(scores["good"].generation) == 2
    assert scores["good"].answers == [[2, 3, 4, 5], [3, 4, 5, 6], [5]]


def test_the_time_to_the_first_token_counts_as_reading() -> None:
    score = Score("fake", 1.0)
    score.add([[1] * 50, [1] * 100, [1] * 300], [Answer(0.5, 1.0, [1, 2, 3]), Answer(1.0, 1.0, [1]), Answer(2, 0, [1])])
    assert (score.generation, score.short, score.long) == ([1.0], [100.0], [150.0])


def scores() -> dict[str, Score]:
    def score(megabytes: float, speeds: list[float], answers: list[list[int]]) -> Score:
        return Score("fake", megabytes, speeds, short=[80.0], long=[900.0], answers=answers)

    return {
        "a fp32": score(539.6, [30.04, 20.0, 40.0], [[1, 2, 9, 4], [5]]),
        "b F32": score(539.1, [10.0], [[1, 2, 3, 4], [6]]),
        "c int4": score(90.0, [140.4], [[7, 2, 3, 4], [5]]),
        "d fp32": score(538.0, [5.0], [[1, 2, 3, 4], [5]]),
    }


def test_the_table_has_medians_and_their_range() -> None:
    header, rule, *rows = table(scores(), [50, 100, 1800]).splitlines()
    assert header.count("|") == rule.count("|")
    assert "reading 1800 tokens" in header
    assert "reading 150 in 2 prompts" in header
    assert rows[0] == "| a fp32 | 540 | 30.0 (20.0 to 40.0) | 900 (900 to 900) | 80.0 (80.0 to 80.0) | 3 of 5 |"
    assert rows[2].startswith("| c int4 | 90 | 140 (140 to 140) |")


def test_only_fp32_racers_have_to_begin_alike() -> None:
    assert mismatches(scores()) == ["b F32 begins the answers to prompts 2 unlike d fp32"]
    racers: dict[str, Any] = report(scores())
    assert [racer["same_tokens"] for racer in racers.values()] == [3, 4, 1, 5]
    assert same_tokens([[1, 2], [3]], [[1, 2], [3]]) == 3


def test_prompts_are_the_same_every_time(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    prompts = make_prompts(tmp_path, 300)
    assert [len(prompt) for prompt in prompts] == [50, 100, 200, 300]
    assert prompts == make_prompts(tmp_path, 300)


def test_half_a_file_is_never_taken(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    shop = Workshop(tmp_path / "model", tmp_path, 2, 100, reuse=False)

    def interrupted(part: Path) -> None:
        part.write_text("half")
        raise RivalError("interrupted")

    def whole(part: Path) -> None:
        part.write_text("whole")

    with pytest.raises(RivalError):
        shop.made("x.gguf", interrupted)
    assert shop.made("x.gguf", whole).read_text() == "whole"


def rotate(vectors: np.ndarray, position: int, *, neighbours: bool) -> np.ndarray:
    """Rotary embedding of [heads, head size]: of neighbouring numbers, or of a head's two halves."""
    half = vectors.shape[1] // 2
    angles = position / 10000.0 ** (np.arange(half) / half)
    first, second = (vectors[:, 0::2], vectors[:, 1::2]) if neighbours else (vectors[:, :half], vectors[:, half:])
    return np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], axis=1
    )


def test_q_and_k_of_a_llama_are_interleaved_for_a_rotation_of_neighbours(tmp_path: Path) -> None:
    source = dict(save_tiny_model("llama_mqa", tmp_path).state_dict())
    written = dict(tensors(tmp_path, read_config(tmp_path)))
    x, y = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    found, expected = (
        rotate((q @ x).reshape(4, 8), 3, neighbours=neighbours)
        @ rotate((k @ y).reshape(1, 8), 11, neighbours=neighbours).T
        for q, k, neighbours in (
            (written["blk.1.attn_q.weight"], written["blk.1.attn_k.weight"], True),
            (*(source[f"model.layers.1.self_attn.{name}_proj.weight"].numpy() for name in "qk"), False),
        )
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_qwen_keeps_its_halves_and_a_tied_head_is_not_written(tmp_path: Path) -> None:
    source = save_tiny_model("qwen2", tmp_path).state_dict()
    written = dict(tensors(tmp_path, read_config(tmp_path)))
    assert "output.weight" not in written
    assert len(written) == len(source) - 1  # transformers lists the head too
    for ours, theirs in (
        ("token_embd.weight", "embed_tokens.weight"),
        ("output_norm.weight", "norm.weight"),
        ("blk.0.attn_q.bias", "layers.0.self_attn.q_proj.bias"),
        ("blk.0.attn_k.weight", "layers.0.self_attn.k_proj.weight"),
        ("blk.1.attn_output.weight", "layers.1.self_attn.o_proj.weight"),
        ("blk.1.ffn_down.weight", "layers.1.mlp.down_proj.weight"),
        ("blk.1.ffn_norm.weight", "layers.1.post_attention_layernorm.weight"),
    ):
        np.testing.assert_array_equal(written[ours], source[f"model.{theirs}"].numpy())
