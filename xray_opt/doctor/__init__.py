"""Checks everything that the work needs, and says of each thing that is not as it should be how to mend it.

No check raises, and none makes anybody wait: each runs in a thread of its own and has a deadline.
"""

from xray_opt.doctor.diagnosing import diagnose
from xray_opt.doctor.findings import ERROR, OK, WARNING, Finding

__all__ = ["ERROR", "OK", "WARNING", "Finding", "diagnose"]
