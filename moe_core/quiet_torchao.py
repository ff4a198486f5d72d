"""torchao imported without its noise, whoever imports it: we for its primitives, or transformers where it is installed.

It warns of compiled parts that were not built for this torch and of what it does to torch; neither is used here.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_SKIP = "TORCHAO_FORCE_SKIP_LOADING_SO_FILES"
_LOGGERS = ("torchao", "torch.utils._pytree")


@contextmanager
def quiet_torchao() -> Iterator[None]:
    """Whatever imports torchao inside does it without a word; nothing is changed where it is imported already."""
    if "torchao" in sys.modules:
        yield
        return
    before = os.environ.get(_SKIP)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    os.environ[_SKIP] = "1"
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torchao(\.|$)")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if before is None:
            os.environ.pop(_SKIP, None)
        else:
            os.environ[_SKIP] = before
