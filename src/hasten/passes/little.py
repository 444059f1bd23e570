"""Names that `optimization` and `lightening.run` still import; the merge with "run" takes them away."""

from hasten.passes.small_model import SmallModel as Little
from hasten.passes.small_model import Student
from hasten.passes.small_model import small_model_of as little_of

__all__ = ["Little", "Student", "little_of"]
