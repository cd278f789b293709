"""A report of a run, finished or not, as one self-contained HTML file.

>>> from d2_plugins.report import write_report
>>> write_report("output/run")
"""

from .record import record_session
from .write import write_report

__all__ = ["record_session", "write_report"]
