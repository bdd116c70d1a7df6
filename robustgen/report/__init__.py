"""The report: ``summary`` turns stored rows into numbers, ``render`` turns numbers into a page."""
