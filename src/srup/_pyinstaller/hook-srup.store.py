"""The stores, which srup.store imports at first use."""

from srup._pyinstaller import at_first_use
from srup.store import _AT_FIRST_USE

hiddenimports = at_first_use("srup.store", _AT_FIRST_USE)
