"""The operator's pages: what the business does today, its customers, its books, and everything that was changed."""
