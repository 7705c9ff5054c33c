"""Whether two engines answer alike."""

from collections.abc import Sequence

from ppd.runtime import Model


def require_same_tokens(one: Model, other: Model, prompt: Sequence[int], max_new_tokens: int) -> None:
    """Plainly and drafting, greedy and sampled."""
    for draft in (False, True):
        for temperature in (0.0, 1.0):
            got, expected = (
                model.generate(list(prompt), max_new_tokens=max_new_tokens, draft=draft, temperature=temperature)
                for model in (one, other)
            )
            assert got.token_ids == expected.token_ids
