"""Values that every room uses: tensors, models, targets, records, progress, processes."""
