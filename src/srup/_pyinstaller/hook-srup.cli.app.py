"""The commands, each of which is imported when it is asked for."""

from PyInstaller.utils.hooks import collect_submodules

hiddenimports = collect_submodules("srup.cli")
