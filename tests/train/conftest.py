"""Fixtures: what a run of `train` needs. Runs read them only."""

from pathlib import Path

import pytest

from tests.train.tiny_runs import save_model, save_text


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("data") / "words.txt")
