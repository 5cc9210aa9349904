"""Objects, artifacts and their local cache; import the modules, this package re-exports nothing."""
