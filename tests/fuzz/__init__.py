"""Fuzz targets: one function per parser of outside bytes. hypothesis drives them in the suite, atheris by hand."""
