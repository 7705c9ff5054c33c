"""Two processes on the CPU: they share the rollouts out, train on sequences of their own, average, and write once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ppd
from ppd.models.adapter import load_prompt_tokens
from ppd.train.trainer import train
from tests.train.tiny_runs import options, save_model, save_text, steps_in


@pytest.mark.slow
def test_two_processes_train_together_and_repeat_to_the_bit(tmp_path: Path) -> None:
    model, text = save_model(tmp_path / "model"), save_text(tmp_path / "words.txt")
    small = ["--steps", "6", "--batch-size", "2", "--groups", "4", "--length", "32", "--rollouts", "16"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(Path(ppd.__file__).parents[1])}
    outputs = []
    for name in ("a", "b"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "ppd"]
        arguments = ["train", "--model", str(model), "--data", str(text), "--out", str(tmp_path / name), *small]
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False, timeout=300, env=environment
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    train(str(model), [text], tmp_path / "alone", options())

    a, b, alone = (load_prompt_tokens(tmp_path / name, 32) for name in ("a", "b", "alone"))
    assert torch.equal(a, b)
    assert not torch.equal(a, alone)  # or the second process did nothing
    assert [line["step"] for line in steps_in(tmp_path / "a")] == [1, 2, 3, 4, 5, 6]
    assert outputs[0].count("supervised positions per second") == 1
    caches = [sorted((tmp_path / name / "cache").iterdir()) for name in ("a", "alone")]
    assert [path.name for path in caches[0]] == [path.name for path in caches[1]]  # shared out, and written once
    for shared, whole in zip(*caches, strict=True):
        ours, theirs = load_file(shared), load_file(whole)
        assert all(torch.equal(ours[name], theirs[name]) for name in ("ids", "first", "end"))
