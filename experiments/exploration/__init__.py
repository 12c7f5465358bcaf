"""Does knowing what you do not know pay? Efficient exploration on a didactic process."""
