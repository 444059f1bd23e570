"""Watch a served model's answers for all time, and raise an alarm where it breaks its limit."""
