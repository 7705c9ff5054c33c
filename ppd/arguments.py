"""Arguments as callers spell them: numbers may be Python's or NumPy's."""

import numbers


def whole(value: object) -> int | None:
    """The value as an int, or None if it is no whole number. NumPy's unsigned ones wrap around where they are used."""
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None


def number(value: object) -> float | None:
    """The value as a float, or None if it is no real number, or too large for one."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
