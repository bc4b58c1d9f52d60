"""Run notebooks and keep their results with a record of how they were made."""
