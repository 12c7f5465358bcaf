"""The subcommand `shatter label`: asks people about responses and learns from their answers."""
