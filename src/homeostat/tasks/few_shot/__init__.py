"""Few-shot classification: a whole small training set is one instance, and its classes are new."""

from homeostat.tasks.few_shot.characters import FewShotCharacters
from homeostat.tasks.few_shot.digits import FewShotDigits
from homeostat.tasks.few_shot.mini_imagenet import MiniImageNet
from homeostat.tasks.few_shot.omniglot import Omniglot
from homeostat.tasks.few_shot.task import FewShotTask

__all__ = ["FewShotCharacters", "FewShotDigits", "FewShotTask", "MiniImageNet", "Omniglot"]
