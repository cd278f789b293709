"""A report of a run, finished or not, as one HTML file that needs nothing beside it.

>>> from d2_plugins.engine.report import write_report
>>> write_report("output/run")
"""

from .write import write_report

__all__ = ["write_report"]
