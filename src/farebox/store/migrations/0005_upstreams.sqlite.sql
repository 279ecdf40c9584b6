-- Upstreams that operators enter in admin, and what calls leave behind at an upstream.

CREATE TABLE upstream (                         -- entered in admin, beside those of the configuration
  id         INTEGER PRIMARY KEY,
  name       TEXT NOT NULL UNIQUE,              -- never that of one in the configuration; kept in usage rows
  settings   TEXT NOT NULL,                     -- JSON, without anything secret
  secrets    BLOB,                              -- JSON of what is secret, sealed; never shown again
  created_at INTEGER NOT NULL,
  changed_at INTEGER NOT NULL
) STRICT;
