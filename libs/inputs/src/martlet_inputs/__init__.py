"""What jobs are given: base models by name, and rows of data sets. Light to import; what needs an ML library says so."""
