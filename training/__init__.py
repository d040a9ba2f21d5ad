"""Both training stages as TRL scripts, their data and their recipes."""
