"""The command `shatter`: the one part of the library that prints, jits and reads flags."""
