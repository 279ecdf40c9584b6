-- Many processes over one set of books: each run keeps a lease, a hold can outlive its run as a tombstone, and every
-- process is told when keys or accounts change.

ALTER TABLE run ADD COLUMN node TEXT NOT NULL DEFAULT '';
ALTER TABLE run ADD COLUMN lease_until BIGINT NOT NULL DEFAULT 0;   -- moved on by its heartbeat
ALTER TABLE run ADD COLUMN reaped_at BIGINT;                        -- set once: its holds are given up, it takes a new run
ALTER TABLE hold ADD COLUMN expired_at BIGINT;                      -- set: no money in it, but its settle may still come

CREATE TABLE lease (                            -- who does the work that one process does for all
  name   TEXT PRIMARY KEY,
  run_id BIGINT NOT NULL,
  until  BIGINT NOT NULL
);
INSERT INTO lease (name, run_id, until) VALUES ('leader', 0, 0);

-- rows that change with every call: room for the new version on the same page, and old versions taken away early
ALTER TABLE account SET (fillfactor = 50, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE hold SET (fillfactor = 70, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_scale_factor = 0);

CREATE FUNCTION tell_of_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_notify('farebox_changed', '');
  RETURN NULL;
END $$;
CREATE TRIGGER account_change_is_told AFTER UPDATE OF status, plan ON account EXECUTE FUNCTION tell_of_change();
CREATE TRIGGER api_key_change_is_told AFTER UPDATE OR DELETE ON api_key EXECUTE FUNCTION tell_of_change();
