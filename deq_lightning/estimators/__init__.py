"""Estimates about an equilibrium that need only its map."""

from deq_lightning.estimators.audit import Audit as Audit
from deq_lightning.estimators.audit import gradient_audit as gradient_audit
from deq_lightning.estimators.path_independence import path_independence as path_independence
from deq_lightning.estimators.penalty import JacobianPenalty as JacobianPenalty
from deq_lightning.estimators.penalty import jacobian_penalty as jacobian_penalty
from deq_lightning.estimators.residual_curve import residual_curve as residual_curve
from deq_lightning.estimators.spectral import spectral_radius as spectral_radius
