"""`shatter label`."""
