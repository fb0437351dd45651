"""What is measured of a net, a file for each kind."""

from homeostat.studies.measures.aligned import Aligned
from homeostat.studies.measures.attacked import Attacked
from homeostat.studies.measures.base import Measure
from homeostat.studies.measures.curve import Curve
from homeostat.studies.measures.followed import Followed
from homeostat.studies.measures.trusted import Trusted

__all__ = ["Aligned", "Attacked", "Curve", "Followed", "Measure", "Trusted"]
