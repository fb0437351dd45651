"""What is measured of a net, a file for each kind."""

from homeostat.studies.path_independence.measures.aligned import Aligned
from homeostat.studies.path_independence.measures.attacked import Attacked
from homeostat.studies.path_independence.measures.base import Measure
from homeostat.studies.path_independence.measures.followed import Followed
from homeostat.studies.path_independence.measures.trusted import Trusted

__all__ = ["Aligned", "Attacked", "Followed", "Measure", "Trusted"]
