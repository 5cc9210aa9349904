"""What tests need: in-memory twins, real servers, suites for every implementation. No product code imports it."""
