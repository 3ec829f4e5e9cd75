"""From the settings of a comparison to its runs, their records, their cost and the report."""
