"""What a generation counts, by source."""

from ppd.cli.stats import describe_stats
from ppd.runtime.result import Result, Stats, json_from_result


def answer(steps: dict[str, list[int]]) -> Result:
    """An answer whose steps of each source gave these many tokens."""
    stats = Stats(
        prompt_tokens=1,
        reused_tokens=0,
        steps=sum(map(len, steps.values())),
        accepted_per_step=[n for given in steps.values() for n in given],
        source_per_step=[source for source, given in steps.items() for _ in given],
        first_token_ms=1.0,
        prefill_ms=1.0,
        decode_ms=1.0,
    )
    return Result(text="", token_ids=[], finish_reason="length", stats=stats)


def test_steps_and_right_guesses_are_counted_by_source_the_most_frequent_first() -> None:
    counted = answer({"table": [2], "plain": [1, 1, 1], "lookup": [4, 1]})

    assert list(counted.stats.by_source.items()) == [("plain", (3, 0)), ("lookup", (2, 3)), ("table", (1, 1))]
    assert json_from_result(counted)["stats"]["by_source"] == {
        "plain": {"steps": 3, "right": 0},
        "lookup": {"steps": 2, "right": 3},
        "table": {"steps": 1, "right": 1},
    }
    assert describe_stats(counted).endswith("finished: length; steps: 3 plain, 2 lookup (3 right), 1 table (1 right)")


def test_plain_steps_alone_and_none_are_not_told_by_source() -> None:
    for given in ({"plain": [1, 1]}, {}):
        assert describe_stats(answer(given)).endswith("finished: length")
