"""Fixtures: a sentencepiece model that is trained once per process."""

import pytest

from tests.models.sentencepiece_models import LANGUAGES, Pair, pair_from, stdlib_lines, train


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    lines = stdlib_lines(60) + LANGUAGES * 20
    return pair_from(train(tmp_path_factory.mktemp("llama"), lines, vocab_size=3000))
