"""Sets with a bias: most images of a class share an attribute that has nothing to do with what they show.

`load_real("cmnist:ratio=0.05")`, `"bg-fmnist:..."` and `"ccifar10:..."` make them. The bias value of each image is
in `RealSet.bias`, for evaluation, diagnosis and tests only; what its values are called is in `RealSet.attribute`.
"""

from __future__ import annotations

from datastill.data.biased.assign import assign_bias, assign_unbiased
from datastill.data.biased.attribute import Attribute, attribute_of
from datastill.data.biased.groups import GroupAccuracy, group_accuracy

__all__ = ["Attribute", "GroupAccuracy", "assign_bias", "assign_unbiased", "attribute_of", "group_accuracy"]
