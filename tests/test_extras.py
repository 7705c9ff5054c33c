"""Missing packages are told with the extra that brings them."""

import pytest

from ppd.errors import PPDError
from ppd.extras import needs, require


def test_a_missing_package_is_told_with_the_extra_that_brings_it() -> None:
    with pytest.raises(PPDError, match=r'^not_there is not installed; run pip install "ppd-edge\[plot\]"$'):
        require("not_there", "plot")


def test_what_is_installed_is_imported() -> None:
    assert require("json.decoder", "plot").JSONDecoder


def test_a_missing_module_of_this_package_is_a_bug_and_stays_one() -> None:
    with pytest.raises(ModuleNotFoundError), needs("plot"):
        import ppd.not_there  # type: ignore[import-not-found]  # noqa: F401
