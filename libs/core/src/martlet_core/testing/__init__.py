"""What tests need: in-memory twins, real servers, suites that every implementation passes. Not imported by the product."""
