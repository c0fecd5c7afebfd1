"""Solvers of z = f(z); they see only `f` and a starting point."""

from deq_lightning.solvers.anderson import Anderson as Anderson
from deq_lightning.solvers.base import Solver as Solver
from deq_lightning.solvers.broyden import Broyden as Broyden
from deq_lightning.solvers.fixed_point import FixedPointIteration as FixedPointIteration
from deq_lightning.solvers.gmres import GMRES as GMRES
from deq_lightning.solvers.normal_cg import NormalCG as NormalCG
from deq_lightning.solvers.solution import FixedPointMap as FixedPointMap
from deq_lightning.solvers.solution import Partition as Partition
from deq_lightning.solvers.solution import Solution as Solution
from deq_lightning.solvers.solution import Status as Status
