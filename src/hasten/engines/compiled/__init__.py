"""Engine that writes a model as C, for models that a runtime's call costs more than their arithmetic."""
