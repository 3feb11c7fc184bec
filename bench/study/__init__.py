"""A blind user study: a page that asks people to compare samples, and the scores of their answers."""
