"""Training without the libraries' own bars and remarks: what a person needs to know is said by the run."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers, datasets, TRL and warnings, and put all back behind it."""
    import datasets
    from transformers.utils import logging as said

    shown, level = datasets.are_progress_bars_disabled(), said.get_verbosity()
    bars = said.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    said.disable_progress_bar()
    said.set_verbosity_error()
    trl = logging.getLogger("trl")
    trl_level = trl.level
    trl.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        trl.setLevel(trl_level)
        said.set_verbosity(level)
        if bars:
            said.enable_progress_bar()
        if not shown:
            datasets.enable_progress_bars()
