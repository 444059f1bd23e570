"""From a model in the form that a person has it to a `Model`. One file per source format."""
