"""Errors of native libraries. A panic of Rust derives from `BaseException`, and so passes by `except Exception`."""

from ppd.errors import PPDError

_PANIC = "PanicException"


def translated(caught: BaseException, kind: type[PPDError], what: str, remedy: str) -> BaseException:
    """What to raise for what a native library raised: an error of ours, or itself if it is Ctrl-C or ours already."""
    if isinstance(caught, PPDError) or not (isinstance(caught, Exception) or type(caught).__name__ == _PANIC):
        return caught
    return kind(f"{what} ({' '.join(str(caught).split())!s:.200}); {remedy}")
