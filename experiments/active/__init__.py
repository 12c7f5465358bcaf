"""Does choosing what to label pay? On recorded votes, with the features of a pretrained model."""
