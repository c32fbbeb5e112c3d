"""What a finished study says: correlations, regressions, noise, controls, flags."""
