"""The templates, style sheet and scripts of the console, which are no modules."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("srup.console")
