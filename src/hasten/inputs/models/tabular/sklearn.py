"""scikit-learn placeholder."""
from hasten.inputs.models.tabular.base import Library
class ScikitLearn(Library):
    name = "scikit-learn"
    module = "sklearn"
    def read(self, path): raise NotImplementedError
    def describe(self, model): raise NotImplementedError
