"""The mathematics of sampling: schedules, samplers, guidance, conditions, noise."""
