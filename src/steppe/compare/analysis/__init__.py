"""What the records of a comparison say: groups, the front, the verdict, the caveats."""
