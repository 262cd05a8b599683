"""The version, here and nowhere else: pyproject.toml, `tlsv.__version__`, the command, records and the site read it."""

__version__ = "0.1.0"
