"""The engine `torch`: rebuilt from the bundle alone, equal to ONNX Runtime."""

from pathlib import Path

import pytest

from ppd import runtime
from ppd.runtime import Model


def test_the_check_passes_in_every_phase(tinypy_bundle: Path) -> None:
    info = runtime.check_bundle(tinypy_bundle, engine="torch", threads=1)

    print(f"max difference {info.max_difference:.2g}")
    assert info.engine.startswith("torch ")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_equal_onnxruntimes(tinypy_bundle: Path, tinypy: Model, temperature: float) -> None:
    model = runtime.load(tinypy_bundle, engine="torch", threads=1)
    prompt = list(range(5, 25))

    for draft in (False, True):
        got = model.generate(prompt, max_new_tokens=24, temperature=temperature, draft=draft)
        expected = tinypy.generate(prompt, max_new_tokens=24, temperature=temperature, draft=draft)
        assert got.token_ids == expected.token_ids
