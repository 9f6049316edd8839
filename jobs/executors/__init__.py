"""Where a run's child process runs: on this machine, later on others."""
