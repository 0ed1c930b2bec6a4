"""Measurements: medians of interleaved runs, with spread, against a named peer or limit of the same run."""
