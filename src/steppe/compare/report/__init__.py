"""How it is shown: the table of the terminal and the page."""
