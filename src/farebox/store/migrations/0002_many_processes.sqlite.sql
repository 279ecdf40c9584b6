-- Many processes over one set of books: each run keeps a lease, a hold can outlive its run as a tombstone.

ALTER TABLE run ADD COLUMN node TEXT NOT NULL DEFAULT '';
ALTER TABLE run ADD COLUMN lease_until INTEGER NOT NULL DEFAULT 0;  -- moved on by its heartbeat
ALTER TABLE run ADD COLUMN reaped_at INTEGER;                       -- set once: its holds are given up, it takes a new run
ALTER TABLE hold ADD COLUMN expired_at INTEGER;                     -- set: no money in it, but its settle may still come

CREATE TABLE lease (                            -- who does the work that one process does for all
  name   TEXT PRIMARY KEY,
  run_id INTEGER NOT NULL,
  until  INTEGER NOT NULL
) STRICT;
INSERT INTO lease (name, run_id, until) VALUES ('leader', 0, 0);
