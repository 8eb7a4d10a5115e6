"""Moves house: copies studies, their MLflow runs and their registered models from one pair of stores to another.

Runs and models go first, as a finished trial takes no new attribute and has to name its run's copy. Everything copied
knows its original, so a call that was killed is taken up where it stopped, and one more call changes nothing.
"""

from xray_opt.migrate.counting import Count
from xray_opt.migrate.moving import Migration, migrate
from xray_opt.migrate.stores import SERVICE, WORKSPACE

__all__ = ["SERVICE", "WORKSPACE", "Count", "Migration", "migrate"]
