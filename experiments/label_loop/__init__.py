"""What does the labelling cycle learn without people? With recorded votes or a rater model."""
