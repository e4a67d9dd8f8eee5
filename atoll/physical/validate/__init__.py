"""The gate before serving: measure (episodes, stressed and simulated otherwise), report (a page), stage (both)."""
