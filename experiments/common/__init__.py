"""What every experiment shares: the binary, the run folder, chunks of a run, tables and plots."""
