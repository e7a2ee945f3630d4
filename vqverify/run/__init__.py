"""One run of a check behind all three doors: the request, the subject opened, rows in this process or in others, the report."""
