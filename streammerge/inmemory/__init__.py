"""Models that are in memory already, merged by the same plan and pipeline as files."""
