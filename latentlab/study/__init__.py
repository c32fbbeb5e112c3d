"""Studies: many trainings and samplings as cells that are computed once, and what they say together."""
