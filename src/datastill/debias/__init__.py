"""De-biasing: weights for distillation (density of an embedding), and training that resists a bias."""

from datastill.debias.diagnosis import conflict_mass, effective_samples
from datastill.debias.reweight import debias

__all__ = ["conflict_mass", "debias", "effective_samples"]
