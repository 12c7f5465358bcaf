"""Scientific questions, one folder each: the only place where parts of shatter are assembled."""
