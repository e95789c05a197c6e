"""bitsandbytes, imported when it is needed. Only this module imports it."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from functools import cache
from types import ModuleType

from apt_ds.config.errors import UserError


def library(flag: str = "a quantized model") -> ModuleType:
    """Bitsandbytes. `flag` is what asks for it.

    Raises:
        UserError: it is not installed, or has no library for this machine.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{flag} needs bitsandbytes: pip install 'apt_ds[quantized]'")
    module = _imported()
    if isinstance(module.cextension.lib, module.cextension.ErrorHandlerMockBNBNativeLibrary):
        raise UserError(f"{flag}: the installed bitsandbytes has no library for this machine; leave it out")
    return module


@cache
def _imported() -> ModuleType:
    # it advises every user to install a further package
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return importlib.import_module("bitsandbytes")
