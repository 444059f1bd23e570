"""The values that all rooms speak of: tensors, models, targets, records, progress, processes."""
