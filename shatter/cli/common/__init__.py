"""What the commands and the experiments share: run folders, progress, models, votes."""
