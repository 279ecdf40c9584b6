"""The manual for customers: Markdown pages, the reference of the API they can use, and their twins for machines."""
