"""`shatter finetune`."""
